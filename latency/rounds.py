"""Engines side by side: each in a process of its own, taking turns in an order drawn anew in every round.

Thread pools that spin make every other engine in their process two to three times slower, and what else a machine does
changes from minute to minute: so engines never share a process, never run at once, and are compared within a round.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.runtime import Progress, reporter

from . import processes
from .processes import Child
from .shelf import shelf, writing

ROUNDS = 15
"""How often each engine has its turn at each work, unless asked otherwise."""

SECONDS = 0.2
"""What one engine runs of one work before the next engine has its turn, at least one run."""

WARMUP = 3
"""Runs of every work before the first round."""

# Programs of a process. In the second one the clock starts before anything else is imported.
_SERVED = "from {worker} import main\nmain()\n"
_TIMED = """\
from time import perf_counter as clock
start = clock()
import {imports}
taken = clock() - start
from {worker} import main
main(taken)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """An engine: the module that runs it in a process of its own, and what with.

    Attributes:
        worker: Name of a module with a function `main(imported=None)` that calls `worker.main`.
        options: What it is told, as JSON values, beside the works.
        imports: What importing the engine means, where that is timed: for a bundle what `load` is in, since
            tfm.runtime itself imports nothing before it is asked for.
        starts: Whether starting it anew is timed.
    """

    worker: str
    options: Mapping[str, Any]
    imports: str = "tfm.runtime.loading"
    starts: bool = True


@dataclasses.dataclass(frozen=True)
class Turns:
    """What was timed.

    Attributes:
        times: Per work: engine → per round: measure → seconds of its single runs. An engine that cannot do a work is
            not there.
        peaks: Engine → the largest resident set of its process, in bytes; None: unknown.
        unable: Engine that this machine cannot run → why.
    """

    times: Sequence[Mapping[str, Sequence[Mapping[str, Sequence[float]]]]]
    peaks: Mapping[str, int | None]
    unable: Mapping[str, str]


def take_turns(
    engines: Mapping[str, Job],
    workloads: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    seconds: float = SECONDS,
    warmup: int = WARMUP,
    cores: Sequence[int] | None = None,
    progress: Progress = False,
) -> Turns:
    """Time every engine on every work.

    Args:
        engines: By name. All are open at once, and at most one runs.
        workloads: What each is told of every work, as JSON values.
        rounds: How often each engine has its turn at each work.
        seconds: How long a turn is; the run that is under way ends.
        warmup: Runs of each work before the first round.
        cores: Logical cores that the engines' threads are pinned to; None: any. Ignored where the system cannot.
        progress: Whether to count turns on stderr once all is warm, or a function to tell (done, total).

    Raises:
        VerificationError: An engine broke down.
    """
    with _opened(engines, workloads, cores) as started:
        # All were started before the first is waited for: they open at the same time.
        answers = {name: engine.ready() for name, engine in started.items()}
        unable = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        for name in unable:
            # It cannot run here, which is no fault of what is timed: the others are.
            started.pop(name).close()
        able = [[name for name in started if answers[name][index]] for index in range(len(workloads))]
        if warmup:
            for index, names in enumerate(able):
                for name in names:
                    # One after the other, as in the rounds: at most one engine runs.
                    started[name].ask(f"warm {index} {warmup}")
        times = _rounds(started, able, rounds, seconds, progress)
        return Turns(times, {name: engine.ask("peak") for name, engine in started.items()}, unable)


@contextlib.contextmanager
def _opened(
    engines: Mapping[str, Job], workloads: Sequence[Mapping[str, Any]], cores: Sequence[int] | None
) -> "Iterator[dict[str, Engine]]":
    """Start every engine; end those that are still open."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(shelf())
        started = {}
        for name, job in engines.items():
            started[name] = Engine(name, job, workloads, folder, cores)
            # At once, so that none is left running where the next one cannot be started.
            stack.callback(started[name].close)
        yield started


def _rounds(
    started: "Mapping[str, Engine]", able: Sequence[Sequence[str]], rounds: int, seconds: float, progress: Progress
) -> list[dict[str, list[Any]]]:
    """Per work: engine that is able to do it → per round, what it answered."""
    times: list[dict[str, list[Any]]] = [{name: [] for name in names} for names in able]
    # The order of turns is drawn anew in every round, so that none always follows the same one;
    # from a fixed seed, so that it can be told again.
    draw = random.Random(0)
    with reporter(progress, rounds * sum(map(len, able))) as advance:
        for _, (index, names) in itertools.product(range(rounds), enumerate(able)):
            for name in draw.sample(names, len(names)):
                times[index][name].append(started[name].ask(f"time {index} {seconds}"))
                advance(1)
    return times


class Engine:
    """A process that runs an engine's worker."""

    def __init__(
        self,
        name: str,
        job: Job,
        workloads: Sequence[Mapping[str, Any]],
        folder: Path,
        cores: Sequence[int] | None = None,
        *,
        start_only: bool = False,
    ) -> None:
        """Start it, its job in the folder. `start_only` is for one that tells what starting took, and ends."""
        file = folder / f"{name}.json"
        with writing(folder):
            # By a file, as rows of ids may be longer than a command line.
            file.write_text(json.dumps({**job.options, "works": list(workloads)}), encoding="utf-8")
        program = _TIMED if start_only else _SERVED
        self._child = Child(f"the engine {name}", program.format(imports=job.imports, worker=job.worker), [str(file)])
        if cores is not None and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(ProcessLookupError):  # it has ended already, which `ready` will say
                # From outside, and before it opens a model: threads that it starts later inherit it.
                os.sched_setaffinity(self.process.pid, cores)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """Its process."""
        return self._child.process

    def ready(self) -> Any:
        """Wait until it is imported and open; give its first answer."""
        # Twice: that it is imported, then that it is open.
        self._child.answer(processes.START_SECONDS, "while it was started")
        return self._child.answer(processes.ANSWER_SECONDS)

    def ask(self, request: str) -> Any:
        """Send a request, and give the answer."""
        self._child.send(request)
        return self._child.answer(processes.ANSWER_SECONDS)

    def close(self) -> None:
        """End the process."""
        self._child.close()


def start_once(name: str, job: Job, workloads: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Start an engine anew, in a fresh process, and let it do its first work once.

    Returns:
        "import", "open" and "answer" in seconds, the latter two since it began to be opened; "peak" in bytes.
    """
    with shelf() as folder:
        engine = Engine(name, job, workloads, folder, start_only=True)
        try:
            found: Mapping[str, Any] = engine.ready()
        finally:
            engine.close()
    return found
