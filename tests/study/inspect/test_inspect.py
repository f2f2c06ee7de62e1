"""A look inside tiny bundles, against what eager PyTorch does, seen by hooks and counted here in float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import tfm.model.attention as eager
from tfm.bundle.json_files import describe_file
from tfm.errors import BundleError, InputError, VerificationError
from tfm.export import to_onnx
from tfm.export.generic.graph import GenericGraph
from tfm.export.manifest import write_manifest
from tfm.model import Transformer
from tfm.model.activations import make_activation
from tfm.model.layer import Residual
from tfm.ops import gate_of
from tfm.quantize import quantize_int8
from tfm.quantize.methods.fp16 import to_fp16
from tfm.study.inspect import Insight, inspect

ATOL = 2e-6
"""Of weights, and of lengths by their size: float32, summed in two orders. Measured: at most 2.2e-7 and 4.7e-7."""

INT8, FP16 = 0.1, 5e-3
"""How far weights may be from fp32's. Measured: at most 0.028 and 1.4e-3."""

IDS = [1, 5, 9, 5, 11, 3, 2]

ENCODER = {
    "kind": "encoder",
    "activation": "gelu",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "positions": "learned",
}
KINDS: dict[str, dict[str, Any]] = {
    "post-norm": ENCODER,
    "relative": {"kind": "encoder", "positions": "relative", "norm_first": True, "activation": "squared_relu"},
    "llama": {
        "kind": "decoder",
        "positions": "rotary",
        "nhead": 4,
        "num_kv_heads": 2,
        "norm": "rms",
        "norm_first": True,
        "activation": "swiglu",
        "num_decoder_layers": 2,
        "feed_forward_bias": False,
        "out_bias": False,
    },
    "gemma": {
        "kind": "decoder",
        "positions": "rotary",
        "norm_first": True,
        "sandwich_norm": True,
        "attention_softcap": 5.0,
        "attention_scale": 0.4,
        "sliding_window": 3,
        "activation": "geglu_tanh",
    },
    "gpt-j": {"kind": "decoder", "norm_first": True, "parallel_blocks": True, "activation": "gelu_tanh"},
}
BOTH = {"kind": "encoder-decoder", "norm_first": True, "activation": "relu", "bos_token_id": 1, "eos_token_id": 2}


