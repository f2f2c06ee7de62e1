"""ONNX files on disk, the weights of large ones in a file beside them."""

from pathlib import Path

import onnx_ir as ir

LIMIT = 1_900_000_000
"""Bytes of weights from which on they get a file of their own: a protobuf message ends at 2 GiB."""


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a model to `path`, and weights of more than `LIMIT` bytes to `path` + ".data"."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > LIMIT else None)


def size_of(path: Path) -> int:
    """Size in bytes of an ONNX file and its weights."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
