"""Quantized ops in ONNX's own operators: the weights that onnxruntime's own have, and what it makes of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tfm.errors import QuantizeError
from tfm.quantize import find_ops
from tfm.quantize.calibration.observe import Observed
from tfm.quantize.methods.blocks import Blocks
from tfm.quantize.methods.dynamic import Dynamic
from tfm.quantize.methods.method import Float32, Method
from tfm.quantize.methods.static import Static
from tfm.quantize.search.forms import write_forms
from tfm.quantize.search.subgraphs import subgraph
from tfm.quantize.search.switched import Switched
from tfm.quantize.target import target_of

INPUTS, OUTPUTS, ROWS = 80, 48, 6
X = np.random.default_rng(1).standard_normal((3, INPUTS)).astype(np.float32)
IDS = np.array([[3, 0, 47], [1, 1, 2]], np.int64)
PORTABLE = target_of(portable=True)


def graph_of(*uses: str, bias: bool = False) -> ir.Graph:
    """A table of 48 rows of 80 numbers that is looked up in, or multiplied by, or both."""
    random = np.random.default_rng(0)
    table = ir.Value(name="w", const_value=ir.tensor(random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)))
    table.type, table.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([OUTPUTS, INPUTS])
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", INPUTS]))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "s"]))
    initializers = [table]
    nodes, outputs, inputs = [], [], []
    if "lookup" in uses:
        nodes.append(ir.node("Gather", [table, ids], name="lookup"))
        outputs.append(nodes[-1].outputs[0])
        inputs.append(ids)
    if "product" in uses:
        turned = ir.node("Transpose", [table], {"perm": [1, 0]})
        nodes += [turned, ir.node("MatMul", [x, turned.outputs[0]], name="product")]
        if bias:
            added = ir.Value(name="b", const_value=ir.tensor(random.standard_normal(OUTPUTS).astype(np.float32)))
            added.type, added.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([OUTPUTS])
            initializers.append(added)
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], added], name="sum"))
        outputs.append(nodes[-1].outputs[0])
        inputs.append(x)
    for number, output in enumerate(outputs):
        output.name, output.type = f"y{number}", ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["b", "s", INPUTS] if number == 0 and "lookup" in uses else ["n", OUTPUTS])
    return ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="one")


def run(model: ir.Model, *, level: str = "ORT_DISABLE_ALL") -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {"x": X, "ids": IDS}
    return list(session.run(None, {one.name: feeds[one.name] for one in session.get_inputs()}))


def check(model: ir.Model) -> None:
    """Check a subgraph, which takes rows of any shape, as a model that says shapes."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = (
            ir.Shape(["b", "s", "k"]) if value.name == "y0" and "ids" in names(model) else ir.Shape(["a", "c"])
        )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def names(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.inputs]


def both(method: Method, *uses: str, bias: bool = False) -> tuple[ir.Model, ir.Model]:
    (op,) = find_ops(graph_of(*uses, bias=bias))
    made = [subgraph(op, method, {}, portable=portable) for portable in (False, True)]
    return made[0], made[1]


PLAIN: dict[str, Any] = {"calibrated": False, "outliers": False, "block": 32}
METHODS: dict[str, Method] = {
    "8 bits": Blocks(bits=8, **PLAIN),
    "8 bits, inputs apart": Blocks(bits=8, block=32, calibrated=False, apart=1 / 16),
    "4 bits": Blocks(bits=4, **PLAIN),
    "4 bits, fitted": Blocks(bits=4, fitted=True, **PLAIN),
    "dynamic": Dynamic(),
    "dynamic, by row": Dynamic(by_row=True),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_same(name: str, bias: bool) -> None:
    own, standard = both(METHODS[name], "product", bias=bias)
    assert PORTABLE.refusal(own) is not None
    assert PORTABLE.refusal(standard) is None
    check(standard)
    # MatMulNBits rounds its inputs to 8 bits, block by block: a part in 100 of the largest sums.
    (mine,), (theirs,) = run(standard), run(own)
    limit = 1e-2 if name.startswith(("8", "4")) else 1e-6
    assert np.abs(mine - theirs).max() <= limit * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["8 bits", "8 bits, inputs apart", "dynamic"])
