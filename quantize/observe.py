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
"""Of each product's input, whole batches are kept until they have so many rows."""


@dataclasses.dataclass
class Observed:
    """The input of one product.

    Attributes:
        largest_K: Largest magnitude of each channel, float32; padding counts, since it shares the scale of the rest.
        batches: Whole inputs, float32 (R, K), and which of their rows are not padding, (R,).
    """

    largest_K: npt.NDArray[np.float32]
    batches: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]


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
        batches: Inputs by name; what an "attention_mask" of 0 marks is padding.

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
            if not np.isfinite(array).all():
                raise QuantizeError(f"{name!r}, which goes into a product, is NaN or infinite on the calibration data")
            _add(found, name, array.astype(np.float32, copy=False), feeds.get("attention_mask"))
    if not found:
        raise QuantizeError("there is no calibration data")
    return found


def _add(found: dict[str, Observed], name: str, array: npt.NDArray[np.float32], mask: npt.NDArray[Any] | None) -> None:
    rows_RK = array.reshape(-1, array.shape[-1])
    padded = mask is not None and array.ndim == 3 and array.shape[:2] == mask.shape
    real_R = mask.reshape(-1) != 0 if padded and mask is not None else np.ones(len(rows_RK), np.bool_)
    seen = found.setdefault(name, Observed(np.zeros(array.shape[-1], np.float32), []))
    seen.largest_K = np.maximum(seen.largest_K, np.abs(rows_RK).max(axis=0))
    if sum(len(rows) for rows, _ in seen.batches) < ROWS:
        seen.batches.append((rows_RK, real_R))
