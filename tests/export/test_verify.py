"""The core promise: an ONNX op that is not the same function is refused, and named.

Each test plants one defect in a correct export and asks `verify` for its verdict.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tfm.errors import VerificationError
from tfm.export import GraphReport, Tolerance, verify
from tfm.export.optimised import LEVELS
from tfm.export.passes import OP_KEY
from tfm.export.regions import Region
from tfm.export.samples import cases
from tfm.runtime import Figures

Edit = Callable[[ir.Model], None]

ENCODER = {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean", "pooler": True}
QUICK = {"kind": "encoder", "activation": "quick_gelu", "norm_first": True}
DECODER = {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2}
MODELS = {"encoder": (ENCODER, "model"), "quick": (QUICK, "model"), "decoder": (DECODER, "decoder")}

GELU = "activation encoder.layers.{}.feed_forward.activation"
SELF = "attention encoder.layers.{}.self_attn"
CACHED = "attention decoder.layers.0.self_attn"
CROSS = "attention decoder.layers.{}.cross_attn"
SILU = "activation decoder.layers.0.feed_forward.activation"


# ------------------------------------------------ ways to break a graph


def nodes_of(model: ir.Model, op: str) -> list[ir.Node]:
    found = [node for node in model.graph if node.metadata_props.get(OP_KEY) == op]
    assert found, f"no node of {op}"
    return found


def core(model: ir.Model, op: str) -> ir.Node:
    return nodes_of(model, op)[-1]


def swap_for(model: ir.Model, old: ir.Node, op_type: str, *, named: bool = True, domain: str = "", **attributes: Any):
    """Put a node of one argument in the place of another."""
    new = ir.node(op_type, [old.inputs[0]], attributes, domain=domain)
    if named:
        new.metadata_props.update(old.metadata_props)
    output = old.outputs[0]
    new.outputs[0].shape, new.outputs[0].type = output.shape, output.type
    model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0], replace_graph_outputs=True)
    model.graph.remove(old, safe=True)
    new.outputs[0].name = output.name


def attribute(op: str, name: str, value: Any) -> Edit:
    def edit(model: ir.Model) -> None:
        core(model, op).attributes[name] = ir.convenience.convert_attribute(name, value)

    return edit


def replaced(op: str, op_type: str, **options: Any) -> Edit:
    return lambda model: swap_for(model, core(model, op), op_type, **options)


def argument(op: str, index: int, source: int | None) -> Edit:
    """Feed argument `source` of the op, or none, where argument `index` belongs."""

    def edit(model: ir.Model) -> None:
        node = core(model, op)
        node.replace_input_with(index, None if source is None else node.inputs[source])

    return edit


def swapped(op: str, one: int, other: int) -> Edit:
    def edit(model: ir.Model) -> None:
        node = core(model, op)
        first, second = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    return edit


def before(op: str, index: int, op_type: str) -> Edit:
    """Put a node that belongs to no op before an argument of one."""

    def edit(model: ir.Model) -> None:
        node = core(model, op)
        old = node.inputs[index]
        assert old is not None
        new = ir.node(op_type, [old])
        new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = f"{old.name}_changed", old.type, old.shape
        model.graph.insert_before(node, new)
        node.replace_input_with(index, new.outputs[0])

    return edit


def weight(index: int, amount: float) -> Edit:
    """Change one weight of the `index`-th product."""

    def edit(model: ir.Model) -> None:
        value = [node for node in model.graph if node.op_type == "MatMul"][index].inputs[1]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[3, 5] += amount
        value.const_value = ir.tensor(array, name=value.name)

    return edit


def node_type(op_type: str, index: int, becomes: str | None = None, **attributes: Any) -> Edit:
    """Change the type or the attributes of the `index`-th node of a type."""

    def edit(model: ir.Model) -> None:
        node = [node for node in model.graph if node.op_type == op_type][index]
        node.op_type = becomes or op_type
        for name, value in attributes.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return edit


def unnamed(op: str) -> Edit:
    def edit(model: ir.Model) -> None:
        for node in nodes_of(model, op):
            del node.metadata_props[OP_KEY]

    return edit


def invented(model: ir.Model) -> None:
    """One more activation, that changes nothing: as when the exporter doubles an op."""
    node = ir.node("Relu", [core(model, GELU.format(0)).inputs[0]])
    node.metadata_props[OP_KEY] = "activation encoder.layers.9.feed_forward.activation"
    node.outputs[0].name, node.outputs[0].type = "extra", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape([None, None, None])
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])


def cache_reversed(model: ir.Model) -> None:
    value = core(model, CACHED).inputs[2]
    concat = value.producer()
    assert concat.op_type == "Concat"
    first, second = concat.inputs
    concat.replace_input_with(0, second)
    concat.replace_input_with(1, first)


def positions_from_zero(model: ir.Model) -> None:
    table = next(n for n in model.graph if n.op_type == "Gather" and "position" in str(n.inputs[0].name))
    unsqueeze = table.inputs[1].producer()
    offset = unsqueeze.inputs[0].producer()
    assert (unsqueeze.op_type, offset.op_type) == ("Unsqueeze", "Add")
    unsqueeze.replace_input_with(0, next(v for v in offset.inputs if v.producer().op_type == "Range"))


SCALE = 1 / math.sqrt(8)  # of heads of size 8

# What is planted, where, and how the first fault begins. "by itself": seen with eager's own inputs; "in the whole
# graph": the op is right but gets wrong inputs, or it is the first after what is wrong.
DEFECTS: dict[str, tuple[str, Edit, str]] = {
    "gelu by tanh": (
        "encoder",
        attribute(GELU.format(1), "approximate", "tanh"),
        f"{GELU.format(1)}: off by itself",
    ),
    "gelu becomes relu": ("encoder", replaced(GELU.format(0), "Relu"), f"{GELU.format(0)}: off by itself"),
    "gelu bypassed": ("encoder", replaced(GELU.format(1), "Identity"), f"{GELU.format(1)}: off by itself"),
    "gelu lost": (
        "encoder",
        replaced(GELU.format(1), "Identity", named=False),
        f"{GELU.format(1)}: no node of the graph computes it",
    ),
    "pooler's tanh becomes erf": (
        "encoder",
        replaced("activation pooler_activation", "Erf"),
        "activation pooler_activation: off by itself",
    ),
    "an op that eager does not have": (
        "encoder",
        invented,
        "activation encoder.layers.9.feed_forward.activation: the graph computes it, eager does not",
    ),
    "a right op without its name": (
        "encoder",
        unnamed(SELF.format(1)),
        f"{SELF.format(1)}: no node of the graph computes it",
    ),
    "quick-gelu's alpha": ("quick", attribute(GELU.format(0), "alpha", 1.6), f"{GELU.format(0)}: off by itself"),
    "quick-gelu becomes gelu": ("quick", replaced(GELU.format(0), "Gelu"), f"{GELU.format(0)}: off by itself"),
    "silu's alpha": ("decoder", attribute(SILU, "alpha", 1.01), f"{SILU}: off by itself"),
    "mask dropped": ("encoder", argument(SELF.format(0), 3, None), f"{SELF.format(0)}: off by itself"),
    "mask dropped in the last layer": (
        "encoder",
        argument(SELF.format(1), 3, None),
        f"{SELF.format(1)}: off by itself",
    ),
    "mask inverted": ("encoder", before(SELF.format(1), 3, "Not"), f"{SELF.format(1)}: off in the whole graph"),
    "scale 1 % off": (
        "encoder",
        attribute(SELF.format(0), "scale", 1.01 * SCALE),
        f"{SELF.format(0)}: off by itself",
    ),
    "scale left out": ("encoder", attribute(SELF.format(1), "scale", 1.0), f"{SELF.format(1)}: off by itself"),
    "causal where it must not be": (
        "encoder",
        attribute(SELF.format(1), "is_causal", 1),
        f"{SELF.format(1)}: off by itself",
    ),
    "softcap": ("encoder", attribute(SELF.format(0), "softcap", 5.0), f"{SELF.format(0)}: off by itself"),
    "keys and values swapped": ("encoder", swapped(SELF.format(1), 1, 2), f"{SELF.format(1)}: off in the whole graph"),
    "queries and keys swapped": ("encoder", swapped(SELF.format(0), 0, 1), f"{SELF.format(0)}: off in the whole graph"),
    "values taken from keys": ("encoder", argument(SELF.format(0), 2, 1), f"{SELF.format(0)}: "),
    "one weight of a projection": (
        "encoder",
        weight(0, 0.01),
        f"{SELF.format(0)}: off in the whole graph",
    ),
    "one weight of the last layer": (
        "quick",
        weight(-1, 0.01),
        "output last_hidden_state (disabled): off by",
    ),
    "one weight of the pooler": (
        "encoder",
        weight(-1, 0.1),
        "activation pooler_activation: off in the whole graph",
    ),
    "epsilon of the first norm": (
        "encoder",
        node_type("LayerNormalization", 0, epsilon=1e-3),
        f"{GELU.format(0)}: off in the whole graph",
    ),
    "epsilon of the last norm": (
        "quick",
        node_type("LayerNormalization", -1, epsilon=1e-3),
        "output last_hidden_state (disabled): off by",
    ),
    "sentence embedding by sum": (
        "encoder",
        node_type("Div", -1, becomes="Mul"),
        "output sentence_embedding (disabled): off by",
    ),
    "a NaN among the weights": (
        "encoder",
        weight(0, math.nan),
        f"{SELF.format(0)}: off in the whole graph: NaN or infinity",
    ),
    "cross-attention's mask dropped": (
        "decoder",
        argument(CROSS.format(1), 3, None),
        f"{CROSS.format(1)}: off by itself",
    ),
    "cross-attention's keys and values swapped": (
        "decoder",
        swapped(CROSS.format(0), 1, 2),
        f"{CROSS.format(0)}: off in the whole graph",
    ),
    "cached attention without its mask": (
        "decoder",
        argument(CACHED, 3, None),
        f"{CACHED}: off by itself",
    ),
    "a token cannot see itself": (
        "decoder",
        node_type("LessOrEqual", 0, becomes="Less"),
        f"{CACHED}: off in the whole graph",
    ),
    "a cache laid out the wrong way": ("decoder", cache_reversed, f"{CACHED}: off in the whole graph"),
    "positions that forget the past": ("decoder", positions_from_zero, f"{CACHED}: off in the whole graph"),
}


def plant(export_tiny: Any, where: str, edit: Edit | None, folder: Path, **options: Any) -> GraphReport:
    """Verify a copy of a correct export that was edited."""
    config, role = MODELS[where]
    exported = export_tiny(**config)[role]
    model = ir.load(exported.path)
    if edit is not None:
        edit(model)
    path = folder / "edited.onnx"
    ir.save(model, path)
    return verify(exported.graph, path, cases(exported.graph), **options)


# ------------------------------------------------ the verdicts


@pytest.mark.parametrize("where", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_was_not_edited_passes(export_tiny: Any, tmp_path: Path, where: str, precision: str) -> None:
    report = plant(export_tiny, where, None, tmp_path, precision=precision)
    assert report.passed
    assert report.first_fault == ""
    assert {output.level for output in report.outputs} == set(LEVELS)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_refused_and_named(export_tiny: Any, tmp_path: Path, name: str) -> None:
    where, edit, fault = DEFECTS[name]
    report = plant(export_tiny, where, edit, tmp_path)
    assert not report.passed
    assert report.first_fault.startswith(fault), report.first_fault
    assert report.to_dict()["passed"] is False


@pytest.mark.parametrize("name", [name for name, (_, _, fault) in DEFECTS.items() if "by itself" in fault])
def test_an_op_must_be_exact_in_a_quantised_graph_too(export_tiny: Any, tmp_path: Path, name: str) -> None:
    where, edit, fault = DEFECTS[name]
    report = plant(export_tiny, where, edit, tmp_path, precision="int8")
    assert not report.passed
    assert report.first_fault.startswith(fault)


def test_nan_fails_in_every_precision_and_at_any_tolerance(export_tiny: Any, tmp_path: Path) -> None:
    edit = weight(0, math.nan)
    for options in ({"precision": "int8"}, {"tolerance": Tolerance(math.inf, 0.0)}):
        report = plant(export_tiny, "encoder", edit, tmp_path, **options)
        assert not report.passed
        assert all("NaN or infinity" in output.fault for output in report.outputs)


def test_a_defect_that_only_one_optimisation_level_has(
    export_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's optimiser is not ours to break, so the session of one level is given a broken file."""
    import onnxruntime as ort

    import tfm.export.verify

    exported = export_tiny(**ENCODER)["model"]
    model = ir.load(exported.path)
    DEFECTS["gelu by tanh"][1](model)
    broken = tmp_path / "broken.onnx"
    ir.save(model, broken)
    real = ort.InferenceSession

    def session(file: Any, options: ort.SessionOptions, **kwargs: Any) -> ort.InferenceSession:
        level = options.graph_optimization_level
        return real(broken if level == LEVELS["extended"] else file, options, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", session)
    report = tfm.export.verify(exported.graph, exported.path, cases(exported.graph))
    assert not report.passed
    assert report.first_fault.startswith("output last_hidden_state (extended): off by")
    assert {output.level for output in report.outputs if not output.passed} == {"extended"}


# ------------------------------------------------ comparisons that could not be made


def test_no_cases_at_all_fail(export_tiny: Any) -> None:
    exported = export_tiny(**ENCODER)["model"]
    report = verify(exported.graph, exported.path, [])
    assert not report.passed
    assert report.first_fault
    assert all(output.fault == "nothing was compared" for output in report.outputs)


def test_a_report_of_nothing_fails() -> None:
    report = GraphReport(role="model", precision="fp32", ops=(), outputs=())
    assert not report.passed
    assert report.first_fault == "nothing was compared in the model graph"


@pytest.mark.parametrize("error", [RuntimeError("boom"), VerificationError("boom"), KeyError("boom"), ValueError()])
@pytest.mark.parametrize(("owner", "method"), [(Region, "feeds"), (Region, "session"), (Figures, "add")])
def test_an_error_within_a_comparison_is_a_fault(
    export_tiny: Any, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception
) -> None:
    exported = export_tiny(**ENCODER)["model"]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)
    report = verify(exported.graph, exported.path, cases(exported.graph))
    assert not report.passed
    assert not any(op.passed for op in report.ops)
    assert ("boom" if str(error) else "ValueError") in report.first_fault


