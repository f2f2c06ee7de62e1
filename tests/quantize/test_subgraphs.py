"""Ops by themselves: what is written, put back, and chosen by an input computes the same, bit for bit."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from tests.support.small_graphs import FORMS, KINDS, TABLES, Array, feeds_of, forms_of, graph_of, parsed, run
from tfm.errors import QuantizeError
from tfm.quantize.calibration.observe import observe
from tfm.quantize.methods.edit import SHARED
from tfm.quantize.methods.hessian import second_moments
from tfm.quantize.methods.method import Float32, Method
from tfm.quantize.methods.ops import Op, find_ops
from tfm.quantize.methods.registry import Blocks, Dynamic, Static
from tfm.quantize.search.subgraphs import open_subgraph, size_of_subgraph, splice, subgraph
from tfm.quantize.search.switched import Switched

MIXED = (
    "int64[B, S] i",
    "float[B, S, 40] y, float[B, S, 32] q, float[B, S, 32] h",
    "h = Gather(t, i)  u = Transpose<perm=[1, 0]>(t)  p = MatMul(h, s)  q = Add(p, a)  g = Tanh(q)  y = MatMul(g, u)",
)
"""Two ops in a chain: a tied table, and a product whose result is an output as well as the next one's input."""


def mixed() -> ir.Model:
    rng = np.random.default_rng(1)
    shapes = {"t": (40, 32), "s": (32, 32), "a": (32,)}
    return parsed(*MIXED, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def pieces_of(path: Path, methods: list[list[Method]], batches: list[dict[str, Array]]) -> list[list[ir.Model]]:
    """Each op of a file in its forms."""
    ops = find_ops(ir.load(path).graph)
    products = {use.x for op in ops for use in op.uses if not use.is_lookup and use.x.producer() is not None}
    names = sorted(str(value.name) for value in products)
    hessian = second_moments(path, names, batches) if names else {}
    seen = observe(path, batches)
    return [
        [subgraph(op, method, seen, hessian) for method in variants] for op, variants in zip(ops, methods, strict=True)
    ]


def spliced(path: Path, subgraphs: list[list[ir.Model]], choice: Sequence[int]) -> ir.Model:
    """A file with the chosen forms in their places; 0 leaves an op as it is."""
    model = ir.load(path)
    for op, written, variant in zip(find_ops(model.graph), subgraphs, choice, strict=True):
        if variant:
            splice(model.graph, op, written[variant - 1])
    common.RemoveUnusedNodesPass()(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_spliced_graph_computes_what_the_switched_one_does(kind: str, tmp_path: Path) -> None:
    model = graph_of(kind)
    ir.save(model, tmp_path / "m.onnx")
    batches = [feeds_of(model, seed) for seed in range(3)]
    variants = forms_of(kind)
    subgraphs = pieces_of(tmp_path / "m.onnx", [variants], batches)
    switched = Switched(tmp_path / "m.onnx", subgraphs)
    exact = run(model, batches[0])
    same = switched.run([0] * len(subgraphs), list(exact), batches[0])
    for name, array in exact.items():
        np.testing.assert_array_equal(same[name], array)
    for variant, method in enumerate(variants, 1):
        found = switched.run([variant] * len(subgraphs), list(exact), batches[0])
        expected = run(spliced(tmp_path / "m.onnx", subgraphs, [variant] * len(subgraphs)), batches[0])
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{method}: {name}")
        assert any((found[name] != exact[name]).any() for name in exact), method  # it is quantized


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_alone_computes_what_it_does_in_its_graph(kind: str, tmp_path: Path) -> None:
    model = graph_of(kind)
    ir.save(model, tmp_path / "m.onnx")
    batches = [feeds_of(model, seed) for seed in range(3)]
    (op,) = find_ops(model.graph)
    inner = {str(use.x.name) for use in op.uses} | {str(use.output.name) for use in op.uses}
    (subgraphs,) = pieces_of(tmp_path / "m.onnx", [forms_of(kind)], batches)
    for method, written in zip(forms_of(kind), subgraphs, strict=True):
        whole = spliced(tmp_path / "m.onnx", [[written]], [1])
        known = {value.name for value in whole.graph.outputs}
        produced = [value for node in whole.graph for value in node.outputs]
        whole.graph.outputs.extend(value for value in produced if value.name in inner - known)
        values = batches[0] | run(whole, batches[0])
        alone = open_subgraph(written, threads=1).run(None, {v.name: values[v.name] for v in written.graph.inputs})
        assert [value.name for value in written.graph.outputs] == [use.output.name for use in op.uses]
        for use, array in zip(op.uses, alone, strict=True):
            # with its bias and what follows fused or not, float32 sums end in other last bits
            np.testing.assert_allclose(array, values[use.output.name], rtol=1e-5, atol=1e-5, err_msg=str(method))


@pytest.mark.parametrize("method", FORMS, ids=str)
def test_weights_are_stored_once_and_names_are_their_nodes_own(method: Method, tmp_path: Path) -> None:
    for kind in KINDS:
        if method not in forms_of(kind):
            continue
        model = graph_of(kind)
        ir.save(model, tmp_path / "m.onnx")
        subgraphs = pieces_of(tmp_path / "m.onnx", [[method]], [feeds_of(model, seed) for seed in range(3)])
        result = spliced(tmp_path / "m.onnx", subgraphs, [1])
        names = [node.name for node in result.graph]
        assert None not in names
        assert len(set(names)) == len(names), kind
        stored = [value.const_value for value in result.graph.initializers.values() if value.uses()]
        large = [
            tensor
            for tensor in stored
            if tensor is not None
            and tensor.nbytes >= model.graph.outputs[0].shape[-1]
            and not str(tensor.name).startswith(SHARED)
        ]
        packed = [tensor for tensor in large if tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)]
        codes = [tensor for tensor in packed if tensor.nbytes > 256]
        # rows and columns of one table have scales of their own: there it is stored by both
        assert len(codes) == (2 if kind == "by rows and by columns" else 1), (kind, [t.name for t in codes])
        assert not [tensor for tensor in large if tensor.dtype == ir.DataType.FLOAT and tensor.size >= 512]
        lasts = {str(use.last.name) for use in find_ops(model.graph)[0].uses}
        assert lasts <= set(names)  # by them saturation finds the products of an op
        own = [tensor for tensor in stored if tensor is not None and not str(tensor.name).startswith(SHARED)]
        assert size_of_subgraph(subgraphs[0][0]) == sum(tensor.nbytes for tensor in own)


def test_every_mix_of_two_ops(tmp_path: Path) -> None:
    model = mixed()
    ir.save(model, tmp_path / "m.onnx")
    batches = [feeds_of(model, seed) for seed in range(3)]
    subgraphs = pieces_of(tmp_path / "m.onnx", [forms_of("tied"), FORMS], batches)
    assert [op.name for op in find_ops(model.graph)] == ["t", "s"]
    switched = Switched(tmp_path / "m.onnx", subgraphs)
    for choice in itertools.product(*(range(len(variants) + 1) for variants in subgraphs)):
        expected = run(spliced(tmp_path / "m.onnx", subgraphs, choice), batches[1])
        found = switched.run(choice, list(expected), batches[1])
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{choice}: {name}")


def test_an_op_without_forms_cannot_be_exchanged(tmp_path: Path) -> None:
    model = mixed()
    ir.save(model, tmp_path / "m.onnx")
    feeds = feeds_of(model)
    subgraphs = pieces_of(tmp_path / "m.onnx", [[Dynamic()], [Dynamic()]], [feeds])
    switched = Switched(tmp_path / "m.onnx", [[], subgraphs[1]])
    for choice in ([0, 1], [1, 1]):
        found = switched.run(choice, ["q", "h"], feeds)
        np.testing.assert_array_equal(found["q"], run(spliced(tmp_path / "m.onnx", subgraphs, [0, 1]), feeds)["q"])
        np.testing.assert_array_equal(found["h"], run(model, feeds)["h"])
    assert list(switched.run([0, 0], ["y"], feeds)) == ["y"]


def test_the_graph_that_a_piece_is_of_stays_as_it_is(tmp_path: Path) -> None:
    for kind in KINDS:
        model = graph_of(kind)
        before = ir.to_proto(model).SerializeToString()
        (op,) = find_ops(model.graph)
        for method in (Float32(), Dynamic(by_row=True), Blocks(calibrated=False)):
            subgraph(op, method, {})
        assert ir.to_proto(model).SerializeToString() == before


def test_what_comes_of_float32_is_the_op(tmp_path: Path) -> None:
    for kind in KINDS:
        model = graph_of(kind)
        (op,) = find_ops(model.graph)
        written = subgraph(op, Float32(), {})
        kinds = {node.op_type for node in written.graph}
        assert kinds <= {"MatMul", "Add", "Gather", "Transpose"}
        assert size_of_subgraph(written) == 4 * (
            op.values.size + sum(use.bias.const_value.size for use in op.uses if use.bias)
        )


@pytest.mark.parametrize("names", [("val_0", "b"), ("w", "val_0"), ("val_1", "val_0")])
@pytest.mark.parametrize("method", [Float32(), Dynamic(), Blocks(block=32, calibrated=False)], ids=str)
def test_constants_may_be_called_as_new_values_are(names: tuple[str, str], method: Method, tmp_path: Path) -> None:
    """Exporters call a transposed weight val_0, and so onnx-ir calls the first value that has no name."""
    weight, bias = names
    rng = np.random.default_rng(0)
    shapes = {weight: (64, 32), bias: (32,)}
    model = parsed(
        "float[B, 64] x",
        "float[B, 32] y",
        f"p = MatMul(x, {weight})  y = Add(p, {bias})",
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
    )
    ir.save(model, tmp_path / "model.onnx")
    x = rng.standard_normal((4, 64)).astype(np.float32)
    ((written,),) = pieces_of(tmp_path / "model.onnx", [[method]], [{"x": x}])
    (y,) = open_subgraph(written, threads=1).run(None, {"x": x})
    assert np.abs(y - run(model, {"x": x})["y"]).max() < 0.5  # of values up to 30


def test_static_without_ranges_is_refused() -> None:
    (op,) = find_ops(graph_of("bias").graph)
    with pytest.raises(QuantizeError, match="'w' needs calibration data to be static"):
        subgraph(op, Static(), {})


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("method", [Static(), Dynamic(alpha=0.5), Dynamic(alpha=0.5, by_row=True)], ids=str)
def test_a_table_is_not_made_something_else_than_was_asked_for(kind: str, method: Method) -> None:
    (op,) = find_ops(graph_of(kind).graph)
    with pytest.raises(QuantizeError, match=f"'t' is a table that rows are looked up in: it cannot be '{method}'"):
        subgraph(op, method, {})


def test_names_of_ops() -> None:
    """By the eager model where the graph tells, unless two weights are of one op; else by the weight."""

    def named(labels: dict[str, str]) -> list[str]:
        model = mixed()
        for node in model.graph:
            if node.outputs[0].name in labels:
                node.metadata_props["tfm.op"] = labels[node.outputs[0].name]
        return [op.name for op in find_ops(model.graph)]

    assert named({}) == ["t", "s"]
    assert named({"h": "embedding shared", "y": "linear head", "p": "linear layer"}) == ["shared = head", "layer"]
    assert named({"h": "embedding shared", "p": "linear layer"}) == ["t", "layer"]
    assert named({"h": "linear layer", "y": "linear layer", "p": "linear layer"}) == ["t", "s"]


def test_uses(tmp_path: Path) -> None:
    def one(kind: str) -> Op:
        (op,) = find_ops(graph_of(kind).graph)
        return op

    assert {kind: (one(kind).kinds, one(kind).tied, len(one(kind).uses)) for kind in KINDS} == {
        "bias": (["matmul"], False, 1),
        "no bias": (["matmul"], False, 1),
        "transposed": (["matmul"], False, 1),
        "shared": (["matmul"], False, 2),
        "lookup": (["embedding"], False, 1),
        "lookup and output": (["embedding"], False, 1),
        "tied": (["embedding", "matmul"], True, 2),
        "tied, bias": (["embedding", "matmul"], True, 2),
        "by rows and by columns": (["embedding", "matmul"], False, 2),
    }
    biases: dict[str, list[Any]] = {kind: [use.bias and use.bias.name for use in one(kind).uses] for kind in KINDS}
    assert biases["bias"] == biases["transposed"] == ["b"]
    assert biases["shared"] == ["b", None]
    assert biases["tied, bias"] == [None, "c"]
