"""`tfm activations --study`: one model trained with each activation, and what each came to."""

from pathlib import Path
from typing import Any

from .outputs import written
from .streams import say, say_json

QUICK = ("relu", "gelu", "swiglu")
"""What --quick compares."""


def study(
    task: Path,
    *,
    runs: Path | None,
    names: tuple[str, ...],
    seeds: int,
    steps: int,
    jobs: int,
    rounds: int,
    quick: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Do a study, or go on with one; draw and print it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tfm.report import write_study
    from tfm.study.activations import STUDIED, Schedule, page_content, run_study, summarize

    from .screen import Screen
    from .study_tables import print_study

    runs = runs or Path(f"study-{task.resolve().name}{'-quick' if quick else ''}")
    options: dict[str, Any] = {"activations": names or STUDIED, "seeds": seeds, "jobs": jobs, "rounds": rounds}
    options["schedule"] = Schedule(steps=steps)
    if quick:
        # So few that it ends in minutes: to see that all works, not to learn something.
        options |= {"activations": names or QUICK, "seeds": 1, "schedule": Schedule(steps=60), "limit": 200}
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Screen(err=True)) as bars:
        known: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done)

        # What is in `runs` already is not trained again.
        results = run_study(task, runs, tell=tell, **options)
    page = output or runs / "study.html"
    with written(page):
        write_study(page, page_content(results))
    if as_json:
        say_json(results)
        return
    print_study(summarize(results))
    say(f"\nraw results in {runs / 'results.json'}, drawn in {page}")
