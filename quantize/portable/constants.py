"""Constants as a graph's nodes make them: what is stored in one layout is stored in another."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

Array = npt.NDArray[Any]


def value_of(value: ir.Value) -> Array:
    """Compute a constant, which nodes may make of initializers.

    Raises:
        QuantizeError: It is no constant.
    """
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    inputs = [] if node is None else [value_of(one) for one in node.inputs if one is not None]
    if node is not None and node.op_type == "Cast":
        return inputs[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if node is not None and node.op_type == "Mul":
        return np.asarray(inputs[0] * inputs[1])
    if node is not None and node.op_type == "Reshape":
        return inputs[0].reshape(inputs[1])
    raise QuantizeError(f"{value.name!r} is no constant that can be stored in another layout")


def root_of(value: ir.Value) -> ir.Value:
    """Give the initializer that a constant is made of."""
    while value.const_value is None:
        node = value.producer()
        if node is None or node.inputs[0] is None:
            raise QuantizeError(f"{value.name!r} is no constant")
        value = node.inputs[0]
    return value
