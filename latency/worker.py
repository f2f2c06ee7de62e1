"""The child's side of `rounds`: a process that opens one engine, then runs works when it is told to."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from .processes import Answers

Times = Mapping[str, Sequence[float]]
"""Measure, such as "run" or "first token" → seconds of single runs."""

Run = Callable[[], Times]
"""Does a work once, and tells how long its parts took."""

OpenWorks = Callable[[Mapping[str, Any]], "Sequence[Run | None]"]
"""Opens an engine as a job says, and gives what runs each of its works; None: a work that it cannot do."""


class UnableError(Exception):
    """This machine cannot run the engine, which is no fault of what is timed; the message says why."""


def timed(call: Callable[[], object]) -> Run:
    """Make a run of one measure, "run"."""

    def run() -> Times:
        start = perf_counter()
        call()
        return {"run": [perf_counter() - start]}

    return run


def main(open_workloads: OpenWorks, imported: float | None = None) -> None:
    """Serve the job in the file that is the second argument, until stdin ends; the first one is for the answers.

    First it answers true, as it has been imported; then which works it can do, or why it cannot run here. Requests are
    lines: "warm INDEX RUNS", "time INDEX SECONDS" (at least one run) and "peak". Answers are JSON.

    Args:
        open_workloads: Opens the engine.
        imported: Seconds that importing it took, where it is only to be started: it then does its first work once,
            tells how long it took to be opened and to have done that, and ends.
    """
    reply = Answers(sys.argv[1])
    # Python and the engine's packages are there: the parent waits longer for this than for the rest.
    reply(True)
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    start = perf_counter()
    try:
        workloads = open_workloads(job)
    except UnableError as error:
        reply(str(error))
        return
    opened = perf_counter() - start
    # Only started to be timed: what follows would be no start any more.
    if imported is not None:
        first = workloads[0]
        if first is not None:
            first()
        answered = perf_counter() - start
        reply({"import": imported, "open": opened, "answer": answered, "peak": peak_memory()})
        return
    reply([work is not None for work in workloads])
    serve = _Server(workloads)
    for line in sys.stdin:
        what, *numbers = line.split()
        reply(getattr(serve, what)(*numbers))


class _Server:
    """Does what is asked for by lines: each of its methods is a request, and takes its words."""

    def __init__(self, workloads: Sequence[Run | None]) -> None:
        self._workloads = workloads
        self._last: dict[str, float] = {}
        """How long the last run of each work was."""

    def peak(self) -> int | None:
        return peak_memory()

    def warm(self, index: str, runs: str) -> bool:
        for _ in range(int(runs)):
            self._run(index)
        return True

    def time(self, index: str, seconds: str) -> dict[str, list[float]]:
        turn = float(seconds)
        # Not where a run takes a good part of a turn, or all of it: one more would double the time.
        if self._last.get(index, 0.0) < turn / 4:
            self._work(index)()  # wakes caches and clock frequency after the other engines' turns
        found: dict[str, list[float]] = {}
        end = perf_counter() + turn
        # At least one run, however long it takes.
        while True:
            for measure, times in self._run(index).items():
                found.setdefault(measure, []).extend(times)
            if perf_counter() >= end:
                return found

    def _run(self, index: str) -> Times:
        start = perf_counter()
        times = self._work(index)()
        self._last[index] = perf_counter() - start
        return times

    def _work(self, index: str) -> Run:
        work = self._workloads[int(index)]
        if work is None:
            raise ValueError(f"asked for work {index}, which this engine cannot do")
        return work


def peak_memory() -> int | None:
    """The largest resident set that this process has had, in bytes; None: this system does not tell.

    On Linux from /proc, as `getrusage` there counts what the process was before `exec`, too.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            # In kB, which are KiB.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return most if sys.platform == "darwin" else most * 1024
