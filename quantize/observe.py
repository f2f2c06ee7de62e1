"""What goes into every product of a graph, on calibration data."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from tfm.errors import QuantizeError

ROWS = 256
"""How many rows of each product's input are kept."""


@dataclasses.dataclass
class Observed:
    """The input of one product.

    Attributes:
        largest_K: Largest magnitude of each channel, float32.
        rows_RK: Some rows, float32: of different samples, none of padding.
    """

    largest_K: npt.NDArray[np.float32]
    rows_RK: npt.NDArray[np.float32]


def products(model: ir.Model) -> list[ir.Node]:
    """The MatMuls of a graph by a constant matrix."""
    found = []
    for node in model.graph:
        weight = node.inputs[1].const_value if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if weight is not None and len(weight.shape) == 2 and weight.dtype == ir.DataType.FLOAT:
            found.append(node)
    return found


def observe(path: Path, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, Observed]:
    """Run a float32 graph and look at the input of every product.

    Args:
        path: The ONNX file.
        batches: Inputs by name; rows where "attention_mask" is 0 are left out.

    Returns:
        Name of the value that goes into a product → what was seen of it.

    Raises:
        QuantizeError: There is no batch, or a value is NaN or infinite on it.
    """
    model = ir.load(path)
    known = {value.name for value in model.graph.outputs}
    seen = list(dict.fromkeys(node.inputs[0] for node in products(model) if node.inputs[0] is not None))
    model.graph.outputs.extend(value for value in seen if value.name not in known and not value.is_graph_input())
    names = [str(value.name) for value in seen if not value.is_graph_input()]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: dict[str, Observed] = {}
    for feeds in batches:
        for name, array in zip(names, session.run(names, dict(feeds)), strict=True):
            _add(found, name, _rows(array, feeds.get("attention_mask")))
    if not found:
        raise QuantizeError("there is no calibration data")
    return found


def _rows(array: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
    if mask is not None and array.ndim == 3 and array.shape[:2] == mask.shape:
        return array[mask != 0].astype(np.float32)
    return array.reshape(-1, array.shape[-1]).astype(np.float32)


def _add(found: dict[str, Observed], name: str, rows_RK: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(rows_RK).all():
        raise QuantizeError(f"{name!r}, which goes into a product, is NaN or infinite on the calibration data")
    largest_K = np.abs(rows_RK).max(axis=0)
    few = rows_RK[:: max(1, len(rows_RK) // 32)][:32]
    if name not in found:
        found[name] = Observed(largest_K, few)
        return
    seen = found[name]
    seen.largest_K = np.maximum(seen.largest_K, largest_K)
    if len(seen.rows_RK) < ROWS:
        seen.rows_RK = np.concatenate([seen.rows_RK, few])[:ROWS]
