"""Passes on the graph: when they apply, when they refuse, and the names they give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tests.support.recorded import record
from tfm.export.passes import NOTE_KEY, OP_KEY, FoldHeads, FuseQuickGelu
from tfm.export.verify.samples import cases
from tfm.ops import OpId

ExportTiny = Callable[..., dict[str, Any]]

KINDS: list[dict[str, Any]] = [
    {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean", "pooler": True},
    {"kind": "encoder", "activation": "quick_gelu", "norm_first": True},
    {"kind": "decoder", "activation": "swiglu", "norm_first": True, "tie_embeddings": True},
    {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2},
]


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


# ------------------------------------------------ NameOps


@pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(str(v) for v in options.values()))
def test_ops_have_the_recorder_s_names_in_its_order(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    for exported in export_tiny(**options).values():
        model = ir.load(exported.path)
        tags = [node.metadata_props[OP_KEY] for node in model.graph if OP_KEY in node.metadata_props]
        names = [tag for tag in tags if not OpId.parse(tag).is_layer]
        _, calls = record(exported.graph, cases(exported.graph)[0])
        assert sorted(set(names)) == sorted(str(call.op) for call in calls)
        assert list(dict.fromkeys(names)) == [str(call.op) for call in calls]
        for node in model.graph:
            if node.op_type in ("Attention", "Gelu", "QuickGelu", "Tanh"):
                assert OP_KEY in node.metadata_props


# ------------------------------------------------ FoldHeads


def attention_graph(*, heads: int | str = 2, given: bool = False, merged: bool = True, output: str = "y") -> ir.Model:
    """Attention of (B, S, 16) inputs over two heads of size 8, as torch's exporter leaves it."""
    inputs = [value(name, "B", "S" if name == "q" else "T", 16) for name in ("q", "k", "v")]
    split = ir.Value(
        name="split", const_value=ir.tensor([0, 0, 2, 8], name="split"), type=ir.TensorType(ir.DataType.INT64)
    )
    join = ir.Value(name="join", const_value=ir.tensor([0, 0, 16], name="join"), type=ir.TensorType(ir.DataType.INT64))
    nodes, arguments = [], []
    for source in inputs:
        length = source.shape[1]
        reshape = ir.node("Reshape", [source, split], {"allowzero": 0})
        transpose = ir.node("Transpose", [reshape.outputs[0]], {"perm": [0, 2, 1, 3]})
        transpose.outputs[0].shape = ir.Shape(["B", heads, length, 8])
        nodes += [reshape, transpose]
        arguments.append(transpose.outputs[0])
    if given:
        inputs[1:] = arguments[1:] = [value(name, "B", 2, "T", 8) for name in ("keys", "values")]
        nodes = nodes[:2]
    attention = ir.node("Attention", arguments, name="attention")
    attention.metadata_props[OP_KEY] = "attention here"
    swap = ir.node("Transpose", [attention.outputs[0]], {"perm": [0, 2, 1, 3]})
    flat = ir.node("Reshape", [swap.outputs[0], join], {"allowzero": 0})
    nodes += [attention, swap, flat] if merged else [attention]
    last = flat.outputs[0] if merged else attention.outputs[0]
    last.shape = ir.Shape(["B", "S", 16]) if merged else ir.Shape(["B", 2, "S", 8])
    if output == "z":
        tail = ir.node("Neg", [last])
        nodes.append(tail)
        last = tail.outputs[0]
    last.name, last.type = output, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [last], nodes=nodes, initializers=[split, join], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("output", ["y", "z"], ids=["graph output", "inner value"])
def test_heads_are_folded_and_the_function_stays(output: str) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((3, length, 16)).astype(np.float32) for name, length in (("q", 5), ("k", 7), ("v", 7))
    }
    model = attention_graph(output=output)
    expected = run(model, **feeds)
    assert FoldHeads()(model).modified
    assert not any(NOTE_KEY in node.metadata_props for node in model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert types(model) == ["Attention"] if output == "y" else ["Attention", "Neg"]
    node = model.graph[0]
    assert (node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) == (2, 2)
    assert node.metadata_props[OP_KEY] == "attention here"
    assert [v.name for v in model.graph.outputs] == [output]
    # The same kernel over the same numbers, in another layout.
    np.testing.assert_allclose(run(model, **feeds)[0], expected[0], atol=1e-6, rtol=0)


def test_encoders_have_no_transpose_left(export_tiny: ExportTiny) -> None:
    for options in KINDS[:2]:
        model = ir.load(export_tiny(**options)["model"].path)
        assert "Transpose" not in types(model)
        assert "Reshape" not in types(model)
    # The source's keys and values are outputs by heads: two Transposes a decoder layer, none of them of attention.
    model = ir.load(export_tiny(**KINDS[3])["encoder"].path)
    assert all(node.outputs[0].is_graph_output() for node in model.graph if node.op_type == "Transpose")


def test_a_pass_that_folded_everything_changes_nothing_more(export_tiny: ExportTiny) -> None:
    model = ir.load(export_tiny(**KINDS[0])["model"].path)
    before = ir.to_proto(model).SerializeToString()
    assert not FoldHeads()(model).modified
    assert not FuseQuickGelu()(model).modified
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"given": True}, None),  # a source's keys, by heads, are as good
        ({"heads": "N"}, "its numbers of heads are not known"),
        ({"merged": False}, "its heads are not merged by a Transpose and a Reshape"),
    ],
)
def test_folding_is_refused_with_a_reason(options: dict[str, Any], reason: str | None) -> None:
    model = attention_graph(**options)
    before = types(model)
    assert not FoldHeads()(model).modified
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert attention.metadata_props.get(NOTE_KEY) == reason
    assert types(model) == before


