"""Eager PyTorch as an engine of `tfm.latency`: beside the precisions of a bundle at export, and for `tfm latency`."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfm.latency import ROUNDS, Job, Latency, Workload, onnx_job, time_engines, try_engines
from tfm.quantize import steps_of

from .graphs import Graph

COMPILED = "torch.compile"


def measure_latency(
    graphs: Sequence[Graph],
    files: dict[str, dict[str, Path]],
    checkpoint: str | os.PathLike[str] | None,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    rounds: int = ROUNDS,
) -> list[Latency]:
    """Time every graph at one row, on the numbers of tokens that `steps_of` tells.

    Args:
        graphs: The eager modules; they are not timed here, but loaded anew in a process of their own.
        files: Precision → role → ONNX file.
        checkpoint: The checkpoint that eager is loaded from; None: the factory alone makes it.
        model: The factory that eager is made by, where one does.
        config: The checkpoint's configuration, where it is told apart.
        nhead: The number of heads, where it is told apart.
        rounds: How often each engine has its turn; 0: nothing is timed, and each is only started and tried.

    Raises:
        VerificationError: An engine broke down.
    """
    generator = torch.Generator().manual_seed(2)
    workloads = []
    for graph in graphs:
        names = [value.name for value in graph.inputs]
        for step in steps_of(graph.role, names, graph.max_length):
            tensors = graph.sample(generator, 1, step.length, step.past)
            inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            # As prompts are read.
            if "num_logits_to_keep" in inputs:
                inputs["num_logits_to_keep"] = np.array(1)
            workloads.append(Workload(name=step.name, role=graph.role, inputs=inputs))
    # Loaded anew in its own process: two engines' thread pools in one slow each other down.
    eager = Job(worker="tfm.export.latency_worker", options=_source(checkpoint, model, config, nhead))
    engines = {"eager": eager} | {name: onnx_job(roles) for name, roles in files.items()}
    # Each engine is started and run once, so that one which cannot work fails now, not after the
    # search.
    if not rounds:
        try_engines(engines, workloads)
        return []
    return time_engines(engines, workloads, rounds=rounds)


def eager_engines(
    checkpoint: str | os.PathLike[str] | None,
    *,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    compiled: bool = True,
) -> tuple[dict[str, Job], dict[str, str]]:
    """Make the engines that PyTorch has for a checkpoint, to be timed beside its bundle by `tfm.latency`.

    Args:
        checkpoint: As in `export_checkpoint`; so are `model`, `config` and `nhead`.
        model: See `checkpoint`.
        config: See `checkpoint`.
        nhead: See `checkpoint`.
        compiled: Whether torch.compile is one of them.

    Returns:
        "eager" and "torch.compile"; and engines that cannot run here → why.
    """
    source = _source(checkpoint, model, config, nhead)
    worker = "tfm.export.eager_engine"
    engines = {"eager": Job(worker=worker, options={**source, "compiled": False}, imports="torch")}
    if not compiled:
        return engines, {}
    if (reason := _why_not_compiled()) is not None:
        return engines, {COMPILED: reason}
    options = {**source, "compiled": True}
    # starts=False: its start would be the time that a C++ compiler takes.
    return engines | {COMPILED: Job(worker=worker, options=options, imports="torch", starts=False)}, {}


def _source(
    checkpoint: str | os.PathLike[str] | None,
    model: str | None,
    config: str | os.PathLike[str] | None,
    nhead: int | None,
) -> dict[str, Any]:
    return {
        "checkpoint": None if checkpoint is None else os.path.abspath(checkpoint),
        "model": model,
        "options": {"config": None if config is None else os.path.abspath(config), "nhead": nhead},
    }


def _why_not_compiled() -> str | None:
    # CXX is what torch itself obeys; the others are what compilers are called.
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if name]
    if any(shutil.which(name) for name in names):
        return None
    return f"torch.compile needs a C++ compiler, and none of {', '.join(names)} is there"
