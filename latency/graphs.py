"""The graphs of a bundle side by side on one thread: what a precision must win before it is shipped."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.runtime.scratch import scratch_folder

from .rounds import Job, take_turns

_ROUNDS = 9
_TURN = 0.04


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


def onnx_job(files: Mapping[str, Path]) -> Job:
    """Let onnxruntime run the ONNX file of each role."""
    files_of = {role: str(file) for role, file in files.items()}
    return Job(worker="tfm.latency.onnx_engine", options={"files": files_of})


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


def save_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a work's inputs for the engines to read, by name."""
    named: Any = dict(arrays)
    np.savez(file, **named)


def time_engines(engines: Mapping[str, Job], works: Sequence[Work], *, rounds: int = _ROUNDS) -> list[Latency]:
    """Time every engine on every work.

    Args:
        engines: By name.
        works: What they run.
        rounds: How often each engine has its turn.

    Returns:
        A line for each work, in their order, with the engines in theirs.

    Raises:
        VerificationError: An engine broke down.
    """
    with scratch_folder() as folder:
        told = []
        for index, work in enumerate(works):
            file = Path(folder) / f"{index}.npz"
            save_arrays(file, work.inputs)
            told.append({"role": work.role, "file": str(file)})
        turns = take_turns(engines, told, rounds=rounds, seconds=_TURN, warmup=0)
    return [
        Latency(
            work=work.name,
            milliseconds={name: statistics.median(min(turn["run"]) for turn in times[name]) * 1e3 for name in engines},
        )
        for work, times in zip(works, turns.times, strict=True)
    ]
