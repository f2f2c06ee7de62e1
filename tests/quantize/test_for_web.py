"""A lookup in blocks, written out for browsers, gives the same numbers to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfm.quantize import save_for_web

V, D, BLOCK = 50, 64, 32


def lookup(bits: int, *, zero: bool, half: bool = False, **attributes: int) -> onnx.ModelProto:
    rng = np.random.default_rng(bits)
    constants = {
        "data": rng.integers(0, 256, (V, D * bits // 8)).astype(np.uint8),
        "scales": rng.uniform(-1, 1, (V, D // BLOCK)).astype(np.float16 if half else np.float32),
    }
    if zero:
        constants["zero"] = rng.integers(0, 256, (V, D // BLOCK * bits // 8)).astype(np.uint8)
    sizes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1} | attributes
    names = ["data", "ids", "scales", *(["zero"] if zero else [])]
    nodes = [helper.make_node("GatherBlockQuantized", names, ["rows"], domain="com.microsoft", name="x", **sizes)]
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "S"])],
        [helper.make_tensor_value_info("rows", kind, ["B", "S", D])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(path: Path, ids: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["rows"]
    return session.run(None, {"ids": ids})[0]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_numbers_by_standard_operators(tmp_path: Path, bits: int, zero: bool, half: bool) -> None:
    onnx.save(lookup(bits, zero=zero, half=half), tmp_path / "x.onnx")
    save_for_web(tmp_path / "x.onnx", tmp_path / "web.onnx")
    written = onnx.load(tmp_path / "web.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {opset.domain for opset in written.opset_import} == {""}
    ids = np.random.default_rng(1).integers(0, V, (3, 7))
    found = run(tmp_path / "web.onnx", ids)
    assert found.dtype == (np.float16 if half else np.float32)
    np.testing.assert_array_equal(found, run(tmp_path / "x.onnx", ids))


def test_what_lies_in_another_way_stays(tmp_path: Path) -> None:
    model = lookup(8, zero=False)
    model.graph.input[0].type.tensor_type.shape.dim.pop()
    onnx.save(model, tmp_path / "x.onnx")
    save_for_web(tmp_path / "x.onnx", tmp_path / "web.onnx")
    assert [node.op_type for node in ir.load(tmp_path / "web.onnx").graph] == ["GatherBlockQuantized"]
