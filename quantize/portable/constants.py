"""Constants as a graph's nodes make them: what is stored in one layout is stored in another."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

Array = npt.NDArray[Any]

_COMPUTE: dict[str, Callable[..., Array]] = {
    "Cast": lambda node, x: x.astype(ir.DataType(node.attributes["to"].as_int()).numpy()),
    "Mul": lambda _, x, y: x * y,
    "Reshape": lambda _, x, shape: x.reshape(shape),
}


def value_of(value: ir.Value) -> Array:
    """Compute a constant, which nodes may make of initializers.

    Raises:
        QuantizeError: It is no constant.
    """
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    inputs = [] if node is None else [value_of(one) for one in node.inputs if one is not None]
    if node is not None and node.op_type in _COMPUTE:
        return _COMPUTE[node.op_type](node, *inputs)
    raise QuantizeError(f"{value.name!r} is no constant that can be stored in another layout")


def root_of(value: ir.Value) -> ir.Value:
    """Give the initializer that a constant is made of."""
    while value.const_value is None:
        node = value.producer()
        if node is None or node.inputs[0] is None:
            raise QuantizeError(f"{value.name!r} is no constant")
        value = node.inputs[0]
    return value
