"""How long an activation's graph takes beside relu's: each in a process of its own, pinned, in interleaved rounds."""

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tfm.errors import InputError
from tfm.latency import LEAST_ROUNDS, Job, Ratio, noise_of, ratio_of, shelf, take_turns, writing

from .kernels import export_activation, width_of_input

BASELINE = "relu"
ROUNDS = 15
WIDTH = 1536
"""Size F of the hidden layer that is timed: MiniLM's."""
SHAPES = ((1, WIDTH), (128, WIDTH))  # a single row first: by it a call is timed
"""Rows × F that are timed: a token, as a decoder's step has it, and a text."""
_TURN = 0.03
_CALL = "a call"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of an activation's whole graph, on one shape, float32, one thread.

    Attributes:
        rows: Of its result.
        width: Of its result.
        seconds: Median over the rounds of a round's median.
        ratio: relu's time over its own, round by round; None: it is relu.
        noise: How far the quartiles of relu's rounds lie apart, as a share of their median.
    """

    rows: int
    width: int
    seconds: float
    ratio: Ratio | None
    noise: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values: the time in microseconds, and relative to relu's with its 95 % interval."""
        ratio = self.ratio
        return {
            "rows": self.rows,
            "width": self.width,
            "microseconds": self.seconds * 1e6,
            "relative": None if ratio is None else 1 / ratio.value,
            "low": None if ratio is None else 1 / ratio.high,
            "high": None if ratio is None else 1 / ratio.low,
            "verdict": None if ratio is None else ratio.verdict,
            "said": None if ratio is None else str(ratio),
            "noise": self.noise,
        }


def check_rounds(rounds: int) -> None:
    """Refuse fewer rounds than an interval can be told from.

    Raises:
        InputError: There are too few.
    """
    if rounds < LEAST_ROUNDS:
        raise InputError(f"rounds must be at least {LEAST_ROUNDS}, as fewer show nothing, but is {rounds}")


def time_activations(
    models: Mapping[str, ir.Model], rounds: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, tuple[Speed, ...]], float]:
    """Time the graphs of activations, relu's among them.

    Args:
        models: Graphs of `export_activation`, of width `WIDTH`, by name.
        rounds: How often each has its turn at each shape.
        progress: Told how many turns are done, of how many.

    Returns:
        By name, a figure for each of `SHAPES`; and how many seconds relu of a single number takes, which is what a call
        of onnxruntime costs, and part of every figure.

    Raises:
        VerificationError: A graph cannot be run.
    """
    with shelf() as folder:
        jobs = {name: _job(name, model, WIDTH, folder) for name, model in models.items()}
        # relu of one number does next to nothing: what it takes is the call.
        jobs[_CALL] = _job(BASELINE, export_activation(BASELINE, 1), 1, folder)
        workloads = [{"rows": rows} for rows, _ in SHAPES]
        turns = take_turns(jobs, workloads, rounds=rounds, seconds=_TURN, cores=_core(), progress=progress)
    found: dict[str, tuple[Speed, ...]] = {}
    for name in models:
        speeds = []
        for (rows, width), times in zip(SHAPES, turns.times, strict=True):
            own, base = ([statistics.median(turn["run"]) for turn in times[one]] for one in (name, BASELINE))
            # Medians of the same rounds, so that a machine that grows slower does not tell.
            ratio = None if name == BASELINE else ratio_of(base, own)
            speeds.append(
                Speed(rows=rows, width=width, seconds=statistics.median(own), ratio=ratio, noise=noise_of(base))
            )
        found[name] = tuple(speeds)
    return found, statistics.median(statistics.median(turn["run"]) for turn in turns.times[0][_CALL])


def _job(name: str, model: ir.Model, width: int, folder: Path) -> Job:
    with writing(folder):
        ir.save(model, file := folder / f"{name}-{width}.onnx")
    options = {"file": str(file), "entering": width_of_input(name, width), "width": width}
    return Job(worker="tfm.study.activations.worker", options=options)


def _core() -> list[int] | None:
    # All on the same core, one after the other.
    return sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else None