def test_another_shape_is_a_fault(export_tiny: Any, tmp_path: Path) -> None:
    def edit(model: ir.Model) -> None:
        output = next(value for value in model.graph.outputs if value.name == "sentence_embedding")
        node = output.producer()
        new = ir.node("Squeeze", [node.outputs[0]])
        new.outputs[0].name, new.outputs[0].type = "squeezed", output.type
        model.graph.append(new)
        model.graph.outputs[list(model.graph.outputs).index(output)] = new.outputs[0]
        output.name, new.outputs[0].name = "before", "sentence_embedding"

    report = plant(export_tiny, "encoder", edit, tmp_path)
    assert not report.passed
    assert report.first_fault.startswith("output sentence_embedding (disabled): shapes differ: (16,) was computed")


def test_an_op_that_onnxruntime_cannot_run_is_the_one_named(export_tiny: Any, tmp_path: Path) -> None:
    """As with a [B, 1, 1, T] mask, which its Attention refuses when run."""
    edit = attribute(SELF.format(1), "q_num_heads", 3)
    report = plant(export_tiny, "encoder", edit, tmp_path)
    assert not report.passed
    assert report.first_fault.startswith(f"{SELF.format(1)}: it cannot be run by itself: ")
    assert not any(op.passed for op in report.ops)
    assert all("the whole graph cannot be run" in output.fault for output in report.outputs)


