"""What calibration data shows of the inputs of products: which of them matter, and which go together."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from tfm.bundle import scratch_folder
from tfm.errors import QuantizeError

Hessian = Mapping[str, npt.NDArray[np.float64]]
"""Name of a value [..., K] → mean of its rows' outer products, [K, K]."""


def second_moments(path: Path, names: Iterable[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Hessian:
    """Run a float32 model on calibration data and gather the second moments of some of its values.

    Args:
        path: The ONNX file; a copy of it is written to a temporary folder for the time being.
        names: Values [..., K] of its graph, such as the inputs of its products.
        feeds: Inputs of the model, one run each; read one at a time.

    Returns:
        The moments of each value over all rows of all runs, float64.

    Raises:
        QuantizeError: The graph has no such value, there are no feeds, or a value is not finite on them.
    """
    model = ir.load(path)
    wanted = list(dict.fromkeys(names))
    if not wanted:  # of no names onnxruntime would give every output
        return {}
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    if missing := [name for name in wanted if name not in values]:
        raise QuantizeError(f"the graph {model.graph.name!r} computes no value {missing[0]!r}")
    model.graph.outputs.extend(values[name] for name in wanted if not values[name].is_graph_output())
    sums: dict[str, npt.NDArray[np.float64]] = {}
    rows = dict.fromkeys(wanted, 0)
    with scratch_folder() as folder:
        ir.save(model, Path(folder) / "model.onnx", external_data="model.onnx.data")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # for nothing, while numpy adds up
        session = ort.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])
        # Products of one batch in float32, which is fast; their sum over all batches in float64.
        for feed in feeds:
            for name, array in zip(wanted, session.run(wanted, dict(feed)), strict=True):
                x_MK = array.reshape(-1, array.shape[-1])
                product = (x_MK.T @ x_MK).astype(np.float64)
                # Looked for in the K · K products, not in all rows: NaN or infinity in a row is in
                # them too.
                if not np.isfinite(product).all():
                    raise QuantizeError(f"the value {name!r} is not finite on the calibration data")
                sums[name] = sums.get(name, 0) + product
                rows[name] += len(x_MK)
    if not sums:
        raise QuantizeError("there is no calibration data: give one feed or more")
    return {name: total / max(rows[name], 1) for name, total in sums.items()}
