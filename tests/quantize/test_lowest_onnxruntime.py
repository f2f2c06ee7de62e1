"""The lowest onnxruntime of a graph, for what each part of it adds; make test-versions opens real graphs on each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tfm.bundle.requires import OLDEST, is_older
from tfm.quantize import lowest_onnxruntime as lowest
from tfm.quantize.lowest_onnxruntime import lowest_of_graphs, lowest_onnxruntime

FLOAT, DOUBLE, INT8, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.INT64
MICROSOFT = "com.microsoft"
HISTORY = json.loads(Path(lowest.__file__).with_name("onnxruntime_history.json").read_text(encoding="utf-8"))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    opset: int = 23,
    ir: int = 10,
    dtype: int = FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
    domain: str = "",
) -> onnx.ModelProto:
    names = {name for node in nodes for name in node.input}
    inputs = [helper.make_tensor_value_info(name, dtype, None) for name in sorted(names)]
    graph = helper.make_graph(nodes, "graph", inputs, [helper.make_tensor_value_info("y", dtype, None)])
    opsets = [helper.make_opsetid(name, version) for name, version in ((domain, opset), (MICROSOFT, 1), ("mine", 1))]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions)
    return made


def node(op: str, inputs: int = 1, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    names = [f"x{place}" for place in range(inputs)]
    return helper.make_node(op, names, ["y"], domain=domain, **attributes)


def scatter_within_if() -> onnx.NodeProto:
    branch = helper.make_graph(
        [node("TensorScatter", 3)], "branch", [], [helper.make_tensor_value_info("y", FLOAT, None)]
    )
    return helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)


def scatter_within_function() -> onnx.FunctionProto:
    body = [helper.make_node("TensorScatter", ["x0", "x1"], ["y"])]
    return helper.make_function("mine", "Write", ["x0", "x1"], ["y"], body, [helper.make_opsetid("", 24)])


def lowest_of(model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "model.onnx")
    return lowest_onnxruntime(folder / "model.onnx")


@pytest.mark.parametrize(
    ("model", "version"),
    [
        (model_of([node("Identity")]), "1.23.0"),
        (model_of([node("Attention", 3)]), "1.23.0"),
        (model_of([node("Attention", 3)], opset=24), "1.24.1"),
        (model_of([node("Identity")], opset=24, domain="ai.onnx"), "1.24.1"),
        (model_of([node("Identity")], opset=26), "1.25.0"),
        (model_of([node("Identity")], ir=11), "1.23.0"),
        (model_of([node("Identity")], ir=12), "1.24.1"),
        (model_of([node("Identity")], ir=14), "1.32.0"),
        (model_of([node("TensorScatter", 3)], opset=24), "1.25.0"),
        (model_of([node("TensorScatter", 3)], opset=25, domain="ai.onnx"), "1.25.0"),
        (model_of([scatter_within_if()], opset=24), "1.25.0"),
        (model_of([node("Write", 2, "mine")], functions=[scatter_within_function()]), "1.25.0"),
        (model_of([node("MatMulNBits", 3, MICROSOFT, K=32, N=8, bits=8, block_size=32)]), "1.23.0"),
        (model_of([node("GroupQueryAttention", 7, MICROSOFT)]), "1.23.0"),
        (model_of([node("GroupQueryAttention", 13, MICROSOFT)]), "1.25.0"),
        (model_of([node("GroupQueryAttention", 7, MICROSOFT, kv_cache_bit_width=8)]), "1.25.0"),
        (model_of([node("GroupQueryAttention", 7, MICROSOFT)], dtype=INT8), "1.27.0"),
        (model_of([node("GroupQueryAttention", 17, MICROSOFT)]), "1.32.0"),
        (model_of([node("LinearAttention", 3, MICROSOFT)]), "1.25.1"),
        (model_of([node("Identity")], opset=20, ir=9), "1.17.0"),
        (model_of([node("Identity")], opset=20), "1.18.0"),
        (model_of([node("Identity")], opset=22), "1.21.0"),
        (model_of([node("Gelu")], opset=20, ir=9), "1.18.0"),
        (model_of([node("MatMulNBits", 3, MICROSOFT, K=32, N=8, bits=4, block_size=32)], opset=20, ir=9), "1.17.0"),
        (model_of([node("MatMulNBits", 3, MICROSOFT, K=32, N=8, bits=8, block_size=32)], opset=20, ir=9), "1.22.0"),
        (model_of([node("GroupQueryAttention", 11, MICROSOFT)], opset=20, ir=9), "1.22.0"),
        (model_of([node("Cos")]), "1.23.0"),
        (model_of([node("Cos")], dtype=DOUBLE), "1.29.0"),
    ],
)
def test_each_part_of_a_graph_counts(model: onnx.ModelProto, version: str, tmp_path: Path) -> None:
    assert lowest_of(model, tmp_path) == version


@pytest.mark.parametrize(
    "model",
    [
        model_of([node("Identity")], opset=HISTORY["newest_opset"] + 1),
        model_of([node("Identity")], ir=HISTORY["newest_ir"] + 1),
        model_of([node("Solve", 1, "mine")]),
    ],
    ids=["opset", "IR", "a library's op"],
)
def test_what_nothing_was_measured_of_needs_what_is_here(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    assert lowest_of(model, tmp_path) == "1.99.0"


def test_every_graph_of_a_bundle_is_told_of(tmp_path: Path) -> None:
    onnx.save(model_of([node("Identity")], opset=24), tmp_path / "a.onnx")
    onnx.save(model_of([node("TensorScatter", 3)], opset=24), tmp_path / "b.onnx")
    graphs = {"fp32": {"encoder": "a.onnx", "decoder": "b.onnx"}, "int8": {"encoder": "a.onnx", "decoder": "a.onnx"}}
    assert lowest_of_graphs(tmp_path, graphs) == {
        "onnxruntime": {
            "fp32": {"encoder": "1.24.1", "decoder": "1.25.0"},
            "int8": {"encoder": "1.24.1", "decoder": "1.24.1"},
        }
    }


def test_what_this_onnxruntime_has_is_what_the_history_says_of_it() -> None:
    """The file is of the onnxruntimes that are, and not made up: what it says came by now is here."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    kernels = [kernel for kernel in get_all_opkernel_def() if kernel.provider == "CPUExecutionProvider"]
    here = {f"{kernel.domain}:{kernel.op_name}:{kernel.version_range[0]}" for kernel in kernels}
    came = {key for key, version in HISTORY["kernels"].items() if not is_older(onnxruntime.__version__, version)}
    assert len(came) >= 5
    assert came <= here


def test_what_a_graph_needs_is_told_in_words() -> None:
    product = node("MatMulNBits", 3, MICROSOFT, K=32, N=8, bits=8, block_size=32)
    needs = lowest.needs_of(onnx_ir.from_proto(model_of([product], opset=21)))
    newer = {need.what: need.version for need in needs if is_older("1.17.3", need.version)}
    assert newer == {
        "IR version 10": "1.18.0",
        "opset 21": "1.18.0",
        "com.microsoft.MatMulNBits with bits=8": "1.22.0",
    }


def test_the_axes_of_a_reduction_are_no_type_of_its_kernel() -> None:
    model = onnx_ir.from_proto(model_of([node("ReduceMean", 2)], opset=20, ir=9))
    axes = model.graph.node(0).inputs[1]
    assert axes is not None
    axes.type = onnx_ir.TensorType(onnx_ir.DataType.INT64)
    assert [need for need in lowest.needs_of(model) if is_older("1.17.0", need.version)] == []


def test_the_history_begins_before_the_oldest_that_is_installed_with() -> None:
    assert is_older(HISTORY["first"], OLDEST)
