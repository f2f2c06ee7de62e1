"""The decoder in the form of other readers: its names, what it computes, and defects planted into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from tfm.errors import QuantizeError
from tfm.export.golden import golden_cases
from tfm.export.graphs import graphs_of
from tfm.export.merged_graph import MergedGraph, merged_graph
from tfm.export.verify.reports import GraphReport
from tfm.export.verify.samples import cases
from tfm.export.verify.verify import verify
from tfm.quantize import quantize_int8, save_onnx, storage, to_fp16, write_merged
from tfm.quantize.merged import merge

Files = Callable[..., tuple[MergedGraph, Path]]

BOTH = {"num_encoder_layers": 2, "num_decoder_layers": 2, "d_model": 32, "nhead": 2, "bos_token_id": 1}
KINDS: dict[str, dict[str, Any]] = {
    "learned positions": BOTH,
    "relative positions": BOTH | {"positions": "relative", "norm": "rms", "tgt_vocab_size": 7},
    # no multiple of 8, so that its cache has no room
    "heads of 6": BOTH | {"d_model": 12},
}
CHANGES: dict[str, Callable[[ir.Model], object]] = {"fp32": id, "int8": quantize_int8, "fp16": to_fp16}


@pytest.fixture
def files(make_model: Any, to_onnx_once: Any, tmp_path: Path) -> Files:
    """Both graphs of a model in a precision, and the one that is made of them."""

    def make(kind: str = "learned positions", precision: str = "fp32") -> tuple[MergedGraph, Path]:
        model = make_model(**KINDS[kind])
        paths = {}
        for graph in graphs_of(model):
            onnx_model = to_onnx_once(graph)
            CHANGES[precision](onnx_model)
            paths[graph.role] = tmp_path / f"{graph.file}_{precision}.onnx"
            save_onnx(onnx_model, paths[graph.role])
        graph = merged_graph(model)
        assert graph is not None
        return graph, write_merged(paths["encoder"], paths["decoder"])

    return make


def compare(graph: MergedGraph, path: Path, precision: str = "fp32", count: int = 4) -> GraphReport:
    return verify(graph, path, [*cases(graph, count=count), *golden_cases(graph)], precision=precision)


def test_names_and_shapes_are_those_of_optimum(files: Files) -> None:
    """In its order: it puts keys and values into the inputs by their places, layer by layer."""
    graph, path = files()
    assert path.name == "decoder_model_merged_fp32.onnx"
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [f"{layer}.{side}.{what}" for layer in "01" for side in ("decoder", "encoder") for what in ("key", "value")]
    assert [node.name for node in session.get_inputs()] == [
        "input_ids",
        "encoder_attention_mask",
        "encoder_hidden_states",
        *(f"past_key_values.{part}" for part in parts),
        "use_cache_branch",
    ]
    assert [node.name for node in session.get_outputs()] == ["logits", *(f"present.{part}" for part in parts)]
    assert [node.name for node in session.get_overridable_initializers()] == ["num_logits_to_keep"]
    shapes = {node.name: node.shape for node in session.get_inputs()}
    assert shapes["encoder_hidden_states"] == ["batch_size", "encoder_sequence", 32]
    assert shapes["past_key_values.0.decoder.key"] == ["batch_size", 2, "past_sequence", 16]
    # Another name than the state's, as there may be none yet.
    assert shapes["past_key_values.1.encoder.value"] == ["batch_size", 2, "past_encoder_sequence", 16]
    assert shapes["use_cache_branch"] == [1]
    named = [value.name for value in graph.inputs if value.default is None]
    assert named == list(shapes)
    assert [value.name for value in graph.outputs] == [node.name for node in session.get_outputs()]


@pytest.mark.parametrize("precision", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_eager(files: Files, kind: str, precision: str) -> None:
    """Op by op and at every level, where keys and values of the source are to be made and where they are given."""
    graph, path = files(kind, precision)
    report = compare(graph, path, precision)
    assert report.passed, report.gate.reason
    assert {op.op.path for op in report.ops} >= {f"decoder.layers.{layer}.cross_attn" for layer in range(2)}
    both = {bool(case[-2]) for case in cases(graph, count=4)}
    assert both == {bool(case[-2]) for case in golden_cases(graph)} == {False, True}


def test_a_step_goes_on_where_the_first_one_ended(files: Files) -> None:
    """As readers run it: no past, and then what it gave; the logits are those of the whole target at once."""
    graph, path = files()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(5)
    feeds = dict(zip([v.name for v in graph.inputs], (t.numpy() for t in graph.sample(generator, 3, 6)), strict=True))
    ids = feeds["input_ids"]
    feeds["num_logits_to_keep"] = np.array(0)
    (whole,) = session.run(["logits"], feeds)
    names = [node.name for node in session.get_outputs()]
    for place in range(6):
        feeds["input_ids"] = ids[:, place : place + 1]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        np.testing.assert_allclose(found.pop("logits")[:, 0], whole[:, place], rtol=1e-4, atol=1e-4)
        feeds |= {name.replace("present.", "past_key_values."): array for name, array in found.items()}
        feeds["use_cache_branch"] = np.array([True])
        # From now on it is looked at no more.
        feeds["encoder_hidden_states"] = np.full_like(feeds["encoder_hidden_states"], np.nan)


def test_large_weights_are_not_stored_again(files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "LIMIT", 1)
    graph, path = files()
    beside = {file.name for file in tmp_path.iterdir() if file.name.endswith("_data")}
    assert beside == {"encoder_model_fp32.onnx_data", "decoder_fp32.onnx_data"}
    weights = sum((tmp_path / name).stat().st_size for name in beside)
    assert path.stat().st_size < weights / 2
    report = compare(graph, path, count=0)
    assert report.passed, report.gate.reason


# ------------------------------------------------ defects


def choice(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "If")


def swap_keys_and_values(model: ir.Model) -> None:
    """What is projected comes out as the other."""
    projected = choice(model).attributes["else_branch"].as_graph()
    projected.outputs[0], projected.outputs[1] = projected.outputs[1], projected.outputs[0]


def swap_layers(model: ir.Model) -> None:
    """What is given of one layer goes to the other."""
    kept = choice(model).attributes["then_branch"].as_graph()
    first, second = (kept.outputs[index].producer() for index in (0, 2))
    assert first is not None
    assert second is not None
    one, other = first.inputs[0], second.inputs[0]
    first.replace_input_with(0, other)
    second.replace_input_with(0, one)


def turn_round(model: ir.Model) -> None:
    """Keys and values are made where they are given, and the other way round."""
    node = choice(model)
    negated = ir.node("Not", [node.inputs[0]])
    model.graph.insert_before(node, negated)
    node.replace_input_with(0, negated.outputs[0])


def make_each_time(model: ir.Model) -> None:
    """Whatever is given, keys and values are made of the state, which need not be the source's any more."""
    node = choice(model)
    cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.INT64})
    never = ir.node("Less", [cast.outputs[0], cast.outputs[0]])
    model.graph.insert_before(node, [cast, never])
    node.replace_input_with(0, never.outputs[0])


