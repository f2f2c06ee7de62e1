"""A float32 graph that also gives values from within."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from tfm.runtime import count_threads


def open_tapped(path: Path, names: Iterable[str], threads: int | None = None) -> Any:
    """Open a graph with some of its values as outputs, beside its own.

    Args:
        path: The ONNX file.
        names: Values that its nodes compute.
        threads: Number of threads; None: as many as there are cores.

    Returns:
        The `onnxruntime.InferenceSession`.
    """
    return open_hooked(ir.load(path), names, path.parent, threads)


def open_hooked(model: ir.Model, names: Iterable[str], folder: Path, threads: int | None = None) -> Any:
    """Open a graph that is in memory, as `open_tapped` does.

    Args:
        model: The graph; it is given the outputs.
        names: Values that its nodes compute.
        folder: Where its weights are that lie outside the file.
        threads: Number of threads; None: as many as there are cores.

    Returns:
        The `onnxruntime.InferenceSession`.
    """
    wanted = set(names) - {value.name for value in model.graph.outputs}
    produced = (value for node in model.graph for value in node.outputs)
    model.graph.outputs.extend(value for value in produced if value.name in wanted)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = count_threads(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # for nothing, while samples are counted
    # A graph that is given as bytes lies in no folder to look for its weights in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
