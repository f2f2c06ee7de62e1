"""A first look at latency: eager and the precisions of a bundle side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tfm.quantize.timing import Job, Latency, Work, onnx_job, time_engines
from tfm.quantize.works import steps_of

from .graphs import Graph


def measure_latency(
    graphs: Sequence[Graph],
    files: dict[str, dict[str, Path]],
    checkpoint: str | os.PathLike[str] | None,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
) -> list[Latency]:
    """Time every graph at one row, on the numbers of tokens that `steps_of` tells.

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
    works = []
    for graph in graphs:
        names = [value.name for value in graph.inputs]
        for step in steps_of(graph.role, names, graph.max_length):
            tensors = graph.sample(generator, 1, step.length, step.past)
            inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            if "logits_position" in inputs:  # as prompts are read
                inputs["logits_position"] = np.array([[step.length - 1]])
            works.append(Work(name=step.name, role=graph.role, inputs=inputs))
    options = {
        "checkpoint": None if checkpoint is None else os.path.abspath(checkpoint),
        "model": model,
        "options": {"config": None if config is None else os.path.abspath(config), "nhead": nhead},
    }
    eager = Job(worker="tfm.export.latency_worker", options=options)
    return time_engines({"eager": eager} | {name: onnx_job(roles) for name, roles in files.items()}, works)
