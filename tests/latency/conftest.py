"""Tiny bundles, and engines that do nothing but sleep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.latency.rounds import Job

SLEEPER = """
import json, os, sys, time
from tfm.latency import worker

def open_works(job):
    if job.get("unable"):
        raise worker.UnableError(job["unable"])
    print("a library that prints" * 10)
    sys.stderr.write("x" * job.get("chatter", 0))
    return [None if work.get("not") == job["name"] else run_of(job, work) for work in job["works"]]

def run_of(job, work):
    def run():
        if work.get("breaks") == job["name"]:
            raise RuntimeError("the sleeper woke up")
        start = time.perf_counter()
        time.sleep(job["sleep"])
        end = time.perf_counter()
        with open(job["log"], "a") as log:
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
            log.write(json.dumps([job["name"], work["work"], time.time(), os.getpid(), cores]) + "\\n")
        print("noise on stdout")
        return {"run": [end - start], "half": [(end - start) / 2] * 2}
    return run

def main(imported=None):
    worker.main(open_works, imported)
"""


@pytest.fixture
def make_bundle(toys: Any, tmp_path: Path) -> Callable[..., Path]:
    return lambda kind, **changes: toys.write_bundle(tmp_path / f"{kind}.tfm", kind, **changes)


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Make an engine that sleeps for so long at each run, and keeps a log."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    def make(name: str, sleep: float = 0.002, **options: Any) -> Job:
        told = {"name": name, "sleep": sleep, "log": str(tmp_path / "log"), **options}
        return Job(worker="sleeper", options=told, imports="json")

    return make
