"""What calibration data shows of the inputs of products: which of them matter, and which go together."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from tfm.bundle import scratch_folder, weights_file
from tfm.errors import QuantizeError

_TOGETHER = 512
"""Rows that are multiplied at a time: enough to be fast, few enough to be kept of every value of a graph."""

Hessian = Mapping[str, npt.NDArray[np.float64]]
"""Name of a value [..., K] → mean of its rows' outer products, [K, K]."""


def second_moments(path: Path, names: Iterable[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Hessian:
    """Run a float32 model on calibration data and gather the second moments of some of its values.

    Args:
        path: The ONNX file; a copy of it is written to a temporary folder for the time being.
        names: Values [..., K] of its graph, such as the inputs of its products.
        feeds: Inputs of the model, one run each; read one at a time.

    Returns:
        The moments of each value over all rows of all runs that are not padding, float64.

    Raises:
        QuantizeError: The graph has no such value, there are no feeds, or a value is not finite on them.
    """
    model = ir.load(path)
    wanted = list(dict.fromkeys(names))
    # Of no names onnxruntime would give every output.
    if not wanted:
        return {}
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    if missing := [name for name in wanted if name not in values]:
        raise QuantizeError(f"the graph {model.graph.name!r} computes no value {missing[0]!r}")
    model.graph.outputs.extend(values[name] for name in wanted if not values[name].is_graph_output())
    sums = {name: _Sum() for name in wanted}
    with scratch_folder() as folder:
        ir.save(model, Path(folder) / "model.onnx", external_data=weights_file("model.onnx"))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # For nothing, while numpy adds up.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])
        for feed in feeds:
            for name, array in zip(wanted, session.run(wanted, dict(feed)), strict=True):
                sums[name].add(_real_rows(array, feed.get("attention_mask")))
    if not any(total.rows for total in sums.values()):
        raise QuantizeError("there is no calibration data: give one feed or more")
    found = {name: total.mean() for name, total in sums.items()}
    for name, mean_KK in found.items():
        # The diagonal is a mean of squares: NaN or infinity anywhere in a row is in it too.
        if not np.isfinite(mean_KK.diagonal()).all():
            raise QuantizeError(f"the value {name!r} is not finite on the calibration data")
    return found


class _Sum:
    """Rows' outer products, added up: of many rows at a time in float32, which is fast, and these in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._total_KK: npt.NDArray[np.float64] | None = None

    def add(self, x_MK: npt.NDArray[np.float32]) -> None:
        self.rows += len(x_MK)
        self._waiting.append(x_MK)
        # A sum in float64 costs as much as the product of some hundred rows: few of them, then.
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._take()

    def mean(self) -> npt.NDArray[np.float64]:
        self._take()
        assert self._total_KK is not None
        return self._total_KK / max(self.rows, 1)

    def _take(self) -> None:
        if not self._waiting:
            return
        x_MK = np.concatenate(self._waiting)
        self._waiting = []
        if self._total_KK is None:
            self._total_KK = np.zeros((x_MK.shape[1],) * 2)
        # Looked for in the result.
        with np.errstate(over="ignore", invalid="ignore"):
            self._total_KK += x_MK.T @ x_MK


def _real_rows(array: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
    """(…, K) → (M, K), without padding, whose products nobody reads."""
    padded = mask is not None and array.ndim == 3 and array.shape[:2] == mask.shape
    rows = array[mask != 0] if padded and mask is not None else array.reshape(-1, array.shape[-1])
    return rows.astype(np.float32, copy=False)
