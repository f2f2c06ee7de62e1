"""Eager PyTorch as an engine of `tfm.latency.graphs`: every graph by itself, on one thread."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tfm.latency import read_arrays, worker

from .eager_engine import open_source
from .generic.graph import GenericGraph
from .graphs import Graph, graphs_of


def open_workloads(job: Mapping[str, Any]) -> Sequence[worker.Run]:
    """Load the checkpoint, and read each work's inputs."""
    # One thread, as the ONNX engines beside it have.
    torch.set_num_threads(1)
    source = open_source(job)
    graphs = {graph.role: graph for graph in (source.graphs if isinstance(source, GenericGraph) else graphs_of(source))}
    return [_run_of(graphs[work["role"]], read_arrays(work["file"])) for work in job["works"]]


def _run_of(graph: Graph, inputs: Mapping[str, Any]) -> worker.Run:
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def call() -> object:
        with torch.inference_mode():
            return graph(*tensors)

    return worker.timed(call)


def main(imported: float | None = None) -> None:
    """Serve as an engine of `tfm.latency`."""
    worker.main(open_workloads, imported)
