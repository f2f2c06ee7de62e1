"""A graph run piece by piece gives what it gives as a whole, and holds no value longer than somebody will read it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.support.planting import GPT2, LLAMA, T5
from tfm.errors import VerificationError
from tfm.export.verify.regions import cuts_of, find_regions
from tfm.export.verify.samples import cases
from tfm.export.verify.subgraphs import Subgraphs, load_graph, open_nodes

CPU = ["CPUExecutionProvider"]
X = np.array([1.0, -2.0], np.float32)


def model_of(body: str) -> ir.Model:
    """A graph from x (2) to d (2)."""
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[2] x) => (float[2] d) <float[2] w = {{3, 4}}, bool yes = {{1}}> {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def chain() -> ir.Model:
    return model_of("a = Relu(x)  b = Mul(a, w)  c = Add(a, b)  d = Neg(c)")


def cut(model: ir.Model, *names: str) -> Subgraphs:
    values = {value.name: value for node in model.graph for value in node.outputs} | dict(model.graph.initializers)
    return Subgraphs(model, {name: [values[name]] for name in names}, Path(), CPU)


@pytest.mark.parametrize(("options", "role"), [(LLAMA, "model"), (GPT2, "model"), (T5, "encoder"), (T5, "decoder")])
def test_every_value_is_what_the_whole_graph_has(
    export_tiny: Callable[..., Any], tmp_path: Path, options: dict[str, Any], role: str
) -> None:
    exported = export_tiny(**options)[role]
    model, whole = load_graph(exported.path), load_graph(exported.path)
    cuts = cuts_of(find_regions(model)) | {"outputs": list(model.graph.outputs)}
    names = list(dict.fromkeys(value.name for values in cuts.values() for value in values))
    outputs = [value.name for value in whole.graph.outputs]
    results = {value.name: value for node in whole.graph for value in node.outputs}
    whole.graph.outputs.extend(results[name] for name in names if name in results and name not in outputs)
    ir.save(whole, tmp_path / "whole.onnx")
    options_of_pieces = ort.SessionOptions()
    options_of_pieces.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options_of_pieces.intra_op_num_threads = 1
    session = ort.InferenceSession(tmp_path / "whole.onnx", options_of_pieces, providers=CPU)
    subgraphs, compared = Subgraphs(model, cuts, tmp_path, CPU), 0
    for case in cases(exported.graph, count=3):
        feeds = {value.name: x.numpy() for value, x in zip(exported.graph.inputs, case, strict=True)}
        expected = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True)) | feeds
        run = subgraphs.start(feeds)
        for name, values in cuts.items():
            for value, found in zip(values, run.take(name), strict=True):
                np.testing.assert_array_equal(found, expected[str(value.name)], strict=True)
                compared += 1
        assert not run._values
    assert compared > 3 * 20


def test_a_value_is_released_after_its_last_use() -> None:
    run = cut(chain(), "a", "b", "c", "d").start({"x": X})
    held = {}
    for name, value in {"a": [1.0, 0.0], "b": [3.0, 0.0], "c": [4.0, 0.0]}.items():
        np.testing.assert_array_equal(run.take(name), [value])
        held[name] = sorted(run._values)
    assert held == {"a": ["a"], "b": ["a", "b"], "c": ["c"]}  # c = a + b, d = -c
    np.testing.assert_array_equal(run.take("d"), [[-4.0, 0.0]])
    assert not run._values


def test_each_node_runs_once_whatever_is_asked_for() -> None:
    subgraphs = cut(chain(), "b", "a", "d")
    assert [[node.op_type for node in subgraph.nodes] for subgraph in subgraphs._subgraphs] == [
        ["Relu", "Mul"],
        ["Add", "Neg"],
    ]
    run = subgraphs.start({"x": X})
    assert [float(run.take(name)[0][0]) for name in ("b", "a", "d")] == [3.0, 1.0, -4.0]


def test_a_constant_may_be_asked_for() -> None:
    run = cut(chain(), "w", "a").start({"x": X})
    np.testing.assert_array_equal(run.take("w"), [[3.0, 4.0]])
    np.testing.assert_array_equal(run.take("a"), [[1.0, 0.0]])


def test_a_graph_with_branches_stays_whole() -> None:
    """A branch reads values of the graph that it is in without taking them as inputs."""
    branches = "then_branch = t () => (float[2] p) { p = Add(a, w) }, else_branch = e () => (float[2] q) { q = Neg(x) }"
    model = model_of(f"a = Relu(x)  c = If (yes) <{branches}>  d = Neg(c)")
    subgraphs = cut(model, "a", "c", "d")
    assert len(subgraphs._subgraphs) == 1
    run = subgraphs.start({"x": X})
    np.testing.assert_array_equal(run.take("a"), [[1.0, 0.0]])
    np.testing.assert_array_equal(run.take("c"), [[4.0, 4.0]])
    np.testing.assert_array_equal(run.take("d"), [[-4.0, -4.0]])
    with pytest.raises(VerificationError, match="If also depends on 'a'"):
        open_nodes(model, [node for node in model.graph if node.op_type == "If"], {"x": X}, ["c"], Path(), CPU)


def test_a_piece_that_fails_fails_again_and_is_not_skipped() -> None:
    model = model_of("a = Relu(x)  b = Swoosh(a)  d = Neg(b)")
    run = cut(model, "a", "b", "d").start({"x": X})
    np.testing.assert_array_equal(run.take("a"), [[1.0, 0.0]])
    for take in (lambda: run.take("b"), lambda: run.take("d")):
        with pytest.raises(Exception, match="Swoosh"):
            take()


def test_a_piece_alone_on_other_inputs() -> None:
    subgraphs = cut(chain(), "a", "b", "c")
    two = np.array([2.0, 2.0], np.float32)
    np.testing.assert_array_equal(subgraphs.run_alone("b", {"a": two}, ["b"]), [[6.0, 8.0]])
    np.testing.assert_array_equal(subgraphs.run_alone("c", {"a": two, "b": two}, ["c"]), [[4.0, 4.0]])
    assert subgraphs.run_alone("c", {"a": two}, ["c"]) is None  # the piece needs b too
    assert subgraphs.run_alone("b", {"a": two}, ["a"]) is None  # another piece gives a
    assert subgraphs.run_alone("b", {"a": two}, ["b", "a"]) is None
    assert subgraphs.run_alone("nothing", {"a": two}, ["b"]) is None


def test_nodes_that_read_more_than_they_are_fed() -> None:
    model = chain()
    add = next(node for node in model.graph if node.op_type == "Add")
    with pytest.raises(VerificationError, match="Add also depends on 'b', which is none of its arguments"):
        open_nodes(model, [add], {"a": X}, ["c"], Path(), CPU)
