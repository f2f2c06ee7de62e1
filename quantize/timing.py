"""Engines side by side on the same work, one thread, each in a process of its own, in interleaved rounds."""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError

_ROUNDS = 9
_ROUND_SECONDS = 0.04
"""What one engine runs before the next has its turn, at least one run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every engine is timed on: one graph, run on one set of inputs.

    Attributes:
        name: Such as "model 1×128".
        role: The graph's: "model", "encoder" or "decoder".
        inputs: Every input of the graph by name, in the graph's order.
    """

    name: str
    role: str
    inputs: Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """An engine: the module that runs it in a process of its own, and what with.

    Attributes:
        worker: Name of a module that calls `timing_worker.serve`.
        options: What it is told, as JSON values.
    """

    worker: str
    options: Mapping[str, Any]


def onnx_job(files: Mapping[str, Path]) -> Job:
    """Let onnxruntime run the ONNX file of each role."""
    files_of = {role: str(file) for role, file in files.items()}
    return Job(worker="tfm.quantize.timing_worker", options={"files": files_of})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Median time of one piece of work on one thread, by engine.

    Attributes:
        work: What was run, such as "model 1×128".
        milliseconds: Engine → median over the rounds of a round's fastest run; engines are "eager" and the precisions.
    """

    work: str
    milliseconds: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Whether a precision is worth having on this machine.

    Attributes:
        precision: Such as "int8".
        ratio: Its time over fp32's, the geometric mean over all work that was timed.
        milliseconds: Its time, and fp32's, of the work at which it does worst.
        work: That work.
    """

    precision: str
    ratio: float
    milliseconds: tuple[float, float]
    work: str

    @property
    def passed(self) -> bool:
        """Whether it is faster than fp32."""
        return self.ratio < 1

    def __str__(self) -> str:
        ours, fp32 = self.milliseconds
        how = "faster" if self.passed else "not faster"
        return (
            f"{how} than fp32 here: {self.ratio:.2f}× its time over all work, at worst {ours:.2f} ms against "
            f"{fp32:.2f} ms ({self.work})"
        )


def compare_speed(latency: Sequence[Latency]) -> list[Speed]:
    """Compare every precision with fp32; nothing where nothing was timed."""
    names = [name for name in (latency[0].milliseconds if latency else {}) if name not in ("eager", "fp32")]
    speeds = []
    for name in names:
        pairs = [(line.milliseconds[name], line.milliseconds["fp32"], line.work) for line in latency]
        ours, fp32, work = max(pairs, key=lambda pair: pair[0] / pair[1])
        ratio = statistics.geometric_mean(one / other for one, other, _ in pairs)
        speeds.append(Speed(precision=name, ratio=ratio, milliseconds=(ours, fp32), work=work))
    return speeds


def time_engines(engines: Mapping[str, Job], works: Sequence[Work], *, rounds: int = _ROUNDS) -> list[Latency]:
    """Time every engine on every work.

    Args:
        engines: By name.
        works: Each is run by all engines in turn before the next begins.
        rounds: How often each engine has its turn.

    Returns:
        A line for each work, in their order, with the engines in theirs.

    Raises:
        VerificationError: An engine broke down.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for index, work in enumerate(works):
            arrays: Any = dict(work.inputs)
            np.savez(Path(folder) / f"{index}.npz", **arrays)
        common = {"inputs": folder, "roles": [work.role for work in works]}
        started: dict[str, _Engine] = {}
        for name, job in engines.items():
            started[name] = _Engine(job.worker, {**common, **job.options})
            stack.callback(started[name].close)
        return [_measure(work.name, index, started, rounds) for index, work in enumerate(works)]


def _measure(work: str, index: int, engines: Mapping[str, "_Engine"], rounds: int) -> Latency:
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name].append(engine.time(index))
    return Latency(work=work, milliseconds={name: statistics.median(found) * 1e3 for name, found in times.items()})


class _Engine:
    """A process that runs a worker."""

    def __init__(self, worker: str, job: dict[str, Any]) -> None:
        command = [sys.executable, "-m", worker, json.dumps(job)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def time(self, index: int) -> float:
        """Seconds of the fastest run of one round of work `index`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(index, _ROUND_SECONDS, file=self.process.stdin, flush=True)
            return float(self.process.stdout.readline())
        except (ValueError, OSError) as error:
            _, message = self.process.communicate()
            raise VerificationError(
                f"an engine broke down while it was timed: {(message or '').strip()[-300:]}"
            ) from error

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
