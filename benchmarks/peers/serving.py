"""The worker's side of `side_by_side.py`; imports nothing but the standard library."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[str], dict[str, Any]]) -> None:
    """Say "ready", then answer each line on stdin, without its end, by a line of JSON, until stdin ends."""
    with os.fdopen(int(os.environ["ANSWERS"]), "w") as answers:
        print("{}", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(line.rstrip("\n"))), file=answers, flush=True)


def fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of as many runs as fit into `seconds`, at least one, after one that is not counted."""
    run()  # wakes caches and clock frequency after the other engines' turns
    found, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        found = min(found, now - start)
        if now >= end:
            return found
