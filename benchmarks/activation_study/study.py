"""A study: one model trained with each activation, from several seeds, and what became of it once deployed."""

import dataclasses
import json
import math
import os
import platform
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tfm.bundle import write_whole
from tfm.errors import VerificationError
from tfm.latency import Child, processes
from tfm.latency.processes import WELL
from tfm.model import check_activation

from .run import Run, versions
from .schedule import Schedule
from .speed import time_bundles
from .task import load_task

STUDIED = (
    "relu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "squared_relu",
    "reglu",
    "geglu",
    "swiglu",
)
BASELINE = "relu"
SCHEMA = 1
"""Version of a study's JSON."""

_PLACE = str(Path(__file__).resolve().parents[str(__package__).count(".") + 1])
"""What has to be on the path of a process for this package to be found."""

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


def run_study(
    folder: Path,
    output: Path,
    *,
    activations: Sequence[str] = STUDIED,
    seeds: int = 3,
    schedule: Schedule | None = None,
    jobs: int = 2,
    limit: int | None = None,
    rounds: int = 15,
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Train, deploy and time; what is finished is kept in `output`, and an interrupted study goes on from there.

    Args:
        folder: The task's, with its task.py.
        output: Folder of the runs, and of results.json.
        activations: Which; the first is what the others are compared with.
        seeds: How many trainings of each, from seeds 0, 1, ….
        schedule: How each is trained; None: `Schedule()`.
        jobs: How many trainings at once, each on one thread.
        limit: On how many of the task's questions each is tested; None: all.
        rounds: Turns of each bundle in the timing.
        tell: Told how far it is.

    Returns:
        The content of results.json, which docs/activations.md describes.

    Raises:
        ConfigError: An activation is unknown.
        InputError: The task is none, or `output` holds another study.
        VerificationError: A run broke down.
    """
    for name in activations:
        check_activation(name)
    # Before any training: a task that is none is refused at once.
    config = load_task(folder).CONFIG
    schedule = schedule or Schedule()
    runs = [
        Run(activation=name, seed=seed, schedule=schedule, folder=output / f"{name}-{seed}", limit=limit)
        for seed in range(seeds)
        for name in activations
    ]
    _work("train", folder, runs, jobs, schedule.steps, tell)
    _work("deploy", folder, runs, jobs, 4, tell)
    results = {
        "schema": SCHEMA,
        "task": folder.name,
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "schedule": dataclasses.asdict(schedule),
        "activations": list(activations),
        "seeds": seeds,
        "questions": limit,
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions(),
        "runs": [_result(run) for run in runs],
        "speed": _time(output, runs, activations, rounds, tell),
    }
    write_whole(output / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _result(run: Run) -> dict[str, Any]:
    trained, deployed = run.read("train"), run.read("deploy")
    assert trained is not None
    assert deployed is not None
    return {"activation": run.activation, "seed": run.seed, "trained": trained, "deployed": deployed}


def _time(output: Path, runs: Sequence[Run], names: Sequence[str], rounds: int, tell: Tell) -> list[dict[str, Any]]:
    """Time the first seed's bundles, unless that is done."""
    file = output / "speed.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        # The first of them is the baseline: other names, or another order, are other ratios.
        if found["activations"] == list(names):
            return list(found["lines"])
    # Weights of another seed take as long.
    bundles = {run.activation: run.bundle for run in runs if run.seed == 0}
    lines = time_bundles(bundles, names[0], rounds, lambda done, total: tell("time the bundles", done, total))
    write_whole(file, json.dumps({"activations": list(names), "lines": lines}, indent=1) + "\n")
    return lines


def _work(stage: str, task: Path, runs: Sequence[Run], jobs: int, steps: int, tell: Tell) -> None:
    """Do a stage of every run that lacks it, several at once; on an error or an interrupt the processes end."""
    pending = [run for run in runs if run.read(stage) is None]
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    running: set[Child] = set()
    stopped = threading.Event()

    def work(run: Run) -> None:
        if stopped.is_set():
            return
        child = _start(stage, task, run)
        # Known to the main thread from here on, which ends it where something fails.
        running.add(child)
        try:
            done, patience = 0, processes.START_SECONDS
            while (now := child.next_answer(patience)) is not None:
                told.put(int(now) - done)
                done, patience = int(now), math.inf  # a step takes what the user's task takes
            ending = child.ending()
            # One that was ended from here is not at fault.
            if ending != WELL and not stopped.is_set():
                last = child.printed().splitlines()[-1]
                raise VerificationError(f"{child.name} broke down: {last} ({ending}); see {run.folder / stage}.log")
        finally:
            running.discard(child)
            child.close()

    def count(done: int) -> int:
        # Counted in the main thread, which alone draws.
        while not told.empty():
            done += told.get()
        tell(f"{stage} {len(pending)} of {len(runs)} models", done, len(pending) * steps)
        return done

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, run) for run in pending}
        try:
            done = 0
            while futures:
                # Every second, to tell how far it is and to let Ctrl-C come through.
                finished, futures = wait(futures, timeout=1.0, return_when=FIRST_EXCEPTION)
                done = count(done)
                for future in finished:
                    future.result()
        # Ctrl-C too. Threads wait for their processes, so these are ended first.
        except BaseException:
            stopped.set()
            for child in list(running):
                child.process.kill()
            raise


def _start(stage: str, task: Path, run: Run) -> Child:
    told = {**dataclasses.asdict(run), "folder": str(run.folder.resolve())}
    run.folder.mkdir(parents=True, exist_ok=True)
    return Child(
        f"{stage} {run.activation}, seed {run.seed},",
        # Its path has no working directory, which this package may have been found in.
        f"import sys\nsys.path.append({_PLACE!r})\nfrom {__package__}.worker import main\nmain(*sys.argv[1:])\n",
        [stage, str(task.resolve()), json.dumps(told)],
        # Before torch is imported there, which reads it then.
        changes={"OMP_NUM_THREADS": "1"},
        log=run.folder / f"{stage}.log",
    )
