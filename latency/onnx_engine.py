"""ONNX files as an engine: onnxruntime by itself, on one thread, by the kernels that an app would run them by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfm.runtime import open_session

from . import worker


def open_workloads(job: Mapping[str, Any]) -> Sequence[worker.Run]:
    """Open the file of each work's role, and read each work's inputs."""
    sessions = {role: open_session(Path(file), "cpu", 1) for role, file in job["files"].items()}
    return [_run_of(sessions[work["role"]], read_arrays(work["file"])) for work in job["works"]]


def read_arrays(file: str) -> dict[str, Any]:
    """Read a work's inputs by name."""
    with np.load(file) as archive:
        return dict(archive)


def _run_of(session: Any, inputs: dict[str, Any]) -> worker.Run:
    return worker.timed(lambda: session.run(None, inputs))


def main(imported: float | None = None) -> None:
    """Serve as an engine of `rounds`."""
    worker.main(open_workloads, imported)