class Watched:
    """What eager did: the attention's arguments, each sub-layer's stream, and the feed-forward's values."""

    def __init__(self, model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attentions: list[dict[str, Any]] = []
        self.residuals: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.units: list[tuple[torch.Tensor, torch.Tensor]] = []
        attend, leave = eager.attend, Residual.leave

        def watch_attend(q: Any, k: Any, v: Any, mask: Any, **named: Any) -> Any:
            self.attentions.append({"q": q, "k": k, "mask": mask, **named})
            return attend(q, k, v, mask, **named)

        def watch_leave(residual: Any, x: Any, y: Any) -> Any:
            after = leave(residual, x, y)
            self.residuals.append((x, y if residual.inner is None else residual.inner(y), after))
            return after

        monkeypatch.setattr(eager, "attend", watch_attend)
        monkeypatch.setattr(Residual, "leave", watch_leave)
        arguments: list[torch.Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("feed_forward.activation"):
                module.register_forward_hook(lambda _, given, __: arguments.append(given[0]))
            if name.endswith("feed_forward.linear2"):
                module.register_forward_hook(lambda _, given, __: self.units.append((arguments.pop(), given[0])))

    def weights(self, index: int) -> np.ndarray:
        """softmax(QKᵀ · scale + mask), the softcap between, in float64."""
        seen = self.attentions[index]
        q, k = (seen[name].detach().double().numpy()[0] for name in "qk")
        k = np.repeat(k, len(q) // len(k), axis=0)
        score = q @ k.transpose(0, 2, 1) * (seen["scale"] or 1 / math.sqrt(q.shape[-1]))
        if seen["softcap"]:
            score = seen["softcap"] * np.tanh(score / seen["softcap"])
        if seen["mask"] is not None:
            mask = seen["mask"].detach().numpy()[0]
            score = np.where(mask, score, -np.inf) if mask.dtype == bool else score + mask.astype(np.float64)
        weight = np.exp(score - score.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)


@pytest.fixture
def watch(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    def run(ids: list[int], target: list[int] | None = None, **options: Any) -> Watched:
        model = make_model(**options)
        watched = Watched(model, monkeypatch)
        with torch.no_grad():
            segments = {"token_type_ids": torch.zeros(1, len(ids), dtype=torch.int64)}
            model(
                torch.tensor([ids]),
                None if target is None else torch.tensor([target]),
                **(segments if options.get("type_vocab_size") else {}),
            )
        return watched

    return run


def compare(insight: Insight, watched: Watched, activation: str) -> None:
    attentions = [one for stack in insight.stacks for one in stack.attentions]
    assert len(attentions) == len(watched.attentions) > 0
    for index, attention in enumerate(attentions):
        np.testing.assert_allclose(attention.weights_NST, watched.weights(index), rtol=0, atol=ATOL)
    sublayers = [one for stack in insight.stacks for one in stack.sublayers]
    assert len(sublayers) == len(watched.residuals) > 0
    for one, (x, y, after) in zip(sublayers, watched.residuals, strict=True):
        before, added, norm = (np.linalg.norm(t.double().numpy()[0], axis=-1) for t in (x, y, after))
        np.testing.assert_allclose(one.norm_S, norm, rtol=ATOL)
        np.testing.assert_allclose(one.added_S, added / before, rtol=ATOL)
    layers = [one for stack in insight.stacks for one in stack.feed_forwards]
    assert len(layers) == len(watched.units) > 0
    for one, (argument, hidden) in zip(layers, watched.units, strict=True):
        x = argument[0].double().requires_grad_()
        make_activation(gate_of(activation))(x).sum().backward()
        assert x.grad is not None
        flat, size = x.grad.abs().numpy() < 0.01, hidden[0].abs().double().numpy()
        assert one.count == size.shape[1]
        assert one.units.dead == flat.all(axis=0).mean()
        assert one.units.saturated == flat.mean()
        assert one.units.near_zero == (size <= 0.01 * math.sqrt((size**2).mean())).mean()
        assert one.units.zero == (size == 0).mean()


@pytest.mark.parametrize("name", KINDS)
def test_one_graph_as_eager(name: str, make_bundle: Any, watch: Any) -> None:
    options = KINDS[name]
    insight = inspect(make_bundle(**options), IDS)
    (stack,) = insight.stacks
    assert (insight.unseen, insight.output, stack.role, stack.ids) == ((), None, "model", tuple(IDS))
    watched = watch(IDS, **options)
    compare(insight, watched, options["activation"])
    assert stack.start_S is not None
    start = np.linalg.norm(watched.residuals[0][0].double().numpy()[0], axis=-1)
    np.testing.assert_allclose(stack.start_S, start, rtol=ATOL)


def test_an_encoder_decoder_as_eager(make_bundle: Any, watch: Any) -> None:
    insight = inspect(make_bundle(**BOTH), IDS)
    encoder, decoder = insight.stacks
    assert (encoder.role, decoder.role, decoder.ids[0], insight.unseen) == ("encoder", "decoder", 1, ())
    assert len(decoder.ids) > 1
    compare(insight, watch(IDS, list(decoder.ids), **BOTH), "relu")
    assert [(one.path, one.over) for one in decoder.attentions] == [
        ("decoder.layers.0.self_attn", "decoder"),
        ("decoder.layers.0.cross_attn", "encoder"),
    ]
    assert [one.path for one in decoder.sublayers] == [
        f"decoder.layers.0.{name}" for name in ("self_attn", "cross_attn", "feed_forward")
    ]


def test_masks_are_read_off_the_graph(make_bundle: Any) -> None:
    """Of 7 tokens under a window of 3, all but the first have a choice among at most 3."""
    (stack,) = inspect(make_bundle(**KINDS["gemma"]), IDS).stacks
    for head in stack.attentions[0].heads:
        assert 0 < head.entropy <= math.log(3)
    weights_NST = stack.attentions[0].weights_NST.astype(np.float64)
    entropy_NS = -(weights_NST * np.log(np.where(weights_NST > 0, weights_NST, 1))).sum(-1)
    count_S = np.array([1, 2, 3, 3, 3, 3, 3])
    for head, entropy_S in zip(stack.attentions[0].heads, entropy_NS, strict=True):
        assert head.relative == pytest.approx((entropy_S[1:] / np.log(count_S[1:])).mean(), rel=1e-6)


def test_blocks_side_by_side_have_one_residual(make_bundle: Any) -> None:
    (stack,) = inspect(make_bundle(**KINDS["gpt-j"]), IDS).stacks
    (one,) = stack.sublayers
    assert set(one.path.split(" + ")) == {"decoder.layers.0.self_attn", "decoder.layers.0.feed_forward"}


def test_a_text(make_bundle: Any) -> None:
    insight = inspect(make_bundle(**ENCODER), "a b c b")
    assert (insight.text, insight.stacks[0].tokens) == ("a b c b", ("<s>", "a", "b", "c", "b", "</s>"))
    assert insight.stacks[0].ids == (1, 4, 5, 6, 5, 2)


def test_the_json_is_whole(make_bundle: Any) -> None:
    insight = inspect(make_bundle(**BOTH), IDS)
    content = json.loads(json.dumps(insight.to_json(), allow_nan=False))
    assert (content["schema"], content["kind"], content["activation"]) == (1, "encoder-decoder", "relu")
    encoder, decoder = content["stacks"]
    head = encoder["attentions"][0]["heads"][0]
    assert set(head) == {"entropy", "relative_entropy", "strongest", "label", "share"}
    assert set(encoder["feed_forwards"][0]) == {"op", "units", "dead", "saturated", "near_zero", "zero"}
    assert "weights" not in encoder["attentions"][0]
    norms = decoder["residual"]["sublayers"][-1]["norm"]
    assert norms["mean"] == pytest.approx(np.mean(norms["tokens"]))
    weights = insight.to_json(weights=True)["stacks"][1]["attentions"][1]["weights"]
    np.testing.assert_array_equal(np.float32(weights), insight.maps["decoder.layers.0.cross_attn"])


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("  ", ENCODER, "the text is empty"),
        ("a " * 20, ENCODER, "the text has 22 tokens, but .* reads at most 16; shorten it"),
        ([], ENCODER, "has no tokens"),
        ([4, 19], ENCODER, r"ids must be in \[0, 19\)"),
        ("a b", {**ENCODER, "text": False}, "has no tokenizer.json"),
    ],
)
def test_what_cannot_be_read(text: Any, options: dict[str, Any], said: str, make_bundle: Any) -> None:
    with pytest.raises(InputError, match=said):
        inspect(make_bundle(**options), text)


def test_arrays_are_no_text(toys: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes x, and a look inside is one at how a text is read"):
        inspect(toys.write_bundle(tmp_path / "tower", "tower"), IDS)


def test_single_words(make_bundle: Any) -> None:
    folder = make_bundle(**BOTH)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["generation"]["split_on_whitespace"] = True
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="reads single words; give one of 'a b'"):
        inspect(folder, "a b")
    assert inspect(folder, " a ").stacks[0].tokens == ("<s>", "a", "</s>")


def test_an_unknown_precision(make_bundle: Any) -> None:
    with pytest.raises(BundleError, match="has no 'int3' graph to look into; it has: fp32"):
        inspect(make_bundle(**ENCODER), IDS, precision="int3")


def test_an_altered_file(make_bundle: Any) -> None:
    folder = make_bundle(**ENCODER)
    path = folder / "onnx" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="was altered"):
        inspect(folder, IDS)


def edit(folder: Path, change: Callable[[ir.Model], None]) -> None:
    """Change a bundle's graph, and what its manifest says of the file."""
    path = folder / "onnx" / "model.onnx"
    model = ir.load(path)
    change(model)
    ir.save(model, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["onnx/model.onnx"] = describe_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_graph_that_names_nothing(make_bundle: Any) -> None:
    folder = make_bundle(**ENCODER)
    edit(folder, lambda model: [node.metadata_props.clear() for node in model.graph])
    with pytest.raises(BundleError, match="do not say which node is which op"):
        inspect(folder, IDS)


def test_a_graph_that_names_its_attention_alone(make_bundle: Any) -> None:
    def forget(model: ir.Model) -> None:
        for node in model.graph:
            if not node.metadata_props.get("tfm.op", "").startswith("attention"):
                node.metadata_props.clear()

    folder = make_bundle(**ENCODER)
    edit(folder, forget)
    insight = inspect(folder, IDS)
    assert len(insight.stacks[0].attentions) == 1
    assert insight.stacks[0].feed_forwards == insight.stacks[0].sublayers == ()
    assert insight.unseen == ("the residual stream of the model is not shown: no Add of a named sub-layer was found",)


def test_an_activation_that_nobody_knows(make_bundle: Any) -> None:
    folder = make_bundle(**ENCODER)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["activation"] = "swish9"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    insight = inspect(folder, IDS)
    assert insight.stacks[0].feed_forwards == ()
    assert insight.unseen == (
        "units of the model are not counted: the bundle's configuration names 'swish9', which is unknown",
    )


def test_a_value_that_is_not_finite(make_bundle: Any) -> None:
    def spoil(model: ir.Model) -> None:
        bias = model.graph.initializers["model.encoder.layers.0.self_attn.in_proj.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(np.full_like(bias.const_value.numpy(), np.nan), name=bias.name)

    folder = make_bundle(**ENCODER)
    edit(folder, spoil)
    with pytest.raises(VerificationError, match="not finite"):
        inspect(folder, IDS)


class Foreign(torch.nn.Module):
    """A module of PyTorch's own layers, one of which gives its weights and so is spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(19, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)


def test_any_module_that_reads_ids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    axes = {0: "batch", 1: "sequence"}
    ids = torch.randint(19, (2, 12))
    examples = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7]])).long()}
    module = Foreign().eval()
    graph = GenericGraph(module, examples, {"input_ids": axes, "attention_mask": axes})
    (tmp_path / "onnx").mkdir()
    path = tmp_path / "onnx" / "model.onnx"
    ir.save(to_onnx(graph), path)
    write_manifest(tmp_path, graph.config, "module", [graph], {"fp32": {"model": path}}, 24, [])
    insight = inspect(tmp_path, IDS)
    (stack,) = insight.stacks
    assert [one.path for one in stack.attentions] == [f"encoder.layers.{layer}.self_attn" for layer in (0, 1)]
    assert [one.path for one in stack.sublayers] == [
        f"encoder.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn", "linear2")
    ]
    assert insight.unseen == ("units of the model are not counted: the bundle's configuration names no activation",)
    seen: list[np.ndarray] = []
    for layer in module.encoder.layers:
        layer.register_forward_hook(lambda _, __, after: seen.append(after[0].double().numpy()))
    with torch.no_grad():
        module.encoder(module.embed(torch.tensor([IDS])), mask=torch.zeros(7, 7))  # off its fast path
    after = [np.linalg.norm(x, axis=-1) for x in seen]
    np.testing.assert_allclose(stack.sublayers[1].norm_S, after[0], rtol=ATOL)
    np.testing.assert_allclose(stack.sublayers[3].norm_S, after[1], rtol=ATOL)


@pytest.mark.parametrize(
    ("precision", "change", "far"),
    [("int8", quantize_int8, INT8), ("fp16", to_fp16, FP16)],
)
def test_other_precisions(precision: str, change: Callable[[ir.Model], Any], far: float, make_bundle: Any) -> None:
    folder = make_bundle(**KINDS["llama"])
    exact = inspect(folder, IDS)
    name = f"onnx/model_{precision}.onnx"
    model = ir.load(folder / "onnx" / "model.onnx")
    change(model)
    ir.save(model, folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"][precision] = {"model": name}
    manifest["files"][name] = describe_file(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = inspect(folder, IDS, precision=precision)
    assert (found.precision, found.unseen) == (precision, ())
    assert len(found.stacks[0].sublayers) == len(exact.stacks[0].sublayers) == 4
    assert len(found.stacks[0].feed_forwards) == 2
    for one, other in zip(found.stacks[0].attentions, exact.stacks[0].attentions, strict=True):
        assert 0 < np.abs(one.weights_NST - other.weights_NST).max() < far
