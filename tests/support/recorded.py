"""What the recorder of eager's calls shows, kept."""

import copy
import dataclasses

from torch import Tensor

from tfm.export import Graph
from tfm.export.verify.hooks import RecordedCall, watch


def record(graph: Graph, inputs: list[Tensor]) -> tuple[list[Tensor], list[RecordedCall]]:
    """Run a small model eagerly; give its outputs, and every attention, softmax and activation, copied."""
    calls: list[RecordedCall] = []

    def keep(call: RecordedCall) -> None:
        if not call.op.is_layer:
            # deepcopy keeps strides, which decide how a tensor is summed; clone() would not.
            given, output = copy.deepcopy((call.inputs, call.output))
            calls.append(dataclasses.replace(call, inputs=given, output=output))

    return watch(graph, inputs, keep), calls