def other_state(model: ir.Model) -> None:
    """The state is negated on its way to the projections."""
    branch = choice(model).attributes["else_branch"].as_graph()
    state = next(value for value in model.graph.inputs if value.name == "encoder_hidden_states")
    negated = ir.node("Neg", [state])
    negated.outputs[0].name, negated.outputs[0].type = "negated", state.type
    for node in list(branch):
        for index, value in enumerate(node.inputs):
            if value is state:
                node.replace_input_with(index, negated.outputs[0])
    branch.insert_before(branch[0], negated)


def forget_a_token(model: ir.Model) -> None:
    """The mask that it fills in hides the first token of the target."""
    mask = next(value for node in model.graph for value in node.outputs if value.name == "decoder_attention_mask")
    users = list(mask.uses())
    axis = ir.Value(name="axis_one", const_value=ir.tensor(np.array(1), name="axis_one"))
    model.graph.register_initializer(axis)
    places = ir.node("CumSum", [mask, axis])
    one = next(value for name, value in model.graph.initializers.items() if name == "source.one")
    later = ir.node("Greater", [places.outputs[0], one])
    cast = ir.node("Cast", [later.outputs[0]], {"to": ir.DataType.INT64})
    producer = mask.producer()
    assert producer is not None
    model.graph.insert_after(producer, [places, later, cast])
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_keys_and_values, "layers.0.cross_attn"),
        (swap_layers, "layers.0.cross_attn"),
        (turn_round, "cannot be run"),  # attention over nothing
        (make_each_time, "layers.0.cross_attn"),
        (other_state, "layers.0.cross_attn"),
        (forget_a_token, "layers.0.self_attn"),
    ],
)
def test_a_planted_defect(files: Files, change: Callable[[ir.Model], None], named: str) -> None:
    graph, path = files()
    model = ir.load(path)
    change(model)
    ir.save(model, path)
    report = compare(graph, path, count=0)
    assert not report.passed
    assert named in report.gate.reason
    assert any(not output.passed for output in report.outputs)


# ------------------------------------------------ what is refused


def test_what_are_no_such_graphs(export_tiny: Any) -> None:
    both = {role: ir.load(one.path) for role, one in export_tiny(**BOTH).items()}
    other = ir.load(export_tiny(**BOTH | {"num_decoder_layers": 1})["encoder"].path)
    with pytest.raises(QuantizeError, match="is no decoder over an encoder"):
        merge(both["encoder"], ir.load(export_tiny(kind="decoder")["model"].path))
    with pytest.raises(QuantizeError, match=r"gives no present\.1\.encoder\.key: it is not the one of this decoder"):
        merge(other, ir.load(export_tiny(**BOTH)["decoder"].path))


def test_keys_that_are_not_made_of_the_last_state_alone(export_tiny: Any) -> None:
    encoder, decoder = (ir.load(one.path) for one in export_tiny(**BOTH).values())
    state, mask = encoder.graph.outputs[0], encoder.graph.inputs[1]
    cast = ir.node("Cast", [mask], {"to": ir.DataType.FLOAT})
    key = encoder.graph.outputs[1]
    added = ir.node("Add", [key, cast.outputs[0]])
    encoder.graph.extend([cast, added])
    name, key.name = key.name, "before"
    added.outputs[0].name, added.outputs[0].type = name, key.type
    encoder.graph.outputs[1] = added.outputs[0]
    assert state.name == "last_hidden_state"
    with pytest.raises(QuantizeError, match="made of the encoder's inputs, and not of its last state alone"):
        merge(encoder, decoder)


def test_only_what_has_an_encoder_has_it(make_model: Any) -> None:
    assert merged_graph(make_model(kind="decoder")) is None
    assert merged_graph(make_model(kind="encoder")) is None
