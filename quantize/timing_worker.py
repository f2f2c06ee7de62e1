"""One engine of `timing`, in a process of its own: waits for "work seconds" on stdin, answers with the fastest run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfm.runtime.providers import open_session


def serve(job: dict[str, Any], open_work: Callable[[str, dict[str, Any]], Callable[[], object]]) -> None:
    """Serve rounds until stdin ends.

    Args:
        job: What `timing` sent: "inputs", the folder with each work's arrays, and "roles", each work's graph.
        open_work: Makes of a role and its inputs by name what is timed.
    """
    works = []
    for index, role in enumerate(job["roles"]):
        with np.load(Path(job["inputs"]) / f"{index}.npz") as archive:
            works.append(open_work(role, dict(archive)))
    for line in sys.stdin:
        number, seconds = line.split()
        work, fastest, end = works[int(number)], float("inf"), time.perf_counter() + float(seconds)
        work()  # wakes caches and clock frequency after the other engines' turns
        while True:
            start = time.perf_counter()
            work()
            now = time.perf_counter()
            fastest = min(fastest, now - start)
            if now >= end:
                break
        print(fastest, flush=True)


def open_onnx(file: str, inputs: dict[str, Any]) -> Callable[[], object]:
    """Make what runs an ONNX file on one thread, by the kernels that an app would run it by."""
    session = open_session(Path(file), "cpu", 1)
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    serve(job, lambda role, inputs: open_onnx(job["files"][role], inputs))
