"""Eager PyTorch as one engine of `tfm.quantize.timing`, in a process of its own."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from tfm.model import load_checkpoint
from tfm.quantize.timing_worker import serve

from .generic_open import is_generic, open_generic
from .generic_vectors import from_vectors
from .graphs import Graph, graphs_of


def open_eager(
    checkpoint: str | None, model: str | None, options: dict[str, Any], role: str, inputs: dict[str, Any]
) -> Callable[[], object]:
    """Make what runs a checkpoint's graph on one thread."""
    torch.set_num_threads(1)
    graph: Graph
    if checkpoint is None or is_generic(checkpoint, model):
        graph = open_generic(checkpoint, model)
    else:
        native = load_checkpoint(checkpoint, **options).float()
        graphs = [from_vectors(native)] if native.config.reads_vectors else graphs_of(native)
        (graph,) = [graph for graph in graphs if graph.role == role]
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def work() -> object:
        with torch.inference_mode():
            return graph(*tensors)

    return work


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    source = (job["checkpoint"], job["model"], job["options"])
    serve(job, lambda role, inputs: open_eager(*source, role, inputs))