def test_cached_attention_stays(export_tiny: ExportTiny) -> None:
    model = ir.load(export_tiny(**KINDS[3])["decoder"].path)
    assert not FoldHeads()(model).modified
    attentions = [node for node in model.graph if "Attention" in node.op_type]
    assert [node.op_type for node in attentions] == ["GroupQueryAttention", "Attention"] * 2  # self and cross
    assert not any(NOTE_KEY in node.metadata_props for node in attentions)


# ------------------------------------------------ FuseQuickGelu


def gate_graph(
    *, alpha: float | None = None, names: tuple[str, ...] = ("op", "op", "op"), swap: bool = False
) -> ir.Model:
    """y = -(x · sigmoid(αx)), its nodes named as given."""
    x = value("x", "N")
    nodes, initializers, argument = [], [], x
    if alpha is not None:
        constant = ir.Value(
            name="alpha", const_value=ir.tensor(np.float32(alpha), name="alpha"), type=ir.TensorType(ir.DataType.FLOAT)
        )
        initializers.append(constant)
        nodes.append(ir.node("Mul", [constant, x] if swap else [x, constant]))
        argument = nodes[-1].outputs[0]
    sigmoid = ir.node("Sigmoid", [argument])
    product = ir.node("Mul", [sigmoid.outputs[0], x] if swap else [x, sigmoid.outputs[0]])
    last = ir.node("Neg", [product.outputs[0]])
    nodes += [sigmoid, product]
    for node, name in zip(reversed(nodes), names, strict=False):
        if name:
            node.metadata_props[OP_KEY] = name
    last.outputs[0].name, last.outputs[0].type, last.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph(
        [x], last.outputs, nodes=[*nodes, last], initializers=initializers, opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("alpha", [None, 1.702, 0.5])
def test_silu_and_quick_gelu_become_one_node(alpha: float | None, swap: bool) -> None:
    model = gate_graph(alpha=alpha, swap=swap)
    x = np.linspace(-12, 12, 999, dtype=np.float32)
    (expected,) = run(model, x=x)
    assert FuseQuickGelu()(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert types(model) == ["QuickGelu", "Neg"]
    assert model.graph[0].metadata_props[OP_KEY] == "op"
    assert model.graph[0].attributes["alpha"].as_float() == pytest.approx(alpha or 1.0, rel=1e-7)
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64) * (alpha or 1.0)))
    (found,) = run(model, x=x)
    np.testing.assert_allclose(found, -exact, atol=2e-6, rtol=0)  # float32 roundings of values up to 12: 12 · 2⁻²³
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "names",
    [("a", "b"), ("a", ""), ("", "a"), ("", "")],
    ids=["two ops", "gate unnamed", "product unnamed", "none named"],
)
def test_nodes_of_different_ops_are_not_fused(names: tuple[str, str]) -> None:
    """As in a gated unit, whose product with the gate is not the activation's."""
    model = gate_graph(names=names)
    assert not FuseQuickGelu()(model).modified
    assert types(model) == ["Sigmoid", "Mul", "Neg"]


def test_a_scaling_of_another_op_is_not_fused() -> None:
    model = gate_graph(alpha=2.0, names=("a", "a", "b"))
    assert not FuseQuickGelu()(model).modified


def test_only_gated_units_that_are_silu_are_fused(export_tiny: ExportTiny) -> None:
    glu = types(ir.load(export_tiny(kind="encoder", activation="glu")["model"].path))
    assert "QuickGelu" not in glu
    assert glu.count("Sigmoid") == 1
    swiglu = types(ir.load(export_tiny(kind="encoder", activation="swiglu")["model"].path))
    assert swiglu.count("QuickGelu") == 1
    assert "Sigmoid" not in swiglu


def test_nothing_else_is_touched() -> None:
    assert nn.SiLU()(torch.zeros(1)) == 0  # so that Sigmoid alone, and its product with another value, are not silu
    x, other = value("x", "N"), value("other", "N")
    sigmoid = ir.node("Sigmoid", [x])
    product = ir.node("Mul", [other, sigmoid.outputs[0]])
    negated = ir.node("Neg", product.outputs)
    for node in (sigmoid, product):
        node.metadata_props[OP_KEY] = "op"
    graph = ir.Graph([x, other], negated.outputs, nodes=[sigmoid, product, negated], opset_imports={"": 23}, name="g")
    assert not FuseQuickGelu()(ir.Model(graph, ir_version=10)).modified
