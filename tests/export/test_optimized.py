"""Where an op is in the graph that onnxruntime makes of ours, and what ran it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from tests.support.defects import GELU, SELF
from tests.support.planting import ENCODER, plant
from tfm.export import GraphReport
from tfm.export.passes import NOTE_KEY, OP_KEY
from tfm.export.verify.optimized import Place, describe_kernel, kernels_that_ran, locate, optimize
from tfm.export.verify.regions import Region, find_regions
from tfm.export.verify.samples import cases
from tfm.ops import OpId

OURS = "a = Gelu(x)  r = Abs(a)  b = Relu(r)  y = Neg(b)"
OPS = {"a": "activation a", "b": "activation b"}


def model_of(body: str, ops: dict[str, str] | None = None) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for node in model.graph:
        if node.outputs[0].name in (ops or {}):
            node.metadata_props[OP_KEY] = (ops or {})[str(node.outputs[0].name)]
    return model


@pytest.mark.parametrize(
    ("optimized", "expected"),
    [
        (OURS, {"a": ("activation a", "a", "Gelu"), "b": ("activation b", "b", "Relu")}),
        ("a = FastGelu(x)  r = Abs(a)  b = Relu(r)  y = Neg(b)", {"a": ("activation a", "a", "FastGelu")}),
        ("r = GeluAbs(x)  b = Relu(r)  y = Neg(b)", {"a": ("activation b", "b", "Relu")}),  # r is nobody's result
        ("b = All(x)  y = Neg(b)", {"a": ("activation b", "b", "All"), "b": ("activation b", "b", "All")}),
        ("a = Gelu(x)  y = All(a)", {"a": ("activation a", "a", "Gelu"), "b": ("output y", "y", "All")}),
        ("y = All(x)", {"a": ("output y", "y", "All"), "b": ("output y", "y", "All")}),
        ("z = All(x)", {"a": None, "b": None}),
    ],
)
def test_an_op_is_found_or_what_swallowed_it(optimized: str, expected: dict[str, tuple[str, str, str] | None]) -> None:
    ours = model_of(OURS, OPS)
    places = locate(ours, model_of(optimized), find_regions(ours))
    for name, place in expected.items():
        found = places.get(OPS[name])
        assert (None if found is None else (found.at, found.value.name, found.node.op_type)) == place


def test_an_op_that_is_an_output_is_found_as_itself() -> None:
    ours = model_of("y = Gelu(x)", {"y": "activation y"})
    (place,) = locate(ours, ours, find_regions(ours)).values()
    assert (place.at, place.node.op_type) == ("activation y", "Gelu")


def test_what_onnxruntime_leaves_is_read(export_tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Its graph, its profile and the names of its nodes, which are all that a kernel is told by."""
    exported = export_tiny(**ENCODER)["model"]
    (case,) = cases(exported.graph, count=1)
    feeds = {value.name: x.numpy() for value, x in zip(exported.graph.inputs, case, strict=True)}
    file, ran = optimize(exported.path, "all", feeds, tmp_path, ["CPUExecutionProvider"])
    model, optimized = ir.load(exported.path), ir.load(file)
    regions = find_regions(model)
    places = locate(model, optimized, regions)
    assert set(places) == set(regions)
    for op in SELF:
        assert places[op].at == op
        kernel = describe_kernel(OpId.parse(op), regions[op], places[op], ran)
        assert (kernel.op_type, kernel.provider, kernel.advice) == ("Attention", "CPUExecutionProvider", "")
    assert [places[op].node.op_type for op in GELU] == ["BiasGelu", "BiasGelu"]


def test_a_profile_is_read(tmp_path: Path) -> None:
    kernel = {"op_name": "Gelu", "provider": "CPUExecutionProvider"}
    events = [
        {"cat": "Session", "name": "model_run", "args": {}},
        {"cat": "Node", "name": "n_kernel_time", "args": kernel},
        {"cat": "Node", "name": "n_fence_before", "args": {"op_name": "Gelu"}},
        {"cat": "Node", "name": "layer/n_kernel_time_kernel_time", "args": kernel | {"op_name": "Relu"}},
    ]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    assert kernels_that_ran(tmp_path / "profile.json") == {
        "n": ("Gelu", "CPUExecutionProvider"),
        "layer/n_kernel_time": ("Relu", "CPUExecutionProvider"),
    }


# ------------------------------------------------ advice


def advice_on(op: str, body: str, *, note: str = "", swallowed: bool = False) -> str:
    """What is said of an op whose nodes are all of `body`."""
    model = model_of(body)
    nodes = tuple(model.graph)
    if note:
        nodes[0].metadata_props[NOTE_KEY] = note
    nodes[-1].name = "n"
    region = Region(op=op, nodes=nodes, inputs=(model.graph.inputs[0],), output=nodes[-1].outputs[0])
    place = Place(at="output y" if swallowed else op, value=nodes[-1].outputs[0], node=nodes[-1])
    kernel = describe_kernel(OpId.parse(op), region, place, {"n": (nodes[-1].op_type, "CPUExecutionProvider")})
    assert kernel is not None
    assert kernel.to_dict()["best"] is (kernel.advice == "")
    return kernel.advice


def test_advice_on_what_is_already_best() -> None:
    assert advice_on("activation a", "y = Gelu(x)") == ""
    assert advice_on("attention a", "y = Attention(x, x, x)") == ""
    assert advice_on("linear a", "m = MatMul(x, x)  y = Add(m, x)") == ""
    assert advice_on("activation a", "r = Relu(x)  y = Mul(r, r)", swallowed=True) == ""


def test_advice_says_what_to_do() -> None:
    assert "call torch.nn.functional.scaled_dot_product_attention" in advice_on("softmax a", "y = Softmax(x)")
    copies = advice_on("attention a", "y = Attention(x, x, x)", note="its query is not a Reshape")
    assert copies == "heads are split and merged by Transposes, which copy: its query is not a Reshape"
    parts = advice_on("activation a", "r = Relu(x)  y = Mul(r, r)")
    assert parts.startswith("2 nodes (Relu·Mul), each a pass over memory")
    assert "gelu_tanh" in parts


def test_a_kernel_that_is_not_known() -> None:
    model = model_of("y = Gelu(x)", {"y": "activation y"})
    (region,) = find_regions(model).values()
    (place,) = locate(model, model, find_regions(model)).values()
    assert describe_kernel(OpId.parse("activation y"), region, None, {}) is None
    assert describe_kernel(OpId.parse("activation y"), region, place, {"another": ("Gelu", "CPU")}) is None


def test_a_report_has_the_kernel_of_every_promised_op(export_tiny: Callable[..., Any], tmp_path: Path) -> None:
    def kernels(report: GraphReport) -> dict[str, tuple[str, bool] | None]:
        found = {str(op.op): op.kernel for op in report.promised}
        return {op: kernel and (kernel.op_type, not kernel.advice) for op, kernel in found.items()}

    assert set(kernels(plant(export_tiny, "llama", None, tmp_path)).values()) == {
        ("GroupQueryAttention", True),
        ("QuickGelu", True),
    }
    by_hand = kernels(plant(export_tiny, "by_hand", None, tmp_path))
    assert by_hand["softmax "] == ("Softmax", False)
    # onnxruntime inlines HardSwish into nodes without names, which its profile cannot be matched with
    assert [op for op, kernel in by_hand.items() if kernel is None] == ["activation  5"]
