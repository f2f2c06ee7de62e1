"""What checking a call's inputs costs: the median over 10,000 calls, in microseconds, on one core.

To be run alone on its core: `taskset -c 0 python benchmarks/runtime_checks.py`.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfm.bundle.manifest import Signature, TensorSpec
from tfm.runtime.inputs.checks import InputChecks

CALLS = 10_000
CAPACITY = 256
ROWS = ("batch", "sequence")
ENCODER = Signature(
    inputs=tuple(
        TensorSpec(name=name, dtype="int64", shape=ROWS, below=below)
        for name, below in (("input_ids", 30522), ("attention_mask", 2), ("token_type_ids", 2))
    ),
    outputs=(),
    max_length={"sequence": 512},
)
DECODER = Signature(
    inputs=(
        TensorSpec(name="input_ids", dtype="int64", shape=ROWS, below=49152),
        TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "total_sequence"), below=2),
        TensorSpec(name="position_ids", dtype="int64", shape=ROWS, below=8192),
        *(
            TensorSpec(name=f"past_key_values.{i}.{part}", dtype="float32", shape=("batch", 3, "past_sequence", 64))
            for i in range(30)
            for part in ("key", "value")
        ),
        TensorSpec(name="num_logits_to_keep", dtype="int64", shape=(), default=0),
    ),
    outputs=(),
    max_length={"sequence": 8192},
)


def median_us(signature: Signature, feeds: Mapping[str, Any]) -> float:
    """Time the checks of one call.

    Args:
        signature: Of the graph.
        feeds: Good inputs of it.

    Returns:
        The median, in microseconds.
    """
    check, times = InputChecks(signature), []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        check(feeds)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def main() -> None:
    """Print one line per kind of call."""
    for shape in ((1, 16), (8, 128)):
        feeds = {spec.name: np.ones(shape, np.int64) for spec in ENCODER.inputs}
        print(f"encoder, 3 inputs {shape[0]}×{shape[1]}: {median_us(ENCODER, feeds):.1f} µs")
    for batch in (1, 8):
        caches = {spec.name: np.zeros((batch, 3, CAPACITY, 64), np.float32) for spec in DECODER.inputs[3:-1]}
        feeds = {name: np.ones((batch, 1), np.int64) for name in ("input_ids", "attention_mask", "position_ids")}
        feeds |= {**caches, "num_logits_to_keep": np.array(1)}
        print(f"decoder, input_ids {batch}×1 and {len(caches)} caches: {median_us(DECODER, feeds):.1f} µs")


if __name__ == "__main__":
    main()
