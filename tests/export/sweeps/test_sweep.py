"""Sweeps: what they cover, that our ops pass, and that a defect planted in what is exported is seen and named."""

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from tfm.errors import ConfigError, ExportError
from tfm.export import to_onnx
from tfm.export.sweeps import SweepReport, activation_curve, attention, cached_attention, groups, positions, sweep
from tfm.export.sweeps.activations import edges, grid
from tfm.export.sweeps.pairs import all_pairs, product
from tfm.export.verify.optimized import LEVELS
from tfm.model.layer import FeedForward
from tfm.ops import ACTIVATIONS, GATED
from tfm.ops.tolerances import SWEEPS

Change = Callable[[ir.Model], int]
RUN = sys.modules["tfm.export.sweeps.run"]
ENDS = ("disabled", "all")  # of the levels; `tfm verify-ops` and the last test run all five


def rows(*, softcap: float | None = None, scale: float | None = None) -> list[dict[str, Any]]:
    """Plain heads, and grouped ones over a source: the two shapes that attention without a cache is exported in."""
    options = {"softcap": softcap, "scale": scale, "size": 8}
    return [{"layout": "self", "heads": (3, 3)} | options, {"layout": "cross", "heads": (6, 2)} | options]


def cached_rows(*sizes: int, softcap: float | None = None) -> list[dict[str, Any]]:
    """Grouped heads over a cache."""
    return [{"softcap": softcap, "heads": (6, 2), "size": size, "scale": None} for size in sizes]


@pytest.fixture(scope="module")
def exported() -> Callable[[Any], ir.Model]:
    """`to_onnx`, which exports the same activation or attention only once."""
    made: dict[str, bytes] = {}

    def export(graph: Any) -> ir.Model:
        op = graph.model
        if isinstance(op, FeedForward):
            key = f"{op} {graph.inputs}"
        elif hasattr(op, "attention"):
            key = f"{op} {op.attention.scale} {op.attention.softcap} {graph.inputs} {graph.outputs}"
        elif hasattr(op, "softcap"):
            key = f"{op} {op.scale} {op.softcap} {graph.inputs} {graph.outputs}"
        else:
            return to_onnx(graph)
        if key not in made:
            made[key] = ir.to_proto(to_onnx(graph)).SerializeToString()
        return ir.from_proto(onnx.ModelProto.FromString(made[key]))

    return export


@pytest.fixture(autouse=True)
def export_once(monkeypatch: pytest.MonkeyPatch, exported: Callable[[Any], ir.Model]) -> None:
    monkeypatch.setattr(RUN, "to_onnx", exported)


@pytest.fixture
def few_attentions(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]]], None]:
    """Sweep only these combinations."""

    def choose(chosen: list[dict[str, Any]]) -> None:
        for module in (attention, cached_attention):
            monkeypatch.setattr(module, "all_pairs", lambda _: chosen)

    return choose


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, exported: Callable[[Any], ir.Model]) -> Callable[[Change], None]:
    """Change every exported model; a change says how often it applied, which must not be never."""

    def planted(change: Change) -> None:
        def export(graph: Any) -> ir.Model:
            model = exported(graph)
            assert change(model) > 0, "the defect found nothing to spoil"
            return model

        monkeypatch.setattr(RUN, "to_onnx", export)

    return planted


def failed(report: SweepReport) -> list[str]:
    """The forms that failed, or the ops where they have one form."""
    assert not report.passed
    assert len(report.faults()) == sum(not op.passed for op in report.ops)
    return [op.form or op.op for op in report.ops if not op.passed]


# ------------------------------------------------ what is swept


def test_the_grid_of_float32_has_what_it_says() -> None:
    x = grid("float32")
    info = np.finfo(np.float32)
    for value in (info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal, np.inf, -np.inf):
        assert value in x
    assert np.isnan(x).any()
    assert {bool(np.signbit(zero)) for zero in x[x == 0]} == {True, False}
    assert ((np.abs(x) > 0) & (np.abs(x) < info.tiny)).sum() > 100
    core = np.unique(x[np.abs(x) <= 20])
    assert np.diff(core).max() < 1.01e-3
    assert x.dtype == np.float32


