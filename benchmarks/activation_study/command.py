"""The command: does a study, or goes on with one, then prints and draws it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfm.cli.screen import Screen
from tfm.errors import TfmError

from .html import write_study
from .page import page_content
from .schedule import Schedule
from .study import STUDIED, Tell, run_study
from .summary import markdown, summarize
from .terminal import print_study

QUICK = ("relu", "gelu", "swiglu")
"""What --quick compares."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("task", type=click.Path(path_type=Path))
@click.option("--activation", "names", metavar="NAME", multiple=True, help="Only this one; as often as wanted.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder that the study is kept in [default: study-TASK].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each.")
@click.option("--steps", type=click.IntRange(min=1), default=1200, show_default=True, help="Steps of a training.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Trainings at once.")
@click.option("--rounds", type=click.IntRange(min=6), default=15, show_default=True, help="Turns of each when timed.")
@click.option("--quick", is_flag=True, help="One seed, 60 steps and three activations: to see it work.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw results, for machines.")
def study(task: Path, runs: Path | None, as_json: bool, **options: Any) -> None:
    """Train TASK, a folder with a task.py, with each activation; then export, verify, quantize and time each model.

    An interrupted study goes on where it was. Of a results.json in the place of TASK, print the table in Markdown.
    """
    try:
        if task.is_file():
            print(markdown(summarize(json.loads(task.read_text(encoding="utf-8")))), end="")
            return
        runs = runs or Path(f"study-{task.resolve().name}{'-quick' if options['quick'] else ''}")
        with _progress() as tell:
            # What is in `runs` already is not trained again.
            results = run_study(task, runs, tell=tell, **_chosen(**options))
        page = runs / "study.html"
        write_study(page, page_content(results))
    except TfmError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        json.dump(results, sys.stdout, indent=1)
        return
    print_study(summarize(results))
    print(f"\nraw results in {runs / 'results.json'}, drawn in {page}")


def _chosen(names: tuple[str, ...], seeds: int, steps: int, quick: bool, **options: int) -> dict[str, Any]:
    """Give the options of `run_study`; of a quick one, so few that it ends in minutes."""
    if quick:
        return options | {"activations": names or QUICK, "seeds": 1, "schedule": Schedule(steps=60), "limit": 200}
    return options | {"activations": names or STUDIED, "seeds": seeds, "schedule": Schedule(steps=steps)}


@contextmanager
def _progress() -> Iterator[Tell]:
    """Draw a bar for each of what is told of."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    known: dict[str, Any] = {}
    with Progress(*columns, console=Screen(err=True)) as bars:

        def tell(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done)

        yield tell