@pytest.mark.parametrize("uses", [("lookup",), ("lookup", "product")], ids=["alone", "tied"])
def test_a_table_is_the_same(name: str, uses: tuple[str, ...]) -> None:
    own, standard = both(METHODS[name], *uses)
    assert PORTABLE.refusal(standard) is None
    check(standard)
    np.testing.assert_allclose(run(standard)[0], run(own)[0], atol=1e-6)
    own_names = (value for name, value in standard.graph.initializers.items() if not name.startswith("tfm."))
    integers = [value for value in own_names if value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)]
    assert [value.const_value.size for value in integers if value.const_value is not None] == [INPUTS * OUTPUTS]


def test_static_products_are_the_same() -> None:
    (op,) = find_ops(graph_of("product", bias=True))
    observed = {"x": Observed(np.abs(X).max(0), [(X, np.ones(len(X), np.bool_))])}
    own, standard = (subgraph(op, Static(), observed, portable=portable) for portable in (False, True))
    assert PORTABLE.refusal(own) is not None
    assert PORTABLE.refusal(standard) is None
    np.testing.assert_allclose(run(standard)[0], run(own)[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["8 bits", "4 bits", "4 bits, fitted"])
def test_onnxruntime_makes_one_node_of_a_product_in_blocks(name: str, tmp_path: Path) -> None:
    _, standard = both(METHODS[name], "product")
    ops = optimized(standard, tmp_path)
    assert ops["MatMulNBits"] == 1
    assert not ops["DequantizeLinear"]


def test_onnxruntime_makes_one_node_of_a_product_of_integers(tmp_path: Path) -> None:
    _, standard = both(METHODS["dynamic"], "product", bias=True)
    ops = optimized(standard, tmp_path)
    assert ops["DynamicQuantizeMatMul"] == 1
    assert not ops["MatMulInteger"]


def optimized(model: ir.Model, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_within_branches_it_opens_too(tmp_path: Path) -> None:
    """onnxruntime fails to open a product in blocks within a branch whose weight is outside."""
    graph = graph_of("product")
    (op,) = find_ops(graph)
    forms = [subgraph(op, METHODS[name], {}, portable=True) for name in ("8 bits", "4 bits")]
    alone = [run(form, level="ORT_ENABLE_ALL")[0] for form in forms]
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    switched = Switched(tmp_path / "model.onnx", [forms])
    for choice, expected in enumerate(alone, 1):
        found = switched.run([choice], ["y0"], {"x": X})["y0"]
        np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


# ------------------------------------------------ what is not there is not tried


def forms(runtime: str | None, methods: list[Method], *uses: str, **options: Any) -> list[str]:
    graph = graph_of(*uses)
    target = target_of(runtime, opset=min(21, target_of(runtime).opset), portable=options.pop("portable", False))
    graph.opset_imports[""] = target.opset
    (op,) = find_ops(graph)
    write: Callable[..., ir.Model] = lambda op, method: subgraph(op, method, {}, portable=target.portable)  # noqa: E731
    found = write_forms("model", op, methods, target, write, **options)
    assert len(found.methods) == len(found.subgraphs)
    return [str(method) for method in found.methods]


def test_old_engines_get_what_they_have() -> None:
    listed = [Float32(), METHODS["8 bits"], METHODS["4 bits"]]
    eight, four = str(METHODS["8 bits"]), str(METHODS["4 bits"])
    assert forms("1.32", listed, "product") == ["float32", eight, four]
    assert forms("1.22", listed, "product") == ["float32", eight, four]
    assert forms("1.21", listed, "product") == ["float32", four]
    assert forms("1.21", listed[:2], "product") == ["float32", "dynamic, by row"]
    assert forms("1.22", listed[:2], "lookup") == ["float32", "dynamic"]
    assert forms("1.23", listed[:2], "lookup") == ["float32", eight]
    assert forms(None, listed, "lookup", portable=True) == ["float32", eight]


def test_a_recipe_that_an_engine_lacks_is_refused() -> None:
    with pytest.raises(QuantizeError, match=r"bits=8 needs onnxruntime 1\.22\.0; leave out --recipe"):
        forms("1.17", [Float32(), METHODS["8 bits"]], "product", replayed=True)
