"""One engine of `latency`, in a process of its own: waits for "work seconds" on stdin, answers with the fastest run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(job: dict[str, Any]) -> None:
    """Serve rounds until stdin ends."""
    works = [_work(job, index, role) for index, role in enumerate(job["roles"])]
    for line in sys.stdin:
        index, seconds = line.split()
        work, fastest, end = works[int(index)], float("inf"), time.perf_counter() + float(seconds)
        work()  # wakes caches and clock frequency after the other engines' turns
        while True:
            start = time.perf_counter()
            work()
            now = time.perf_counter()
            fastest = min(fastest, now - start)
            if now >= end:
                break
        print(fastest, flush=True)


def _work(job: dict[str, Any], index: int, role: str) -> Callable[[], object]:
    with np.load(Path(job["inputs"]) / f"{index}.npz") as archive:
        inputs = dict(archive)
    return (
        _eager(job["checkpoint"], job["model"], job["options"], role, inputs)
        if "checkpoint" in job
        else _onnx(job["files"][role], inputs)
    )


def _eager(
    checkpoint: str | None, model: str | None, options: dict[str, Any], role: str, inputs: dict[str, Any]
) -> Callable[[], object]:
    import torch

    from tfm.model import load_checkpoint

    from .generic_open import is_generic, open_generic
    from .generic_vectors import from_vectors
    from .graphs import Graph, graphs_of

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


def _onnx(file: str, inputs: dict[str, Any]) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
