"""ONNX files on disk, the weights of large ones in a file beside them."""

import contextlib
import gc
import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from tfm.bundle import scratch_folder, weights_file
from tfm.errors import QuantizeError

LIMIT = 16 << 20
"""Bytes of weights from which on they get a file of their own, which onnxruntime maps instead of reading and copying:
with 23 MB, the first session of a process opened in 15 ms instead of 37. Above 2 GiB they must: a protobuf message ends
there."""

_ONE_FILE = (1 << 31) - (1 << 24)
"""Bytes of weights in one ONNX file at most, beside which there are nodes and names."""

_SMALL = 128 << 20
"""Bytes of a file that is read as it is."""


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a model to `path`, and weights of more than `LIMIT` bytes to `path` + "_data"."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size <= LIMIT:  # else a file made of another's graph would refer to the weights beside that one
        ir.external_data.load_to_model(model)
    ir.save(model, path, external_data=weights_file(path.name) if size > LIMIT else None)


def save_in_one_file(path: Path, output: Path) -> None:
    """Write an ONNX file anew with its weights in it, for readers that open one file.

    Args:
        path: The file, its weights in it or beside it.
        output: Where to.

    Raises:
        QuantizeError: It is too large for one file: a protobuf message ends at 2 GiB.
    """
    model = ir.load(path)
    size = sum(
        tensor.nbytes for value in model.graph.initializers.values() if (tensor := value.const_value) is not None
    )
    if size > _ONE_FILE:
        raise QuantizeError(
            f"{path} has {size:,} bytes of weights, more than one ONNX file holds; pack a smaller precision"
        )
    ir.external_data.load_to_model(model)
    ir.save(model, output)


def size_of(path: Path) -> int:
    """Size in bytes of an ONNX file and its weights, by either of the names that they have had."""
    beside = [path.with_name(name) for name in (weights_file(path.name), f"{path.name}.data")]
    return sum(file.stat().st_size for file in [path, *beside] if file.is_file())


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[Path]:
    """A file with the same graph whose weights onnxruntime and onnx-ir map into memory instead of reading them.

    A small file is that already, and so is one with its weights beside it. Of any other, not written by `save_onnx`, a
    copy is made for the time being: opened by onnxruntime, it takes half the memory.
    """
    if path.stat().st_size <= _SMALL:
        yield path
        return
    with scratch_folder() as folder:
        proto = onnx.ModelProto()
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            proto.ParseFromString(memoryview(content))
        copy = Path(folder) / path.name
        ir.save(ir.from_proto(proto), copy, external_data=weights_file(path.name))
        del proto
        gc.collect()  # a model in memory refers to itself
        yield copy