def test_the_grid_of_float16_is_every_number() -> None:
    x = grid("float16")
    assert x.dtype == np.float16
    assert len(np.unique(x.view(np.uint16))) == 2**16


def test_every_activation_is_swept() -> None:
    assert set(groups()["activations"]) == {*ACTIVATIONS, *GATED}


def test_all_pairs_meet() -> None:
    chosen = all_pairs(attention.FACTORS)
    assert len(chosen) == 16  # the least there can be: four heads × four sizes
    for (a, first), (b, second) in itertools.combinations(attention.FACTORS.items(), 2):
        assert {(row[a], row[b]) for row in chosen} == set(itertools.product(first, second))
    assert len(product(attention.FACTORS)) == len(attention.subjects(full=True)) == 128
    assert len(product(cached_attention.FACTORS)) == len(cached_attention.subjects(full=True)) == 64


def test_attention_is_fed_every_form_of_mask_at_every_length() -> None:
    seen: dict[str, set[tuple[int, int]]] = {}
    for subject in (s for row in rows() for s in attention.subjects(full=True) if s.title == attention.describe(**row)):
        graph = subject.make()
        for case in subject.cases(graph, "float32"):
            feeds = dict(zip([value.name for value in graph.inputs], case.feeds, strict=True))
            length, total = feeds["x"].shape[1], feeds["real"].shape[1]
            for check in case.checks:
                seen.setdefault(check.form, set()).add((length, total))
    assert set(seen) == set(attention.FORMS)
    for shapes in seen.values():
        assert {length == 1 for length, _ in shapes} == {True, False}


def test_attention_over_a_cache_is_fed_every_form_of_mask_at_every_length() -> None:
    seen: dict[str, set[tuple[int, int, bool]]] = {}
    (subject,) = (s for s in cached_attention.subjects(full=True) if s.title == "cached 6/2×8")
    graph = subject.make()
    for case in subject.cases(graph, "float32"):
        feeds = dict(zip([value.name for value in graph.inputs], case.feeds, strict=True))
        new, total, room = feeds["q"].shape[1], feeds["real"].shape[1], feeds["key"].shape[2]
        for check in case.checks:
            seen.setdefault(check.form, set()).add((new, total - new, room > total - new))
    assert set(seen) == set(cached_attention.FORMS)
    for form, shapes in seen.items():
        assert {past for _, past, _ in shapes} == {0, 1, 7}, form
        assert {new == 1 for new, _, _ in shapes} == {has_room for _, _, has_room in shapes} == {True, False}


def test_rows_masked_whole_are_there() -> None:
    (subject,) = (s for s in attention.subjects(full=True) if s.title == attention.describe(**rows()[0]))
    graph = subject.make()
    case = list(subject.cases(graph, "float32"))[2]  # -inf
    by_form = {check.form: check.expected for check in case.checks}
    for form in ("bool, whole rows", "float, -inf, whole rows"):
        assert (by_form[form][0] == 0).all()
        assert (by_form[form][1] != 0).any()


# ------------------------------------------------ what we export passes


@pytest.mark.parametrize("name", groups()["activations"])
def test_activations_pass(name: str) -> None:
    report = sweep([name], levels=ENDS)
    assert report.passed, report.faults()
    assert [(op.op, op.dtype) for op in report.ops] == [(name, "float32"), (name, "float16")]
    for op in report.ops:
        assert op.count == (len(grid(op.dtype)) + len(edges(op.dtype))) * len(ENDS)
        assert op.max_ulp is not None


@pytest.mark.parametrize("name", [*groups()["norms"], "sinusoidal", "relative", "alibi"])
def test_norms_and_positions_pass(name: str) -> None:
    report = sweep([name], levels=ENDS)
    assert report.passed, report.faults()
    assert {op.dtype for op in report.ops} == {"float32"}


def test_rotary_passes() -> None:
    report = sweep(["rotary"], levels=["all"])
    assert report.passed, report.faults()
    assert [op.form for op in report.ops] == list(positions.ROTARY)


