"""What the comparisons with peers share: engines in processes of their own, interleaved rounds, ratios and tables.

An engine is a worker script with an interpreter that has its packages. It is started as `python WORKER JOB`, JOB being
JSON with "threads" in it, pinned to as many cores. Once it says that it is ready, it answers each line on stdin by a
line of JSON, in which "seconds" is what is compared (`peers/serving.py` is the worker's side). Between its
turns a worker is stopped, so that no thread of its spins on a core while another has its turn.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Seconds = Mapping[str, Mapping[str, Sequence[float]]]
"""Work → engine → seconds of its turn in each round."""

ANSWERS = "ANSWERS"
"""Environment variable that tells a worker the file descriptor which it writes its answers to."""

RESAMPLES = 4000
"""Of the bootstrap: the ends of its interval then stay within a hundredth of the interval's width or so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One line of the tables.

    Attributes:
        name: As printed.
        python: Interpreter that has what it needs.
        worker: Script that runs it.
        job: What the script is told, JSON values.
        files: What the engine reads of weights and graph.
    """

    name: str
    python: Path
    worker: Path
    job: Mapping[str, Any]
    files: Sequence[Path] = ()

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(path.stat().st_size for path in self.files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What every engine does in its turn.

    Attributes:
        name: As printed.
        line: What the worker is sent.
        fresh: Whether each turn has a process of its own, as where it is the start that is timed.
    """

    name: str
    line: str
    fresh: bool = False


class Worker:
    """A process that runs an engine on its last so many cores; a context that ends it."""

    def __init__(self, engine: Engine, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        if len(cores) < threads:
            raise SystemExit(f"{threads} threads were asked for, but there are {len(cores)} cores; ask for fewer")
        self.engine = engine
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        read, write = os.pipe()  # apart from stdout, which libraries print on
        self._answers = os.fdopen(read)
        self._process = subprocess.Popen(
            [engine.python, engine.worker, json.dumps({**engine.job, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            text=True,
            pass_fds=[write],
            env={**environment(threads), ANSWERS: str(write)},
            preexec_fn=lambda: _prepare(cores),
        )
        os.close(write)

    def __enter__(self) -> "Worker":
        self._answer("start")  # that it is ready
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._answers.close()
        self._errors.close()

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for its answer."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # then it is dead, and has said why
            print(line, file=self._process.stdin, flush=True)
        return self._answer(line)

    def _answer(self, line: str) -> dict[str, Any]:
        answer = self._answers.readline()
        if answer:
            self._process.send_signal(signal.SIGSTOP)
            return json.loads(answer)
        self._process.wait()  # it is ending, and may not have said all
        self._errors.seek(0)
        raise SystemExit(f"{self.engine.name} broke down at {line!r}:\n{self._errors.read()[-2000:]}")

    def peak(self) -> int:
        """Bytes that it held at most (VmHWM), pages of mapped files included."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


_BEGUN = time.monotonic()
_LIBC = ctypes.CDLL(None)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def _prepare(cores: Sequence[int]) -> None:
    """Pin a new process before any library counts the cores; one that is stopped would outlive a parent killed."""
    os.sched_setaffinity(0, cores)
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def environment(threads: int) -> dict[str, str]:
    """Variables that a process runs with."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def say(text: str) -> None:
    """Tell the progress, after the seconds since the beginning."""
    print(f"{time.monotonic() - _BEGUN:4.0f} s  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(engines: Sequence[Engine], threads: int) -> Iterator[list[Worker]]:
    """A worker for every engine."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Worker(engine, threads)) for engine in engines]


def take_turns(
    workers: Sequence[Worker], workloads: Sequence[Workload], rounds: int, threads: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Let all engines have a turn at each work, in an order drawn anew, round by round.

    Returns:
        Work → engine → its answer in each round.
    """
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {
        work.name: {worker.engine.name: [] for worker in workers} for work in workloads
    }
    rng = np.random.default_rng(0)
    for number in range(rounds):
        say(f"{threads} threads, round {number + 1} of {rounds}")
        for work in workloads:
            for i in rng.permutation(len(workers)):
                answers[work.name][workers[i].engine.name].append(_turn(workers[i], work, threads))
    return answers


def _turn(worker: Worker, work: Workload, threads: int) -> dict[str, Any]:
    if not work.fresh:
        return worker.ask(work.line)
    with Worker(worker.engine, threads) as new:
        return {**new.ask(work.line), "peak": new.peak()}


def column(answers: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], name: str = "seconds") -> Seconds:
    """One figure of all answers: work → engine → rounds."""
    return {
        work: {engine: [answer[name] for answer in turns] for engine, turns in of.items()}
        for work, of in answers.items()
    }


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long another takes: the median over the rounds, and its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether a difference is."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        interval = f"({self.low:.2f}–{self.high:.2f})"
        return f"{self.median:.2f} {interval}" if self.shown else f"no difference shown {interval}"


def ratio(others: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Compare times of the same rounds: what slows a round down slows both, so the ratio is taken within each.

    The interval is the percentile bootstrap's (Efron 1979) of the median, rounds being drawn with replacement. Of up to
    five rounds it is the whole range, or nearly, which holds the median in 1 - 2 / 2**rounds of all cases; one shows
    nothing.
    """
    if len(others) != len(ours) or not others:
        raise ValueError(f"ratios need the same rounds of both, at least one, but there are {len(others)}, {len(ours)}")
    of_round = np.asarray(others, np.float64) / np.asarray(ours, np.float64)
    if not np.isfinite(of_round).all() or (of_round <= 0).any():
        raise ValueError(f"times must be positive, but gave the ratios {of_round}")
    if len(of_round) == 1:
        return Ratio(float(of_round[0]), 0.0, float("inf"))
    drawn = np.random.default_rng(0).integers(0, len(of_round), (RESAMPLES, len(of_round)))
    low, high = np.quantile(np.median(of_round[drawn], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(of_round)), float(low), float(high))


def ratio_table(seconds: Seconds, ours: str, peers: Sequence[str], title: str = "Time, of ours") -> str:
    """Markdown: an engine a row, a work a column; the ratio of its time to ours, and the fastest of `peers` below.

    Args:
        seconds: An engine that has no times of a work gets a dash.
        ours: The engine whose time is 1; its median is given.
        peers: Engines of others, among which the fastest is named.
        title: What stands above the engines' names.
    """
    names = list(dict.fromkeys(engine for of in seconds.values() for engine in of))
    ratios = {
        work: {engine: ratio(times, of[ours]) for engine, times in of.items() if engine != ours}
        for work, of in seconds.items()
    }
    rows = [[title, *seconds]]
    for name in names:
        if name == ours:
            cells = [f"1 ({duration(of[ours])})" for of in seconds.values()]
        else:
            cells = [str(of.get(name, "–")) for of in ratios.values()]
        rows.append([name, *cells])
    fastest = [min((name for name in peers if name in of), key=lambda name: of[name].median) for of in ratios.values()]
    named = [f"{name}: {of[name]}" for name, of in zip(fastest, ratios.values(), strict=True)]
    rows.append(["**Fastest peer**", *named])
    return table(rows)


def duration(seconds: Sequence[float]) -> str:
    """The median, to three digits."""
    median = statistics.median(seconds)
    return f"{median:.3g} s" if median >= 1 else f"{median * 1e3:.3g} ms"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first row as the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What this ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()}; Python {platform.python_version()}"
