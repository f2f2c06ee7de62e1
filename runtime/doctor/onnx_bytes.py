"""Tiny ONNX models as bytes, without the package onnx: onnx.proto in protobuf's wire format (protobuf.dev)."""

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..inputs.checks import Array

_DTYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
}  # TensorProto.DataType
_IR_VERSION = 9
_FLOAT, _INT = 1, 2  # AttributeProto.AttributeType


def node(
    op_type: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    domain: str = "",
    attributes: Mapping[str, int | float] = MappingProxyType({}),
) -> bytes:
    """Encode a NodeProto."""
    # NodeProto: input 1, output 2, op_type 4, attribute 5, domain 7.
    encoded = b"".join([*(_text(1, name) for name in inputs), *(_text(2, name) for name in outputs), _text(4, op_type)])
    for name, value in attributes.items():
        # AttributeProto: name 1, f 2, i 3, type 20.
        if isinstance(value, float):
            field = b"\x15" + struct.pack("<f", value) + _number(20, _FLOAT)  # f = 2, of 32 bits
        else:
            field = _number(3, value) + _number(20, _INT)
        encoded += _bytes(5, _text(1, name) + field)
    return encoded + (_text(7, domain) if domain else b"")


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    opset: int,
) -> bytes:
    """Encode a ModelProto.

    Args:
        nodes: From `node`, in the order that they run.
        inputs: By name, arrays of the dtypes and shapes that the graph is to take.
        outputs: The same of what it gives.
        constants: By name, its weights.
        opset: Version of ONNX's own operators; com.microsoft's are of version 1.
    """
    # GraphProto: node 1, name 2, initializer 5, input 11, output 12.
    graph = b"".join(_bytes(1, one) for one in nodes) + _text(2, "canary")
    graph += b"".join(_bytes(5, _tensor(name, array)) for name, array in constants.items())
    graph += b"".join(_bytes(11, _value(name, array)) for name, array in inputs.items())
    graph += b"".join(_bytes(12, _value(name, array)) for name, array in outputs.items())
    # ModelProto: ir_version 1, graph 7, opset_import 8.
    opsets = _bytes(8, _text(1, "") + _number(2, opset)) + _bytes(8, _text(1, "com.microsoft") + _number(2, 1))
    return _number(1, _IR_VERSION) + _bytes(7, graph) + opsets


def _tensor(name: str, array: Array) -> bytes:
    # TensorProto: dims 1, data_type 2, name 8, raw_data 9.
    dims = b"".join(_number(1, size) for size in array.shape)
    little = array.astype(array.dtype.newbyteorder("<"))  # raw_data is, whatever this machine is
    return dims + _number(2, _DTYPES[array.dtype.name]) + _text(8, name) + _bytes(9, little.tobytes())


def _value(name: str, array: Array) -> bytes:
    # ValueInfoProto: name 1, type 2. In it tensor_type 1: elem_type 1, shape 2: dim 1: dim_value 1.
    shape = b"".join(_bytes(1, _number(1, size)) for size in array.shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _DTYPES[array.dtype.name]) + _bytes(2, shape)))


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    # A negative number is written as the unsigned one of the same 64 bits.
    return _varint(field << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
