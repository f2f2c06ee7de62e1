"""An activation's graph as an engine of `tfm.latency`: onnxruntime on one thread, into memory that is there already.

That is how it runs amid a model: results of a few hundred kilobytes that are allocated anew cost more than relu itself.
It imports no torch, whose threads would be in the process that is timed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tfm.latency import worker
from tfm.runtime import open_session


def open_workloads(job: Mapping[str, Any]) -> Sequence[worker.Run]:
    """Open the graph, and draw standard normal inputs of so many rows for each work."""
    session = open_session(Path(job["file"]), "cpu", 1)
    return [_run_of(session, work["rows"], job["entering"], job["width"]) for work in job["works"]]


def _run_of(session: Any, rows: int, entering: int, width: int) -> worker.Run:
    x = np.random.default_rng(0).standard_normal((rows, entering)).astype(np.float32)
    binding = session.io_binding()
    # Both ends are bound once, so that a run allocates and copies nothing.
    binding.bind_cpu_input(session.get_inputs()[0].name, x)
    result = ort.OrtValue.ortvalue_from_numpy(np.empty((rows, width), np.float32))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, result)
    return worker.timed(lambda: session.run_with_iobinding(binding))


def main(imported: float | None = None) -> None:
    """Serve as an engine of `rounds`."""
    worker.main(open_workloads, imported)
