"""The textbook's variants: its residual form, its noise on positions, its constructor; exported, and verified there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.support.graph_edits import becomes
from tfm.errors import ConfigError
from tfm.export import Graph, verify
from tfm.export.graphs import DecoderGraph
from tfm.export.passes import OP_KEY
from tfm.export.verify.optimized import LEVELS
from tfm.export.verify.samples import cases
from tfm.model import Transformer, TransformerConfig, load_checkpoint, save_checkpoint
from tfm.model.layer import Layer
from tfm.quantize import quantize_int8

Array = np.ndarray
ExportTiny = Callable[..., dict[str, Any]]
MakeModel = Callable[..., Transformer]

EXACT = 1e-10  # float64 against float64, as in test_transformer.py
TERMS: dict[str, Any] = {"ntoken": 20, "nhead": 2, "nhid": 8, "num_layers": 2, "dropout": 0.3}

# ------------------------------------------------ y = act(Wx + b + F(x))

ARRANGEMENTS: list[dict[str, Any]] = [
    {"norm_first": False},
    {"norm_first": True},
    {"norm_first": True, "sandwich_norm": True},
    {"norm_first": True, "parallel_blocks": True},
]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
@pytest.mark.parametrize("residual", ["identity", "projected"])
def test_a_layer_is_its_formula(residual: str, arrangement: dict[str, Any]) -> None:
    """Its sub-layers, which test_transformer.py compares, are taken from the model; all between them is numpy."""
    torch.manual_seed(0)
    act = {"residual_activation": "tanh"} if residual == "projected" else {}
    sizes: dict[str, Any] = {"vocab_size": 1, "d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.5}
    config = TransformerConfig(kind="decoder", residual=residual, **sizes, **act, **arrangement)
    layer = Layer(config, cross=False).eval().double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}

    def norm(name: str, x: Array) -> Array:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def join(name: str, x: Array, y: Array) -> Array:
        if residual == "identity":
            return x + y
        return np.tanh(x @ weights[f"{name}.project.weight"].T + weights[f"{name}.project.bias"] + y)

    def attend(x: Array) -> Array:
        return layer.self_attn(torch.from_numpy(x), None)[0].numpy()

    def feed_forward(x: Array) -> Array:
        return layer.feed_forward(torch.from_numpy(x)).numpy()

    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        got = layer(x, None)[0].numpy()
        want = x.numpy()
        if config.parallel_blocks:
            normed = norm("self_attn_residual.norm", want)
            want = join("self_attn_residual", want, attend(normed) + feed_forward(normed))
        else:
            for name, part in (("self_attn_residual", attend), ("feed_forward_residual", feed_forward)):
                y = part(norm(f"{name}.norm", want) if config.norm_first else want)
                want = join(name, want, norm(f"{name}.inner", y) if config.sandwich_norm else y)
                want = want if config.norm_first else norm(f"{name}.norm", want)
    np.testing.assert_allclose(got, want, rtol=0, atol=EXACT)


def test_every_projection_learns(make_model: MakeModel) -> None:
    model = make_model(residual="projected").train()
    model(torch.arange(6).view(2, 3), torch.arange(6).view(2, 3)).sum().backward()
    of_residuals = {name: weight.grad for name, weight in model.named_parameters() if ".project." in name}
    assert len(of_residuals) == 2 * (2 + 3)  # a weight and a bias for each sub-layer
    assert all(grad is not None and grad.abs().sum() > 0 for grad in of_residuals.values())


# ------------------------------------------------ noise on positions


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_noise_is_in_training_alone(side: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 3, "d_model": 64, "nhead": 1, "dropout": 0.0, "max_positions": 512}
    torch.manual_seed(0)
    embedding = getattr(Transformer(TransformerConfig(position_noise=0.05, **sizes)), side).embedding
    table = embedding.position
    ids_BS, position_ids = torch.zeros(2, 512, dtype=torch.int64), torch.arange(512)[None]
    with torch.no_grad():
        embedding.token.weight.zero_()
        one, other = (embedding.train()(ids_BS, position_ids) - table for _ in range(2))
        assert torch.equal(embedding.eval()(ids_BS, position_ids), table.expand(2, -1, -1))
    # Of 32,768 draws the standard deviation is known to 0.4 % (1/√(2n)) and the mean to 0.006 σ: here five times that.
    for noise in (one, other):
        assert noise[0].std().item() == pytest.approx(0.05, rel=0.02)
        assert abs(noise.mean().item()) < 0.03 * 0.05
        assert noise.abs().amin(-1).lt(0.05).all()  # no row is without
        assert torch.equal(noise[0], noise[1])  # it is the position's, whichever token stands there
    correlation = torch.corrcoef(torch.stack([one[0].flatten(), other[0].flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.03  # drawn anew: 1/√n is 0.006


# ------------------------------------------------ in checkpoints


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_checkpoint_keeps_them(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model = make_model(residual="projected", residual_activation="silu", position_noise=0.1)
    save_checkpoint(model, tmp_path / name)
    loaded = load_checkpoint(tmp_path / name)
    assert loaded.config == model.config
    ids = torch.arange(6).view(2, 3)
    with torch.no_grad():
        assert torch.equal(loaded(ids, ids), model(ids, ids))


def test_a_configuration_from_before_is_read_as_it_was_meant() -> None:
    values = TransformerConfig(vocab_size=7).to_dict()
    for name in ("residual", "residual_activation", "position_noise"):
        del values[name]
    assert TransformerConfig.from_dict(json.loads(json.dumps(values))) == TransformerConfig(vocab_size=7)


# ------------------------------------------------ in ONNX

ENCODER = {"kind": "encoder", "residual": "projected"}
DECODER = {"kind": "decoder", "residual": "projected", "residual_activation": "squared_relu"}
BOTH = {"kind": "encoder-decoder", "residual": "projected"}
NOISE = {"position_noise": 0.1}

EXPORTED: list[tuple[dict[str, Any], str]] = [
    (ENCODER | NOISE, "Relu"),
    (ENCODER | {"residual_activation": "gelu", "norm_first": True, "sandwich_norm": True, "pooling": "mean"}, "Gelu"),
    (DECODER, "Relu·Mul"),
    (DECODER | {"residual_activation": "silu", "norm_first": True, "parallel_blocks": True}, "QuickGelu"),
    (BOTH | NOISE, "Relu"),
]


def half_of(graph: Graph) -> str:
    return "decoder" if isinstance(graph, DecoderGraph) else "encoder"


@pytest.mark.parametrize(("options", "form"), EXPORTED, ids=str)
def test_every_residual_activation_is_verified(export_tiny: ExportTiny, options: dict[str, Any], form: str) -> None:
    for exported in export_tiny(**options).values():
        report = verify(exported.graph, exported.path, cases(exported.graph))
        assert report.passed, report.first_fault
        assert {output.level for output in report.outputs} == set(LEVELS)
        ops = [op for op in report.promised if "_residual." in op.op.path]
        layer = f"{half_of(exported.graph)}.layers.0"
        sublayers = ["self_attn"] + ["cross_attn"] * (exported.graph.role == "decoder")
        sublayers += [] if "parallel_blocks" in options else ["feed_forward"]
        assert [str(op.op) for op in ops] == [f"activation {layer}.{name}_residual.activation" for name in sublayers]
        assert all(op.form == form and op.own.count > 0 and op.free.count > 0 for op in ops)


@pytest.mark.parametrize("options", [ENCODER, BOTH], ids=str)
def test_noise_leaves_the_graph_as_it_is(export_tiny: ExportTiny, options: dict[str, Any]) -> None:
    noisy = export_tiny(**options, **NOISE)
    for role, exported in export_tiny(**options).items():
        assert noisy[role].graph.model.config.position_noise == 0.1
        assert noisy[role].path.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize(("wrong", "sublayer"), [("Tanh", "cross_attn"), ("Identity", "feed_forward")])
def test_a_wrong_one_is_refused(export_tiny: ExportTiny, tmp_path: Path, wrong: str, sublayer: str) -> None:
    exported = export_tiny(**BOTH, **NOISE)["decoder"]
    name = f"activation decoder.layers.0.{sublayer}_residual.activation"
    model = ir.load(exported.path)
    becomes(name, wrong)(model)
    ir.save(model, tmp_path / "wrong.onnx")
    report = verify(exported.graph, tmp_path / "wrong.onnx", cases(exported.graph), levels=("disabled",))
    assert report.first_fault.startswith(f"{name}: ")


@pytest.mark.parametrize("options", [ENCODER, DECODER, BOTH], ids=str)
def test_int8_takes_the_projections_too(export_tiny: ExportTiny, tmp_path: Path, options: dict[str, Any]) -> None:
    for exported in export_tiny(**options).values():
        model = ir.load(exported.path)
        quantize_int8(model)
        layer = f"{half_of(exported.graph)}.layers.0"
        sublayers = ["self_attn", "feed_forward"] + ["cross_attn"] * (exported.graph.role == "decoder")
        nodes = {node.metadata_props.get(OP_KEY): node.op_type for node in model.graph}
        became = {nodes[f"linear {layer}.{name}_residual.project"] for name in sublayers}
        assert became == {"DynamicQuantizeMatMul"}
        ir.save(model, tmp_path / "int8.onnx")
        report = verify(exported.graph, tmp_path / "int8.onnx", cases(exported.graph), precision="int8")
        assert report.passed, report.first_fault


# ------------------------------------------------ Transformer(ntoken, nhead, nhid, num_layers, dropout)


def test_the_terms_are_a_configuration() -> None:
    want = TransformerConfig(
        vocab_size=20,
        nhead=2,
        d_model=8,
        dim_feedforward=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout=0.3,
    )
    assert TransformerConfig.from_terms(**TERMS) == want
    assert TransformerConfig.from_terms(20, 2, 8, 2).dropout == TransformerConfig(vocab_size=20).dropout
    for model in (
        Transformer(20, 2, 8, 2, 0.3),
        Transformer(**TERMS),
        Transformer(20, 2, nhid=8, dropout=0.3, num_layers=2),
    ):
        assert model.config == want
    logits = Transformer(**TERMS).eval()(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64))
    assert logits.shape == (3, 4, 20)
    assert Transformer(want).config is Transformer(config=want).config is want


CONFIG = TransformerConfig(vocab_size=20, d_model=8, nhead=2)
MIXED: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "missing a required argument: 'ntoken'"),
    ((20, 2, 8), {}, "missing a required argument: 'num_layers'"),
    ((20, 2, 8, 2, 0.1, 5), {}, "too many positional arguments"),
    ((20, 2, 8, 2), {"ntoken": 20}, "multiple values for argument 'ntoken'"),
    ((20, 2, 8, 2), {"d_model": 8}, "got an unexpected keyword argument 'd_model'"),
    ((CONFIG, 2), {}, "a configuration stands alone"),
    ((CONFIG,), {"ntoken": 20}, "a configuration stands alone"),
    ((), {"config": CONFIG, "dropout": 0.1}, "a configuration stands alone"),
    ((), {"ntoken": CONFIG}, "a configuration stands alone"),
    ((CONFIG.to_dict(),), {}, "missing a required argument: 'nhead'"),
]


@pytest.mark.parametrize(("args", "kwargs", "fault"), MIXED, ids=str)
def test_neither_configuration_nor_terms(args: tuple[Any, ...], kwargs: dict[str, Any], fault: str) -> None:
    message = (
        "make a Transformer of a TransformerConfig, Transformer(config), or of the terms "
        f"Transformer(ntoken, nhead, nhid, num_layers, dropout=0.1): {fault}"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Transformer(*args, **kwargs)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ntoken": 0}, "vocab_size must be at least 1, but is 0"),
        ({"nhead": 3}, "d_model must be a multiple of nhead, but 8 % 3 is 2"),
        ({"nhid": "8"}, "d_model must be int, but is '8'"),
        ({"num_layers": 0}, "num_encoder_layers must be at least 1, but is 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), but is 1.0"),
    ],
    ids=str,
)
def test_wrong_terms_are_told_by_both_names(change: dict[str, Any], fault: str) -> None:
    terms = "vocab_size is ntoken, d_model is nhid, num_encoder_layers and num_decoder_layers are num_layers"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{fault} ({terms})')}$"):
        Transformer(**TERMS | change)