def test_an_operator_that_onnxruntime_does_not_have(export_tiny: Any, tmp_path: Path) -> None:
    report = plant(export_tiny, "encoder", replaced(GELU.format(1), "Swoosh", domain="com.microsoft"), tmp_path)
    assert not report.passed
    assert report.first_fault.startswith(f"{GELU.format(1)}: it cannot be run by itself: ")


def test_an_op_spread_over_what_is_not_its_own_is_no_comparison(export_tiny: Any, tmp_path: Path) -> None:
    def edit(model: ir.Model) -> None:
        core(model, GELU.format(0)).outputs[0].consumers()[0].metadata_props[OP_KEY] = GELU.format(1)

    with pytest.raises(VerificationError, match="became nodes with 2 arguments and 2 results, not one of each"):
        plant(export_tiny, "encoder", edit, tmp_path)


# ------------------------------------------------ tolerances


def test_the_limit_of_outputs_is_the_caller_s(export_tiny: Any, tmp_path: Path) -> None:
    strict = plant(export_tiny, "encoder", None, tmp_path, tolerance=Tolerance(0.0, 0.0))
    assert strict.first_fault.startswith("output last_hidden_state (disabled): off by")
    edit = DEFECTS["one weight of the last layer"][1]
    loose = plant(export_tiny, "quick", edit, tmp_path, tolerance=Tolerance(1.0, 0.0))
    assert loose.passed


def test_a_loose_tolerance_of_outputs_does_not_loosen_the_ops(export_tiny: Any, tmp_path: Path) -> None:
    edit = DEFECTS["gelu by tanh"][1]
    assert not plant(export_tiny, "encoder", edit, tmp_path, tolerance=Tolerance(1e6, 0.0)).passed


def test_an_op_by_itself_has_margin(export_tiny: Any, tmp_path: Path) -> None:
    """Correct ops lie well inside their limits, else another machine's rounding would refuse a good export."""
    for where in MODELS:
        report = plant(export_tiny, where, None, tmp_path)
        assert all(op.own.max_abs <= op.own_limit / 2 for op in report.ops)
        assert all(op.free.max_abs <= op.free_limit / 2 for op in report.ops if op.free_limit is not None)