def test_attention_passes(few_attentions: Callable[[Any], None]) -> None:
    few_attentions(
        [*rows(), rows(softcap=5.0, scale=0.3)[1], rows(scale=0.3)[0] | {"layout": "cross", "heads": (4, 1)}]
    )
    report = sweep(["attention"], levels=ENDS)
    assert report.passed, report.faults()
    assert [op.form for op in report.ops] == list(attention.FORMS)


def test_attention_over_a_cache_passes(few_attentions: Callable[[Any], None]) -> None:
    """GroupQueryAttention, with and without a soft cap, and the form for other head sizes."""
    few_attentions([*cached_rows(8, 20), *cached_rows(8, softcap=5.0)])
    report = sweep(["cached_attention"], levels=ENDS)
    assert report.passed, report.faults()
    assert [op.form for op in report.ops] == list(cached_attention.FORMS)


def test_a_note_says_where_the_limit_is_missed() -> None:
    """silu(-inf) is NaN, in eager PyTorch and in ours; its limit is 0."""
    (op,) = sweep(["silu"], dtypes=["float32"], levels=["all"]).ops
    assert op.passed
    assert op.notes == ("gives nan, as eager PyTorch does, at x = -inf, where the limit is 0",)


def test_layer_norm_of_a_large_mean_is_nearer_the_truth_than_eager() -> None:
    report = sweep(["layer_norm"], levels=["all"])
    (op,) = (op for op in report.ops if op.form == "mean 10000")
    assert op.max_abs < op.torch_max_abs


def test_a_curve() -> None:
    for name in ("gelu", "swiglu"):
        curve = activation_curve(name, points=25)
        assert len(curve.x) == len(curve.y) == len(curve.error) == 25
        assert (curve.x[0], curve.x[12], curve.y[12]) == (-6.0, 0.0, 0.0)
        assert curve.y[-1] == pytest.approx({"gelu": 6.0, "swiglu": 5.98516}[name], abs=1e-5)
        assert 0 < max(map(abs, curve.error)) < 2e-6  # limit: 3e-7 · 6 + 3e-7 · 6
    with pytest.raises(ConfigError, match=r"^unknown activation 'gelo'; the nearest is 'gelu'"):
        activation_curve("gelo")


# ------------------------------------------------ planted defects


def attribute(op_type: str, name: str, factor: float, default: float | None = None) -> Change:
    """Multiply a float attribute of every node of a type."""

    def change(model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_type == op_type]
        for node in nodes:
            value = node.attributes[name].as_float() if name in node.attributes else default
            assert value is not None
            node.attributes[name] = ir.AttrFloat32(name, value * factor)
        return len(nodes)

    return change


def retype(old: str, new: str, **attributes: Any) -> Change:
    """Make every node of a type one of another."""

    def change(model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_type == old]
        for node in nodes:
            node.op_type = new
            node.attributes.update({name: ir.AttrString(name, value) for name, value in attributes.items()})
        return len(nodes)

    return change


def on_attention(edit: Callable[[ir.Node], bool]) -> Change:
    return lambda model: sum([edit(node) for node in list(model.graph) if node.op_type == "Attention"])


def swap_key_and_value(node: ir.Node) -> bool:
    _, key, value = node.inputs[:3]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)
    return True


def drop_mask(node: ir.Node) -> bool:
    present = len(node.inputs) > 3 and node.inputs[3] is not None
    if present:
        node.replace_input_with(3, None)
    return present


def let_least_through(model: ir.Model) -> int:
    """Undo what the translation does for masks of finfo.min."""
    nodes = [node for node in model.graph if node.op_type == "Where" and node.inputs[0].producer().op_type == "IsInf"]
    for node in nodes:
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[1])
    return len(nodes)


def scale_weights(*shape: int, factor: float = 1.01) -> Change:
    def change(model: ir.Model) -> int:
        found = [(n, v) for n, v in model.graph.initializers.items() if v.const_value.shape == ir.Shape(shape)]
        for name, value in found:
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
        return len(found)

    return change


