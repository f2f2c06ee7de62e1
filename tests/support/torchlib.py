"""What torch's exporter does anew for each graph, although it is the same each time."""

import copy
import functools
from typing import Any

from torch.onnx._internal.exporter._registration import ONNXRegistry


def read_once() -> None:
    """Let `torch.onnx.export` read onnxscript's five hundred functions from their source once per process.

    It does so for every graph, for half a second each: more than half of what a graph of a few ops takes. Nothing that
    is exported depends on it, as every export gets a copy, which it adds the translations of its own to.
    """
    read = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments: Any, **options: Any) -> ONNXRegistry:
        registry = copy.copy(read(*arguments, **options))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)
