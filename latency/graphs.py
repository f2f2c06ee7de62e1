"""The graphs of a bundle side by side on one thread: what a precision must win before it is shipped."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import Gate

from .ratios import FASTER, NOISY, SAME, SLOWER, Ratio, ratio_of
from .rounds import ROUNDS, Job, take_turns
from .shelf import shelf, writing

_TURN = 0.04
_ATTEMPTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
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
    """Times of one piece of work on one thread, by engine.

    Attributes:
        work: What was run, such as "model 1×128".
        rounds: Engine → milliseconds of the fastest run of each round. The first engine, "eager" or "fp32", is what the
            others, the precisions, are compared with.
    """

    work: str
    rounds: Mapping[str, Sequence[float]]

    @property
    def milliseconds(self) -> dict[str, float]:
        """Engine → median over the rounds."""
        return {name: statistics.median(times) for name, times in self.rounds.items()}

    @property
    def baseline(self) -> str:
        """The first engine."""
        return next(iter(self.rounds))

    @property
    def ratios(self) -> dict[str, Ratio]:
        """Engine → the first one's time over its own."""
        first, *others = self.rounds
        return {name: ratio_of(self.rounds[first], self.rounds[name]) for name in others}

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values; docs/parity.md says what they mean."""
        ratios = {name: ratio.to_dict() for name, ratio in self.ratios.items()}
        return {"work": self.work, "milliseconds": self.milliseconds, "baseline": self.baseline, "ratios": ratios}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Whether a precision is worth having on this machine.

    Attributes:
        precision: Such as "int8".
        baseline: What it is compared with, "fp32" or "eager".
        ratio: The baseline's time over its own, each the geometric mean over all work that was timed.
        milliseconds: Its time, and the baseline's, of the work at which it does worst.
        work: That work.
    """

    precision: str
    baseline: str
    ratio: Ratio
    milliseconds: tuple[float, float]
    work: str

    @property
    def passed(self) -> bool:
        """Whether it is not shown to be slower."""
        return not self.ratio.is_slower

    @property
    def gate(self) -> Gate:
        """Whether it may be shipped, by its ratio to the baseline."""
        return Gate(
            name=f"{self.precision} not slower than {self.baseline}",
            stage="speed",
            precision=self.precision,
            passed=self.passed,
            figure=self.ratio.value,
            limit=1.0,
            reason="" if self.passed else f"{self.precision} is {self}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values; docs/parity.md says what they mean."""
        return {"precision": self.precision, "baseline": self.baseline, **self.ratio.to_dict()}

    def __str__(self) -> str:
        ours, theirs = self.milliseconds
        low, middle, high = (1 / value for value in (self.ratio.high, self.ratio.value, self.ratio.low))
        how = {
            FASTER: f"faster than {self.baseline} here",
            SAME: f"not shown to be faster or slower than {self.baseline} here",
            NOISY: f"not compared with {self.baseline} on a machine as noisy as this",
        }.get(self.ratio.verdict if self.passed else SLOWER, f"slower than {self.baseline} here")
        return (
            f"{how}: {middle:.2f}× its time ({low:.2f}–{high:.2f}) over all work, at worst {ours:.2f} ms against "
            f"{theirs:.2f} ms ({self.work})"
        )


def compare_speed(latency: Sequence[Latency], baseline: str = "fp32") -> list[Speed]:
    """Compare every precision with fp32, or with eager; nothing where that was not timed.

    This is what the gate, the terminal, the certificate and report.html go by.
    """
    if not latency or baseline not in latency[0].rounds:
        return []
    # Ratios are compared by their geometric mean, to which half and twice are equally far from 1.
    means = {name: _means([line.rounds[name] for line in latency]) for name in latency[0].rounds}
    speeds = []
    for name in means:
        if name not in ("eager", baseline):
            pairs = [(line.milliseconds[name], line.milliseconds[baseline], line.work) for line in latency]
            ours, theirs, work = max(pairs, key=lambda pair: pair[0] / pair[1])
            ratio = ratio_of(means[baseline], means[name])
            speeds.append(Speed(precision=name, baseline=baseline, ratio=ratio, milliseconds=(ours, theirs), work=work))
    return speeds


def all_speeds(latency: Sequence[Latency]) -> list[Speed]:
    """Compare every precision with eager, and with fp32."""
    return [*compare_speed(latency, "eager"), *compare_speed(latency)]


def _means(workloads: Sequence[Sequence[float]]) -> list[float]:
    """The geometric mean over the works, of each round."""
    return [statistics.geometric_mean(times) for times in zip(*workloads, strict=True)]


def save_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a work's inputs for the engines to read, by name.

    Raises:
        VerificationError: They cannot be written.
    """
    named: Any = dict(arrays)
    with writing(file.parent):
        np.savez(file, **named)


def time_engines(
    engines: Mapping[str, Job], workloads: Sequence[Workload], *, rounds: int = ROUNDS, attempts: int = _ATTEMPTS
) -> list[Latency]:
    """Time every engine on every work.

    Args:
        engines: By name; the first is what the others are compared with.
        workloads: What they run.
        rounds: How often each engine has its turn.
        attempts: How often to try on a machine that is too noisy.

    Returns:
        A line for each work, in their order, with the engines in theirs.

    Raises:
        VerificationError: An engine broke down.
    """
    for left in reversed(range(attempts)):
        lines = _time(engines, workloads, rounds)
        # The last attempt counts, noisy or not: the gate then refuses only what is shown to be
        # slower.
        if not left or not any(speed.ratio.noisy for speed in all_speeds(lines)):
            break
    return lines


def try_engines(engines: Mapping[str, Job], workloads: Sequence[Workload]) -> None:
    """Start every engine and let it run the first work once, before the long work that `time_engines` follows.

    Raises:
        VerificationError: An engine broke down.
    """
    with shelf() as folder:
        # Without a round: it is to break down now, if it does, and not after minutes of other work.
        take_turns(engines, _tell(workloads[:1], folder), rounds=0, warmup=1)


def _time(engines: Mapping[str, Job], workloads: Sequence[Workload], rounds: int) -> list[Latency]:
    with shelf() as folder:
        turns = take_turns(engines, _tell(workloads, folder), rounds=rounds, seconds=_TURN, warmup=0)
    return [
        # The fastest run of a turn: what else the machine does only ever makes a run slower.
        Latency(work=work.name, rounds={name: [min(turn["run"]) * 1e3 for turn in times[name]] for name in engines})
        for work, times in zip(workloads, turns.times, strict=True)
    ]


def _tell(workloads: Sequence[Workload], folder: Path) -> list[dict[str, Any]]:
    specs = []
    for index, work in enumerate(workloads):
        file = folder / f"{index}.npz"
        save_arrays(file, work.inputs)
        specs.append({"role": work.role, "file": str(file)})
    return specs