@pytest.mark.parametrize(
    ("names", "change"),
    [
        (["gelu"], retype("Gelu", "Gelu", approximate="tanh")),
        (["gelu_tanh"], retype("Gelu", "Gelu", approximate="none")),
        (["geglu"], retype("Gelu", "Gelu", approximate="tanh")),
        (["silu"], attribute("QuickGelu", "alpha", 1.001)),
        (["quick_gelu"], attribute("QuickGelu", "alpha", 1.702 / 1.703)),
        (["sigmoid"], retype("Sigmoid", "HardSigmoid")),
        (["elu"], attribute("Elu", "alpha", 1.0001, 1.0)),
        (["hardswish"], retype("HardSwish", "Relu")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_activation_is_named(plant: Callable[[Change], None], names: list[str], change: Change) -> None:
    """In float32 and in float16 alike; that 0.1 % of an exponent shows in float16 is more than is asked."""
    plant(change)
    report = sweep(names, dtypes=["float32"], levels=["all"])
    assert failed(report) == names
    assert report.faults()[0].startswith(f"{names[0]}, float32: off by ")


def test_a_wrong_gelu_is_seen_in_float16(plant: Callable[[Change], None]) -> None:
    plant(retype("Gelu", "Gelu", approximate="tanh"))
    assert failed(sweep(["gelu"], dtypes=["float16"], levels=["all"])) == ["gelu"]


def test_nan_and_infinity_in_the_wrong_place_are_named(plant: Callable[[Change], None]) -> None:
    """1 / x has an infinity at 0 where tanh has none."""
    plant(retype("Tanh", "Reciprocal"))
    report = sweep(["tanh"], dtypes=["float32"], levels=["all"])
    assert report.faults()[0].startswith("tanh, float32: it gives ")
    assert " is expected, at x = " in report.faults()[0]


@pytest.mark.parametrize(
    ("change", "forms"),
    [
        pytest.param(attribute("Attention", "scale", 1.01, 8**-0.5), attention.FORMS, id="scale"),
        pytest.param(on_attention(swap_key_and_value), attention.FORMS, id="key and value"),
        pytest.param(on_attention(drop_mask), [*attention.FORMS[1:9], *attention.FORMS[10:]], id="mask dropped"),
        pytest.param(retype("Greater", "GreaterOrEqual"), ["sliding window of 3"], id="window one long"),
        pytest.param(
            retype("LessOrEqual", "Less"),
            ["causal", "causal + padding", "sliding window of 3"],
            id="causal one short",
        ),
        pytest.param(let_least_through, ["float, finfo.min, whole rows"], id="finfo.min"),
    ],
)
def test_a_wrong_attention_is_named(
    plant: Callable[[Change], None], few_attentions: Callable[[Any], None], change: Change, forms: list[str]
) -> None:
    few_attentions(rows()[:1])
    plant(change)
    assert failed(sweep(["attention"], levels=["all"])) == list(forms)


def on_cached(edit: Callable[[ir.Model, ir.Node], None]) -> Change:
    def change(model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        for node in nodes:
            edit(model, node)
        return len(nodes)

    return change


def number(name: str, value: int) -> Change:
    """Give every attention over a cache an attribute."""
    return on_cached(lambda _, node: node.attributes.update({name: ir.AttrInt64(name, value)}))


def swap(one: int, other: int) -> Change:
    def edit(model: ir.Model, node: ir.Node) -> None:
        first, second = node.inputs[one], node.inputs[other]
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    return on_cached(edit)


def one_place_back(model: ir.Model, node: ir.Node) -> None:
    one = ir.Value(name=f"one_{node.name}", const_value=ir.tensor(np.array(1, np.int32)))
    model.graph.register_initializer(one)
    less = ir.node("Sub", [node.inputs[5], one])
    model.graph.insert_before(node, less)
    node.replace_input_with(5, less.outputs[0])


COMPUTED = list(cached_attention.FORMS[:-1])
KEPT = cached_attention.FORMS[-1]


@pytest.mark.parametrize(
    ("change", "forms"),
    [
        pytest.param(attribute("GroupQueryAttention", "scale", 1.01), COMPUTED, id="scale"),
        pytest.param(swap(1, 2), [*COMPUTED, KEPT], id="new keys and values"),
        pytest.param(swap(3, 4), [*COMPUTED, KEPT], id="old keys and values"),
        pytest.param(on_cached(lambda _, node: node.replace_input_with(10, None)), COMPUTED[1:], id="mask dropped"),
        pytest.param(number("causal", 0), COMPUTED[:4] + COMPUTED[5:], id="not causal"),  # as windows are
        pytest.param(number("local_window_size", 4), COMPUTED[:4] + COMPUTED[5:], id="a window of five"),
        pytest.param(number("smooth_softmax", 1), COMPUTED, id="a sink"),
        pytest.param(number("kv_num_heads", 1), [*COMPUTED, KEPT], id="one group"),
        pytest.param(on_cached(one_place_back), [*COMPUTED, KEPT], id="one place back"),
        pytest.param(retype("Greater", "GreaterOrEqual"), [COMPUTED[4]], id="window one long"),
    ],
)
def test_a_wrong_attention_over_a_cache_is_named(
    plant: Callable[[Change], None], few_attentions: Callable[[Any], None], change: Change, forms: list[str]
) -> None:
    few_attentions(cached_rows(8))
    plant(change)
    assert failed(sweep(["cached_attention"], levels=["all"])) == forms


def test_a_wrong_soft_cap_over_a_cache_is_named(
    plant: Callable[[Change], None], few_attentions: Callable[[Any], None]
) -> None:
    few_attentions(cached_rows(8, softcap=5.0))
    plant(attribute("GroupQueryAttention", "softcap", 1.01))
    assert set(failed(sweep(["cached_attention"], levels=["all"]))) >= {"gaps", "causal"}


def test_a_wrong_soft_cap_is_named(plant: Callable[[Change], None], few_attentions: Callable[[Any], None]) -> None:
    few_attentions(rows(softcap=5.0)[1:])
    plant(attribute("Attention", "softcap", 1.01))
    report = sweep(["attention"], levels=["all"])
    assert failed(report) == [op.form for op in report.ops]


@pytest.mark.parametrize(
    ("name", "change", "forms"),
    [
        ("rms_norm", attribute("RMSNormalization", "epsilon", 2.0), ["mean 0"]),
        ("layer_norm", attribute("LayerNormalization", "epsilon", 0.5), ["mean 0", "mean 1"]),
        ("alibi", scale_weights(8, 1, 1), ["8 heads"]),
        ("sinusoidal", scale_weights(positions._LONGEST, 16, factor=1.000001), ["16 entries"]),
    ],
)
def test_a_wrong_norm_or_table_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Change, forms: list[str]
) -> None:
    def export(graph: Any) -> ir.Model:
        model = to_onnx(graph)
        change(model)
        return model

    monkeypatch.setattr(RUN, "to_onnx", export)
    assert set(forms) <= set(failed(sweep([name], levels=["all"])))


def test_interleaved_rotary_pairs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs (2i, 2i + 1), as the paper draws them, under the tables of ours: eager is as wrong, the oracle is not."""

    def interleaved(x: Any, cos: Any, sin: Any, nhead: int) -> Any:
        x = x.unflatten(-1, (nhead, -1))
        cos, sin = (torch.cat([half, half], dim=-1)[:, :, None] for half in (cos, sin))
        turned = x.unflatten(-1, (-1, 2)).flip(-1) * x.new_tensor([-1.0, 1.0])
        return (x * cos + turned.flatten(-2) * sin).flatten(-2)

    monkeypatch.setattr(positions, "rotate", interleaved)
    monkeypatch.setattr(positions, "ROTARY", {"plain": {}})
    report = sweep(["rotary"], levels=["all"])
    assert failed(report) == ["plain"]
    assert report.ops[0].torch_max_abs > 0.1


def test_far_buckets_by_another_law_are_named(plant: Callable[[Change], None]) -> None:
    plant(retype("Log", "Sqrt"))
    assert failed(sweep(["relative"], levels=["all"])) == ["both ways", "causal"]


# ------------------------------------------------ what cannot be compared is no pass


def test_an_op_that_cannot_be_exported_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(graph: Any) -> ir.Model:
        raise ExportError("no form of ONNX has it")

    monkeypatch.setattr(RUN, "to_onnx", export)
    report = sweep(["relu"])
    assert report.faults() == [f"relu, {dtype}: no form of ONNX has it" for dtype in ("float32", "float16")]
    assert [op.count for op in report.ops] == [0, 0]


def test_an_op_that_onnxruntime_does_not_load_fails(plant: Callable[[Change], None]) -> None:
    plant(retype("Relu", "NoSuchOp"))
    for fault in failed_faults(sweep(["relu"], levels=["all"]), 2):
        assert "onnxruntime does not load relu: " in fault


def test_an_op_that_onnxruntime_cannot_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_inputs(self) -> list[Any]:
            return [ort.NodeArg]

        def run(self, *_: Any) -> None:
            raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(ort.NodeArg, "name", "x", raising=False)
    monkeypatch.setattr(RUN, "_session", lambda *_: Session())
    for fault in failed_faults(sweep(["relu"], levels=["all"]), 2):
        assert fault.endswith("it cannot be run on relu (all): out of memory")


def test_a_result_of_another_shape_fails(plant: Callable[[Change], None]) -> None:
    def change(model: ir.Model) -> int:
        (node,) = (node for node in model.graph if node.op_type == "Relu")
        (reshape,) = (node for node in model.graph if node.op_type == "Reshape")
        model.graph.outputs[0] = node.outputs[0]
        node.outputs[0].name, reshape.outputs[0].name = "y", "z"
        return 1

    plant(change)
    for fault in failed_faults(sweep(["relu"], levels=["all"]), 2):
        assert "its shape is " in fault


def failed_faults(report: SweepReport, count: int) -> list[str]:
    assert not report.passed
    assert len(report.faults()) == count
    assert not any(op.count for op in report.ops)
    return report.faults()


def test_nothing_swept_is_no_pass() -> None:
    report = SweepReport(ops=(), levels=tuple(LEVELS))
    assert not report.passed
    assert report.faults() == ["nothing was swept"]


# ------------------------------------------------ asking


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"names": ["gleu"]},
            "unknown op 'gleu'; the nearest is 'glu' (known: activations, attention, cached_attention,",
        ),
        ({"names": []}, "no op is asked for; there are activations, "),
        ({"dtypes": ["float3"]}, "unknown dtype 'float3'; the nearest is 'float32' (known: float32, float16)"),
        ({"levels": ["basics"]}, "unknown optimization level 'basics'; the nearest is 'basic' (known: disabled,"),
        ({"levels": []}, "no optimization level is asked for; there are disabled, basic, extended, all"),
        ({"names": ["relu", "norms"], "dtypes": ["float16"]}, "layer_norm, rms_norm: only activations are swept in"),
    ],
)
def test_what_is_unknown_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(**arguments)
    assert str(refused.value).startswith(message)


def test_a_report_as_json_and_the_progress_told() -> None:
    told: list[tuple[int, int, str]] = []
    report = sweep(["rms_norm", "relu"], progress=lambda *now: told.append(now))
    assert told == [
        (0, 3, "relu"),
        (1, 3, "rms_norm of 20"),
        (2, 3, "rms_norm of 768"),
        (3, 3, "done"),
    ]
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["passed"] is True
    assert values["levels"] == ["disabled", "basic", "extended", "all", "runtime"]
    assert [op["op"] for op in values["ops"]] == ["relu", "relu", *["rms_norm"] * 4]
    assert values["ops"][2]["max_ulp"] is None
    assert values["ops"][0]["count"] == 5 * (len(grid("float32")) + 11)


def test_every_tolerance_has_its_reason() -> None:
    assert all(tolerance.reason for tolerance in SWEEPS.values())
