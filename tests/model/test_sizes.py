"""Sizes that a configuration names are compared with the weights there are before anything is made of them."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support import odd_configs
from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.model import TransformerConfig, load_checkpoint
from tfm.model.formats import mapped

LITTLE = 128 << 10
"""KiB by which refusing may raise the greatest memory."""


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, odd_configs.Format]:
    return odd_configs.make_formats(tmp_path_factory.mktemp("formats"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped.GivingBack, "give_back", lambda self: None)  # which reads all of /proc/self/maps


def refused(form: odd_configs.Format, name: str, **change: Any) -> str:
    """The sentence with which a changed configuration is refused, in little time and memory."""
    odd_configs.apply(form, odd_configs.Case(name, tuple(((key,), value) for key, value in change.items())))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        with pytest.raises(TfmError) as caught:
            odd_configs.load(form, name)
    finally:
        form.write(form.content)
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LITTLE
    return str(caught.value)


DEPTHS = {
    "bart": "encoder_layers", "distilbert": "n_layers", "gpt2": "n_layer", "t5": "num_layers",
    "marian": "decoder_layers", "own": "num_encoder_layers", "own in .pt": "num_decoder_layers",
    "params": "n_layers", "litgpt": "n_layer", "nanogpt": "n_layer", "torch.nn": "num_encoder_layers",
    "gguf": "block_count", "gptj": "n_layer", "mt5": "num_layers", "codegen": "n_layer", "gpt_bigcode": "n_layer",
    "m2m_100": "encoder_layers", "mbart": "decoder_layers", "pegasus": "encoder_layers",
    "gpt_neo": "num_layers", "mpt": "n_layers",
}  # fmt: skip


@pytest.mark.parametrize("depth", [2**31, 200])
def test_depths_are_those_of_the_weights(formats: dict[str, odd_configs.Format], depth: int) -> None:
    for name, form in formats.items():
        if name in ("modules", "pooling", "generation"):
            continue
        key = DEPTHS.get(name, "num_hidden_layers")
        message = refused(form, name, **{key: depth})
        assert any(word in message for word in ("layer", "lack", "missing", "block_count")), (name, message)


WIDTHS = ["hidden_size", "d_model", "n_embd", "dim", "vocab_size", "intermediate_size", "d_ff", "encoder_ffn_dim"]
WIDTHS += [
    "ffn_dim",
    "ffn_hidden_size",
    "num_attention_heads",
    "n_head",
    "n_heads",
    "nhead",
    "head_dim",
    "d_kv",
    "dim_feedforward",
]


@pytest.mark.parametrize("size", [2**24, 2**63])
def test_widths_are_those_of_the_weights(formats: dict[str, odd_configs.Format], size: int) -> None:
    read = 0
    for name, form in formats.items():
        for key in WIDTHS:
            # of some, the embedding says how many tokens there are; a Llama of two heads tells none of their size
            unread = key == "vocab_size" and name in ("params", "litgpt", "vit", "nanogpt")
            unread |= key == "intermediate_size" and name in ("opt", "falcon")  # whose names for it are others
            if isinstance(form.content, dict) and key in form.content and not unread:
                refused(form, name, **{key: size})
                read += 1
    assert read > 60


@pytest.mark.parametrize("name", ["own", "own in .pt"])
def test_tables_of_sines_are_bounded(formats: dict[str, odd_configs.Format], name: str) -> None:
    for positions in (2**23, 2**24, 2**40):
        message = refused(formats[name], name, max_positions=positions)
        assert "positions" in message
    config = TransformerConfig(vocab_size=1, d_model=512, max_positions=1 << 16)
    assert config.max_positions == 1 << 16


def test_tables_of_marian_are_bounded(formats: dict[str, odd_configs.Format]) -> None:
    assert "a table of 16777216 positions" in refused(formats["marian"], "marian", max_position_embeddings=2**24)


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"positions": "relative", "relative_buckets": 2}, "relative positions need at least 4 relative_buckets"),
    ({"positions": "relative", "relative_max_distance": 16}, "a relative_max_distance above 16"),
    ({"positions": "rotary", "rotary_base": 1.0}, "rotary_base must be above 1"),
    ({"positions": "rotary", "rotary_base": 1e308}, "rotary_base must be at most 1e+18"),
    ({"logit_scale": float("nan")}, "logit_scale must be positive"),
    ({"attention_scale": 1e300}, "attention_scale must be at most"),
    ({"layer_norm_eps": 2.0}, "layer_norm_eps must be at most 1"),
    ({"nhead": 2**17}, "nhead must be at most 65536"),
    ({"d_model": 10**400}, "d_model must be at most 16777216, but is an integer of 1329 bits"),
    ({"embedding_size": 7}, "embedding_size must be even"),
    ({"sliding_window": 2, "sliding_layers": (6,)}, "sliding_layers must be in [0, 6), but has 6"),
    (
        {"positions": "rotary", "rotary_dim": 2, "rotary_scaling": {"kind": "dynamic", "factor": 2.0}},
        "dynamic rotary scaling needs heads of at least 4 entries",
    ),
    ({"positions": "rotary", "rotary_scaling": {"factor": float("nan")}}, "a factor from 1 to 1000000"),
    ({"positions": "rotary", "rotary_scaling": {"high_frequency_factor": 0.5}}, "below its high_frequency_factor"),
    ({"positions": "rotary", "rotary_scaling": {"beta_fast": float("inf")}}, "needs a beta_fast up to"),
]


@pytest.mark.parametrize(("change", "told"), NONSENSE, ids=lambda value: str(value)[:50])
def test_what_no_model_can_be_computed_with_is_refused(change: dict[str, Any], told: str) -> None:
    scaling = {"kind": "llama3", "factor": 2.0, "original_max_positions": 8}
    if "rotary_scaling" in change:
        change = change | {"rotary_scaling": scaling | change["rotary_scaling"]}
    with pytest.raises(ConfigError) as caught:
        TransformerConfig.from_dict({"vocab_size": 10, "d_model": 8, "nhead": 2} | change)
    assert told in str(caught.value)


FLAT: dict[str, list[str]] = {
    "bart": ["model.encoder.embed_positions.weight", "model.shared.weight", "final_logits_bias"],
    "bert": ["bert.embeddings.position_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"],
    "gpt2": ["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"],
    "roberta": ["embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"],
    "xlm-roberta": ["lm_head.bias"],
    "t5": ["shared.weight"],
    "vit": ["embeddings.position_embeddings"],
    "gemma2": ["model.norm.weight"],
}


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (1, 1, 1)])
@pytest.mark.parametrize("family", FLAT)
def test_weights_of_another_rank_are_refused(
    formats: dict[str, odd_configs.Format], tmp_path: Path, family: str, shape: tuple[int, ...]
) -> None:
    folder = formats[family].folder
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for name in FLAT[family]:
        if name in ("model.norm.weight", "lm_head.bias", "final_logits_bias") and shape == (1,):
            continue
        assert name in weights, sorted(weights)
        safetensors.torch.save_file(weights | {name: torch.ones(shape)}, tmp_path / "model.safetensors")
        with pytest.raises((CheckpointError, ConfigError)):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "weight"),
    [
        ("params", "consolidated.00.pth", "tok_embeddings.weight"),
        ("params", "consolidated.00.pth", "layers.0.attention.wq.weight"),
        ("litgpt", "lit_model.pth", "transformer.wte.weight"),
        ("litgpt", "lit_model.pth", "transformer.h.0.attn.qkv.weight"),
        ("torch.nn", "w.pt", "layers.0.self_attn.in_proj_weight"),
    ],
)
def test_weights_without_a_shape_are_refused(
    formats: dict[str, odd_configs.Format], name: str, file: str, weight: str
) -> None:
    form = formats[name]
    whole = torch.load(form.folder / file, weights_only=True)
    try:
        torch.save(whole | {weight: torch.tensor(1.0)}, form.folder / file)
        with pytest.raises((CheckpointError, ConfigError)):
            odd_configs.load(form, name)
    finally:
        torch.save(whole, form.folder / file)


def test_ties_of_other_dtypes_are_no_ties(formats: dict[str, odd_configs.Format], tmp_path: Path) -> None:
    folder = formats["bart"].folder
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.shared.weight"].to(torch.bfloat16)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert not load_checkpoint(tmp_path).config.tie_embeddings


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(json.dumps([{"type": "x.Pooling", "path": "../1_Pooling"}])),
        lambda path: path.write_text(json.dumps([{"type": "x.Pooling", "path": "/etc"}])),
        lambda path: path.write_text(json.dumps([{"type": "x.Pooling", "path": 3}])),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.with_name("1_Pooling").joinpath("config.json").write_text('{"pooling_mode_mean_tokens": 1}'),
    ],
    ids=range(5),
)
def test_modules_lead_to_no_other_place(formats: dict[str, odd_configs.Format], change: Callable[[Path], Any]) -> None:
    modules, pooling = formats["modules"], formats["pooling"]
    change(modules.folder / "modules.json")
    try:
        with pytest.raises((CheckpointError, ConfigError), match=r"modules\.json|1_Pooling"):
            load_checkpoint(modules.folder)
    finally:
        modules.write(modules.content)
        pooling.write(pooling.content)


def test_an_index_that_names_itself_is_refused(formats: dict[str, odd_configs.Format], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((formats["llama"].folder / "config.json").read_text())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(CheckpointError, match="which is JSON and holds no weights"):
        load_checkpoint(tmp_path)
    index.write_text('{"a":' * 100_000)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)


def test_yaml_that_grows_is_refused(formats: dict[str, odd_configs.Format]) -> None:
    form = formats["litgpt"]
    assert form.text is not None
    bomb = "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join(['*a'] * 9)}]}}\n" for i in range(9))
    texts = {bomb: "refers to parts of itself", "[" * 20_000: "YAML", "x" * 70_000: "larger than 64 KiB"}
    for text, told in texts.items():
        form.text(text.encode())
        with pytest.raises(CheckpointError, match=told):
            odd_configs.load(form, "litgpt")
    form.write(form.content)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is neither a folder nor a plain file"):
        load_checkpoint(tmp_path / "model.pt")
