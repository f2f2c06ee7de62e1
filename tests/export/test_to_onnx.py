"""What is exported is the same function as eager, in every form a model takes, and says nothing of its machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from tests.support.recorded import record
from tfm.errors import ExportError
from tfm.export import OPSET, OPSETS, graphs_of, to_onnx, verify
from tfm.export.passes import OP_KEY
from tfm.export.verify.samples import cases
from tfm.model import Transformer
from tfm.ops import ACTIVATIONS, GATED

ExportTiny = Callable[..., dict[str, Any]]
MakeModel = Callable[..., Transformer]

REPO = Path(__file__).resolve().parents[2]
SINGLE = 2e-5  # float32 sums in another order, through two layers of weights of size 0.3: measured at most 3e-6

KINDS: list[dict[str, Any]] = [
    {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean", "pooler": True},
    {"kind": "encoder", "activation": "quick_gelu", "norm_first": True},
    {"kind": "decoder", "activation": "gelu_tanh", "positions": "learned", "num_decoder_layers": 2},
    {"kind": "decoder", "activation": "swiglu", "norm_first": True, "tie_embeddings": True},
    {"kind": "encoder-decoder", "tgt_vocab_size": 7},
    {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2},
]
BERT = {
    "kind": "encoder",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "scale_embeddings": False,
    "positions": "learned",
    "pooling": "cls",
    "normalize": True,
}


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def run(path: Path, graph: Any, inputs: list[torch.Tensor]) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, inputs, strict=True)}
    return session.run([value.name for value in graph.outputs], feeds)


def close(actual: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(actual, np.asarray(expected), atol=SINGLE, rtol=0)


@pytest.mark.parametrize("options", [*KINDS, BERT], ids=name_of)
def test_every_kind_is_verified_at_every_level(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    for exported in export_tiny(**options).values():
        report = verify(exported.graph, exported.path, cases(exported.graph))
        assert report.passed, report.first_fault
        assert {output.level for output in report.outputs} == {"disabled", "basic", "extended", "all", "runtime"}
        assert [str(op.op) for op in report.promised] == [str(call.op) for call in taps_of(exported.graph)]
        assert all(op.own.count > 0 and op.free.count > 0 and op.form for op in report.ops)


# What each activation becomes: one node wherever onnxruntime's CPU provider has a kernel for one.
FORMS = {
    "elu": "Elu",
    "gelu": "Gelu",
    "gelu_tanh": "Gelu",
    "hardswish": "HardSwish",
    "mish": "Exp·Add·Mul·Div·Add·Div",  # torch's Mish has no kernel and would become Softplus·Tanh·Mul
    "quick_gelu": "QuickGelu",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "silu": "QuickGelu",
    "softplus": "Softplus·Greater·Where",  # x itself beyond torch's threshold of 20
    "squared_relu": "Relu·Mul",
    "tanh": "Tanh",
    "glu": "Sigmoid",
    "reglu": "Relu",
    "geglu": "Gelu",
    "geglu_tanh": "Gelu",
    "swiglu": "QuickGelu",
}


def test_all_activations_are_listed() -> None:
    assert list(FORMS) == [*ACTIVATIONS, *GATED]


@pytest.mark.parametrize("activation", FORMS)
def test_every_activation(export_tiny: ExportTiny, activation: str) -> None:
    exported = export_tiny(kind="encoder", activation=activation)["model"]
    report = verify(exported.graph, exported.path, cases(exported.graph))
    assert report.passed, report.first_fault
    attention, activated = report.promised
    assert (attention.form, activated.form) == ("Attention", FORMS[activation])
    assert len(exported.path.read_bytes()) < 1e5


@pytest.mark.parametrize("options", KINDS, ids=name_of)
def test_batch_and_lengths_are_free(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    for exported in export_tiny(**options).values():
        for batch, length, past in [(1, 1, 0), (1, 1, 15), (5, 1, 7), (2, 16, 0), (1, 9, 7), (1, 2, 1)]:
            inputs = exported.graph.sample(generator, batch, length, past)
            with torch.no_grad():
                expected = exported.graph(*inputs)
            for actual, tensor in zip(run(exported.path, exported.graph, inputs), expected, strict=True):
                close(actual, tensor)


def test_a_row_of_a_batch_is_the_row_alone(export_tiny: ExportTiny) -> None:
    """Neither padding nor batch-mates change a row."""
    exported = export_tiny(**KINDS[0])["model"]
    ids, mask = exported.graph.sample(torch.Generator().manual_seed(6), 6, 16)
    together = run(exported.path, exported.graph, [ids, mask])
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = run(exported.path, exported.graph, [ids[row : row + 1, :length], mask[row : row + 1, :length]])
        close(together[0][row, :length], alone[0][0])
        close(together[1][row], alone[1][0])


def of_decoder(ids: torch.Tensor, mask: torch.Tensor, cache: list[torch.Tensor], keep: int = 0) -> list[torch.Tensor]:
    """What a decoder with positions takes, in order."""
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.size(1) :]
    return [ids, mask, places, *cache, torch.tensor(keep)]


@pytest.mark.parametrize("options", [KINDS[2], KINDS[3]], ids=name_of)
@pytest.mark.parametrize("room", [0, 16])
def test_decoding_step_by_step_is_the_full_pass(export_tiny: ExportTiny, options: dict[str, Any], room: int) -> None:
    """With a cache that grows, and with one that has room for all."""
    exported = export_tiny(**options)["model"]
    graph = exported.graph
    ids = torch.randint(19, (1, 16), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = graph.model(ids)
    cache = [torch.zeros(1, 2, room, 8)] * (len(graph.inputs) - 4)
    for start, stop in [(0, 4), (4, 5), (5, 6), (6, 13), (13, 16)]:
        inputs = of_decoder(ids[:, start:stop], torch.ones(1, stop, dtype=torch.int64), cache)
        logits, *presents = run(exported.path, graph, inputs)
        close(logits, expected[:, start:stop])
        assert {array.shape[2] for array in presents} == {max(stop, room)}
        cache = [torch.from_numpy(array) for array in presents]


@pytest.mark.parametrize("options", [KINDS[2], KINDS[3]], ids=name_of)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_lengths_go_together(export_tiny: ExportTiny, options: dict[str, Any], side: str) -> None:
    """Padded on either side; what is padded on the right leaves gaps in what is read later."""
    exported = export_tiny(**options)["model"]
    graph, lengths = exported.graph, [7, 2, 4]
    ids = torch.randint(19, (3, 12), generator=torch.Generator().manual_seed(17))
    empty = [torch.zeros(3, 2, 0, 8)] * (len(graph.inputs) - 4)
    padded, mask = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64)
    for row, length in enumerate(lengths):
        place = slice(7 - length, 7) if side == "left" else slice(length)
        padded[row, place], mask[row, place] = ids[row, :length], 1
    logits, *presents = run(exported.path, graph, of_decoder(padded, mask, empty))
    for row, length in enumerate(lengths):
        with torch.no_grad():
            close(logits[row][mask[row] == 1], graph.model(ids[row, None, :length])[0])
    for step in range(3):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.int64)], 1)
        new = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
        cache = [torch.from_numpy(array) for array in presents]
        logits, *presents = run(exported.path, graph, of_decoder(new, mask, cache))
        for row, length in enumerate(lengths):
            with torch.no_grad():
                close(logits[row, 0], graph.model(ids[row, None, : length + step + 1])[0, -1])


@pytest.mark.parametrize("options", [KINDS[2], KINDS[3]], ids=name_of)
def test_past_and_present_may_be_one_piece_of_memory(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    exported = export_tiny(**options)["model"]
    graph = exported.graph
    ids = torch.randint(19, (1, 9), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = graph.model(ids)
    session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    names = [value.name for value in graph.inputs]
    cache = {
        name: ort.OrtValue.ortvalue_from_numpy(np.full((1, 2, 11, 8), 9, np.float32))
        for name in names
        if "past" in name
    }
    for start, stop in [(0, 4), (4, 5), (5, 9)]:
        inputs = of_decoder(ids[:, start:stop], torch.ones(1, stop, dtype=torch.int64), [])
        binding = session.io_binding()
        for name, tensor in zip((*names[:3], names[-1]), inputs, strict=True):
            # What has a default is no input to bind_cpu_input.
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(tensor.numpy()))
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        close(binding.get_outputs()[-1].numpy(), expected[:, start:stop])
    assert all((value.numpy()[:, :, 9:] == 9).all() for value in cache.values())


@pytest.mark.parametrize("options", [KINDS[2], KINDS[4]], ids=name_of)
def test_as_many_logits_as_are_wanted(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    """Of the last tokens; all, where nobody says, and the input is not to be seen."""
    exported = list(export_tiny(**options).values())[-1]
    inputs = exported.graph.sample(torch.Generator().manual_seed(27), 2, 5)
    assert exported.graph.inputs[-1].name == "num_logits_to_keep"
    session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [value.name for value in exported.graph.inputs[:-1]]
    assert [value.name for value in session.get_overridable_initializers()] == ["num_logits_to_keep"]
    feeds = {v.name: x.numpy() for v, x in zip(exported.graph.inputs[:-1], inputs, strict=False)}
    whole, *presents = session.run(None, feeds)
    assert whole.shape[1] == 5
    for keep in (0, 1, 3, 5):
        logits, *again = session.run(None, feeds | {"num_logits_to_keep": np.array(keep)})
        close(logits, whole[:, -keep:])
        for present, same in zip(presents, again, strict=True):
            np.testing.assert_array_equal(present, same)


@pytest.mark.parametrize("head_size", [8, 4])
def test_heads_that_group_query_attention_refuses_have_another_form(make_model: MakeModel, head_size: int) -> None:
    (graph,) = graphs_of(make_model(kind="decoder", d_model=2 * head_size))
    (op,) = [node.op_type for node in to_onnx(graph).graph if "Attention" in node.op_type]
    assert op == ("GroupQueryAttention" if head_size == 8 else "Attention")
    dims = graph.inputs[1].shape, graph.outputs[1].shape[2]
    grown = "past_sequence + sequence"
    assert dims == ((("batch", "total_sequence"), "present_sequence") if head_size == 8 else (("batch", grown), grown))


@pytest.mark.parametrize("options", [KINDS[4], KINDS[5]], ids=name_of)
def test_step_by_step_over_a_padded_source_is_the_full_pass(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    exported = export_tiny(**options)
    source, decoder = exported["encoder"], exported["decoder"]
    config = source.graph.model.config
    src, mask = source.graph.sample(torch.Generator().manual_seed(8), 4, 11)
    tgt = torch.randint(config.target_vocab_size, (4, 16), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = source.graph.model(src, tgt, src_mask=mask)
    context = [torch.from_numpy(array) for array in run(source.path, source.graph, [src, mask])[1:]]
    cache = [torch.zeros(4, 2, 16, 8)] * (2 * config.num_decoder_layers)
    for step in range(16):
        all_BT = torch.ones(4, step + 1, dtype=torch.int64)
        inputs = [tgt[:, step : step + 1], all_BT, mask, *cache, *context, torch.tensor(1)]
        logits, *presents = run(decoder.path, decoder.graph, inputs)
        close(logits[:, 0], expected[:, step])
        cache = [torch.from_numpy(array) for array in presents]


@pytest.mark.parametrize("options", [*KINDS, BERT], ids=name_of)
def test_the_file_has_the_signature(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    types = {"int64": "tensor(int64)", "float32": "tensor(float)"}
    for exported in export_tiny(**options).values():
        session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        for found, told in ((session.get_inputs(), "inputs"), (session.get_outputs(), "outputs")):
            values = [value for value in exported.graph.signature()[told] if "default" not in value]
            assert [value.name for value in found] == [value["name"] for value in values]
            assert [value.type for value in found] == [types[value["dtype"]] for value in values]
            shapes = [tuple("batch" if dim == "batch_size" else dim for dim in value.shape) for value in found]
            assert shapes == [tuple(value["shape"]) for value in values]


@pytest.mark.parametrize("options", [*KINDS, BERT], ids=name_of)
def test_the_file_is_valid_onnx(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    for exported in export_tiny(**options).values():
        onnx.checker.check_model(exported.path)
        model = onnx.load(exported.path)
        assert model.producer_name == "tfm-export"
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
        assert model.graph.name == exported.graph.file


@pytest.mark.parametrize("options", [*KINDS, BERT], ids=name_of)
def test_the_file_says_nothing_of_the_machine(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    for exported in export_tiny(**options).values():
        content = exported.path.read_bytes()
        for trace in (str(REPO), str(Path.home()), torch.__file__, "site-packages", "stack_trace", "pkg.torch", ".py"):
            assert trace.encode() not in content, trace
        model = onnx.load(exported.path)
        assert not model.metadata_props
        assert not model.graph.metadata_props
        keys = {prop.key for node in model.graph.node for prop in node.metadata_props}
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        assert keys == {OP_KEY}
        assert not [value.name for value in values if value.metadata_props]
        assert not [tensor.name for tensor in model.graph.initializer if tensor.metadata_props]
        assert not [node.name for node in model.graph.node if node.doc_string]


def test_exporting_twice_gives_the_same_file(export_tiny: ExportTiny, make_model: MakeModel, tmp_path: Path) -> None:
    exported = export_tiny(**KINDS[1])["model"]
    (graph,) = graphs_of(make_model(**KINDS[1]))
    ir.save(to_onnx(graph), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize("opset", list(OPSETS)[1:])
@pytest.mark.parametrize("options", [KINDS[1], KINDS[5]], ids=name_of)
def test_every_opset_works(export_tiny: ExportTiny, options: dict[str, Any], opset: int) -> None:
    for exported in export_tiny(opset=opset, **options).values():
        assert {e.domain: e.version for e in onnx.load(exported.path).opset_import}[""] == opset
        report = verify(exported.graph, exported.path, cases(exported.graph))
        assert report.passed, report.first_fault


@pytest.mark.parametrize("opset", [7, OPSETS.start - 1, OPSETS.stop, 99])
def test_any_other_opset_is_refused(make_model: MakeModel, opset: int) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    known = f"{OPSETS.start} to {OPSETS[-1]}"
    with pytest.raises(ExportError, match=rf"opset {opset} is not supported; choose one of {known}"):
        to_onnx(graph, opset=opset)


def test_what_torch_cannot_export_is_an_export_error(make_model: MakeModel) -> None:
    model = make_model(kind="encoder")
    (graph,) = graphs_of(model)

    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model.encoder.layers[0].feed_forward.activation = Branches()
    with pytest.raises(ExportError, match="the model graph cannot be exported: "):
        to_onnx(graph)


def test_the_exporter_that_gives_nothing_is_an_export_error(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    (graph,) = graphs_of(make_model(kind="encoder"))
    with pytest.raises(ExportError, match="the exporter gave nothing"):
        to_onnx(graph)


def test_exporting_is_silent(make_model: MakeModel, capfd: pytest.CaptureFixture[str]) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    to_onnx(graph)
    assert capfd.readouterr() == ("", "")


def taps_of(graph: Any) -> list[Any]:
    return record(graph, cases(graph)[0])[1]
