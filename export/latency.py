"""A first look at latency: eager, fp32 and int8 side by side, each in a process of its own, in interleaved rounds."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfm.errors import VerificationError

from .graphs import Graph

_ROUNDS = 9
_ROUND_SECONDS = 0.04
"""What one engine runs before the next has its turn, at least one run."""


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


def measure_latency(
    graphs: Sequence[Graph],
    files: dict[str, dict[str, Path]],
    checkpoint: str | os.PathLike[str] | None,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
) -> list[Latency]:
    """Time every graph at one row: encoders on 16 and 128 tokens, decoders on one token after 16 and 128.

    Args:
        graphs: The eager modules; they are not timed here, but loaded anew in a process of their own.
        files: Precision → role → ONNX file.
        checkpoint: The checkpoint that eager is loaded from; None: the factory alone makes it.
        model: The factory that eager is made by, where one does.
        config: The checkpoint's configuration, where it is told apart.
        nhead: The number of heads, where it is told apart.

    Raises:
        VerificationError: An engine broke down.
    """
    generator = torch.Generator().manual_seed(2)
    works: list[tuple[str, str, list[torch.Tensor]]] = []
    for graph in graphs:
        longest = min(graph.max_length.values(), default=129)
        for length in dict.fromkeys(min(length, longest - 1) for length in (16, 128)):
            cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
            inputs = graph.sample(generator, 1, *((1, length) if cached else (length, 0)))
            works.append(
                (f"{graph.role} step after {length}" if cached else f"{graph.role} 1×{length}", graph.role, inputs)
            )
    with tempfile.TemporaryDirectory() as folder:
        for index, (_, role, inputs) in enumerate(works):
            names = [value.name for graph in graphs if graph.role == role for value in graph.inputs]
            arrays: Any = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
            np.savez(Path(folder) / f"{index}.npz", **arrays)
        place = None if checkpoint is None else os.path.abspath(checkpoint)
        options = {"config": None if config is None else os.path.abspath(config), "nhead": nhead}
        jobs: dict[str, dict[str, Any]] = {"eager": {"checkpoint": place, "model": model, "options": options}}
        jobs |= {
            precision: {"files": {role: str(file) for role, file in roles.items()}}
            for precision, roles in files.items()
        }
        roles = [role for _, role, _ in works]
        engines = {name: _Engine({"inputs": folder, "roles": roles, **job}) for name, job in jobs.items()}
        try:
            return [_measure(work, index, engines) for index, (work, _, _) in enumerate(works)]
        finally:
            for engine in engines.values():
                engine.close()


def _measure(work: str, index: int, engines: dict[str, "_Engine"]) -> Latency:
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS):
        for name, engine in engines.items():
            times[name].append(engine.time(index))
    return Latency(work=work, milliseconds={name: statistics.median(found) * 1e3 for name, found in times.items()})


class _Engine:
    """A process that runs `tfm.export.latency_worker`."""

    def __init__(self, job: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "tfm.export.latency_worker", json.dumps(job)]
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
