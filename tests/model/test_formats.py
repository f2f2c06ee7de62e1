"""Formats of checkpoint: each against the module it was saved from, and each one's malformed twin refused."""

import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.model import Transformer, TransformerConfig, load_checkpoint, save_checkpoint

# float32 on both sides: a few layers of sums of some twenty terms of order 1, each rounded at 6e-8
SINGLE = 1e-5

SIZES: dict[str, Any] = {"vocab_size": 11, "d_model": 8, "nhead": 2, "dim_feedforward": 12, "max_positions": 16}


def randomise(module: nn.Module) -> nn.Module:
    """Make every weight random, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0))
    return module.eval()


def huggingface(family: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        config = transformers.AutoConfig.for_model(family, **options)
        return randomise(transformers.AutoModelForCausalLM.from_config(config))


def llama(**options: Any) -> nn.Module:
    sizes = {
        "vocab_size": 29,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 28,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
    }
    return huggingface("llama", **(sizes | options))


def ours(**options: Any) -> Transformer:
    model = randomise(
        Transformer(TransformerConfig(**(SIZES | {"num_encoder_layers": 1, "kind": "encoder"} | options)))
    )
    assert isinstance(model, Transformer)
    return model


@torch.no_grad()
def same_logits(model: Transformer, module: nn.Module) -> None:
    """On ragged rows, padded on either side, and in steps."""
    ids_BS = torch.randint(model.config.vocab_size, (3, 13), generator=torch.Generator().manual_seed(1))
    want = module(input_ids=ids_BS).logits
    torch.testing.assert_close(model(ids_BS), want, rtol=0, atol=SINGLE)
    past = None
    for start, end in [(0, 4), (4, 5), (5, 13)]:
        logits, past = model.decoder(ids_BS[:, start:end], past=past)
        torch.testing.assert_close(logits, want[:, start:end], rtol=0, atol=SINGLE)


def refused(path: Path | str, kind: type[TfmError] = CheckpointError, **options: Any) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(kind) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert len(message) < 700
    return message


# A bare state_dict with --config, and wrappers' prefixes


def test_state_dict_with_a_configuration_elsewhere(tmp_path: Path) -> None:
    model = ours()
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps(model.config.to_dict()))
    loaded = load_checkpoint(tmp_path / "weights" / "w.pt", config=tmp_path / "c.json")
    assert loaded.config == model.config
    assert "name one with --config" in refused(tmp_path / "weights" / "w.pt")
    assert "there is no configuration at" in refused(tmp_path / "weights" / "w.pt", config=tmp_path / "d.json")
    (tmp_path / "c.json").write_text("[]")
    assert "its config is a list, not a dict" in refused(tmp_path / "weights" / "w.pt", config=tmp_path / "c.json")


def test_heads_are_not_told_twice(tmp_path: Path) -> None:
    save_checkpoint(ours(), tmp_path / "m.pt")
    assert "nhead (--nhead) is for a state_dict of torch.nn's modules" in refused(
        tmp_path / "m.pt", ConfigError, nhead=2
    )


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_prefixes_are_stripped(tmp_path: Path, prefix: str, key: str | None) -> None:
    model = ours()
    weights: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "step": 3, "optimizer": {}}, tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    loaded = load_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_prefix_of_a_compiled_part(tmp_path: Path) -> None:
    model = ours()
    weights = {
        name.replace("encoder.layers.0.", "encoder.layers.0._orig_mod."): w for name, w in model.state_dict().items()
    }
    torch.save({"config": model.config.to_dict(), "state_dict": weights}, tmp_path / "w.pt")
    assert load_checkpoint(tmp_path / "w.pt").config == model.config


def test_prefix_that_only_some_have_stays(tmp_path: Path) -> None:
    model = ours()
    weights = {("module." if "norm" in name else "") + name: w for name, w in model.state_dict().items()}
    torch.save({"config": model.config.to_dict(), "state_dict": weights}, tmp_path / "w.pt")
    assert "not in the model: module.encoder.layers.0" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_wrapped_huggingface_model(tmp_path: Path, prefix: str) -> None:
    """Its own names begin with `model.`, which must stay; a wrapper's goes."""
    module = llama()
    torch.save({prefix + name: w for name, w in module.state_dict().items()}, tmp_path / "w.pt")
    module.config.save_pretrained(tmp_path)
    same_logits(load_checkpoint(tmp_path / "w.pt"), module)


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_half_precision_is_kept(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = ours().to(dtype)
    save_checkpoint(model, tmp_path / name)
    loaded = load_checkpoint(tmp_path / name).state_dict()
    assert {value.dtype for value in loaded.values()} == {dtype}
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def test_half_precision_of_huggingface_is_kept(tmp_path: Path) -> None:
    module = llama().to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    assert {value.dtype for value in load_checkpoint(tmp_path).state_dict().values()} == {torch.bfloat16}


# nanoGPT


def nanogpt(*, bias: bool, prefix: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """A GPT-2, and the same weights as nanoGPT's train.py saves them: matrices are those of nn.Linear."""
    module = huggingface(
        "gpt2", vocab_size=29, n_embd=24, n_head=3, n_layer=2, n_positions=16, activation_function="gelu"
    )
    if not bias:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
    weights = {name: w.detach().clone() for name, w in module.state_dict().items()}
    for name in weights:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weights[name] = weights[name].T.contiguous()
    weights = {prefix + name: w for name, w in weights.items() if bias or not name.endswith("bias")}
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "bias": bias, "vocab_size": 29, "dropout": 0.0}
    return module, {
        "model": weights,
        "optimizer": {"state": {}},
        "model_args": sizes,
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "x", "eval_interval": 5},
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(tmp_path: Path, bias: bool, prefix: str) -> None:
    module, content = nanogpt(bias=bias, prefix=prefix)
    torch.save(content, tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        model = load_checkpoint(path)
        assert (model.config.tie_embeddings, model.config.qkv_bias, model.config.norm_bias) == (True, bias, bias)
        same_logits(model, module)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"n_head": ...}, ConfigError, "a nanoGPT configuration needs 'n_head', which this one lacks"),
        (
            {"n_kv_head": 1},
            ConfigError,
            "nanoGPT with n_kv_head = 1 is not supported; the nearest known field is 'n_head'",
        ),
        ({"n_layer": 3}, CheckpointError, "missing: decoder.layers.2."),
        ({"bias": False}, CheckpointError, "not in the model: decoder.layers.0.self_attn_residual.norm.bias"),
    ],
    ids=str,
)
def test_malformed_nanogpt(tmp_path: Path, change: dict[str, Any], kind: type[TfmError], told: str) -> None:
    _, content = nanogpt(bias=True)
    arguments = content["model_args"] | change
    content["model_args"] = {key: value for key, value in arguments.items() if value is not ...}
    torch.save(content, tmp_path / "ckpt.pt")
    assert told in refused(tmp_path / "ckpt.pt", kind)


# Meta's and llama2.c's


def neighbors(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys as Meta has them: what Hugging Face's conversion undoes."""
    return weight.view(heads, 2, -1, weight.size(1)).transpose(1, 2).reshape(weight.shape)


def as_meta(module: nn.Module) -> dict[str, Tensor]:
    config, weights = module.config, module.state_dict()
    named = {
        "tok_embeddings.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
        "rope.freqs": torch.ones(3),
    }
    for layer in range(config.num_hidden_layers):
        theirs, name = f"model.layers.{layer}", f"layers.{layer}"
        named |= {
            f"{name}.attention_norm.weight": weights[f"{theirs}.input_layernorm.weight"],
            f"{name}.ffn_norm.weight": weights[f"{theirs}.post_attention_layernorm.weight"],
            f"{name}.attention.wv.weight": weights[f"{theirs}.self_attn.v_proj.weight"],
            f"{name}.attention.wo.weight": weights[f"{theirs}.self_attn.o_proj.weight"],
            f"{name}.feed_forward.w1.weight": weights[f"{theirs}.mlp.gate_proj.weight"],
            f"{name}.feed_forward.w2.weight": weights[f"{theirs}.mlp.down_proj.weight"],
            f"{name}.feed_forward.w3.weight": weights[f"{theirs}.mlp.up_proj.weight"],
        }
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            weight = weights[f"{theirs}.self_attn.{part}_proj.weight"]
            named[f"{name}.attention.w{part}.weight"] = neighbors(weight, heads)
    return {name: weight.detach().clone() for name, weight in named.items()}


PARAMS: dict[str, Any] = {
    "dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": -1,
    "multiple_of": 4,
    "norm_eps": 1e-5,
}

BY_COLUMNS = ("wo.weight", "w2.weight")


def split(weights: dict[str, Tensor], parts: int, *, embedding_by_rows: bool) -> list[dict[str, Tensor]]:
    """Spread weights as model parallelism does."""
    shards: list[dict[str, Tensor]] = [{} for _ in range(parts)]
    for name, weight in weights.items():
        columns = name.endswith(BY_COLUMNS) or (name.startswith("tok_") and not embedding_by_rows)
        pieces = [weight] * parts if weight.ndim < 2 else weight.chunk(parts, dim=int(columns))
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


@pytest.mark.parametrize("tied", [False, True])
def test_meta_in_one_file(tmp_path: Path, tied: bool) -> None:
    module = llama(tie_word_embeddings=tied)
    torch.save(as_meta(module), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    for path in (tmp_path, tmp_path / "consolidated.00.pth"):
        model = load_checkpoint(path)
        assert (model.config.tie_embeddings, model.config.max_positions) == (tied, 2048)
        same_logits(model, module)


def test_meta_with_all_heads_its_own(tmp_path: Path) -> None:
    module = llama(num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    safetensors.torch.save_file(as_meta(module), tmp_path / "x.safetensors")
    params = {key: value for key, value in PARAMS.items() if key != "n_kv_heads"}
    (tmp_path / "p.json").write_text(json.dumps(params | {"rope_theta": 500000.0, "max_seq_len": 20}))
    model = load_checkpoint(tmp_path / "x.safetensors", config=tmp_path / "p.json")
    assert model.config.max_positions == 20
    same_logits(model, module)


def test_meta_with_scaled_positions(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    module = llama(rope_parameters=rope, max_position_embeddings=131072, hidden_size=64)
    torch.save(as_meta(module), tmp_path / "consolidated.00.pth")
    params = PARAMS | {"dim": 64, "rope_theta": 500000.0, "use_scaled_rope": True}
    (tmp_path / "params.json").write_text(json.dumps(params))
    same_logits(load_checkpoint(tmp_path), module)


@pytest.mark.parametrize("embedding_by_rows", [False, True])
def test_meta_in_parts(tmp_path: Path, embedding_by_rows: bool) -> None:
    module = llama(vocab_size=30)
    for index, shard in enumerate(split(as_meta(module), 2, embedding_by_rows=embedding_by_rows)):
        torch.save(shard, tmp_path / f"consolidated.{index:02}.pth")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    for path in (tmp_path, tmp_path / "consolidated.01.pth"):
        same_logits(load_checkpoint(path), module)
    (tmp_path / "consolidated.00.pth").unlink()
    assert "lacks consolidated.00.pth, one of 2 files" in refused(tmp_path / "consolidated.01.pth")
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.999999999999.pth")
    said = refused(tmp_path / "consolidated.999999999999.pth")  # at once: no list of as many names is made
    assert "lacks consolidated.000000000000.pth, one of 1000000000000 files" in said


def test_meta_in_parts_that_do_not_go_together(tmp_path: Path) -> None:
    shards = split(as_meta(llama(vocab_size=30)), 2, embedding_by_rows=True)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    torch.save(shards[0], tmp_path / "consolidated.00.pth")
    torch.save(shards[1] | {"norm.bias": torch.ones(24)}, tmp_path / "consolidated.01.pth")
    assert "hold weights of different names" in refused(tmp_path)
    torch.save(shards[1] | {"layers.0.attention.wo.weight": torch.ones(5, 5)}, tmp_path / "consolidated.01.pth")
    assert "the parts of layers.0.attention.wo.weight do not go together: [(24, 12), (5, 5)]" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"dim": ...}, ConfigError, "a Llama configuration needs 'dim', which this one lacks"),
        ({"moe": {"num_experts": 8}}, ConfigError, "Llama with moe = {'num_experts': 8} is not supported"),
        ({"n_layers": 3}, CheckpointError, "the weights lack decoder.layers.2.self_attn.wq.weight"),
        ({"n_heads": 5}, ConfigError, "d_model must be a multiple of nhead, but 24 % 5 is 4"),
        ({"n_heads": 5, "n_kv_heads": 1, "head_dim": 4}, CheckpointError, "wq.weight has 24 rows, not 5 heads"),
        ({"n_heads": "4"}, ConfigError, "params.json: n_heads must be an integer from 1 to 65536, but is '4'"),
        (
            {"use_scaled_rope": True, "rope_scaling_factor": "8"},
            ConfigError,
            "rope_scaling_factor must be a number",
        ),
    ],
    ids=str,
)
def test_malformed_meta(tmp_path: Path, change: dict[str, Any], kind: type[TfmError], told: str) -> None:
    torch.save(as_meta(llama()), tmp_path / "consolidated.00.pth")
    values = {key: value for key, value in (PARAMS | change).items() if value is not ...}
    (tmp_path / "params.json").write_text(json.dumps(values))
    assert told in refused(tmp_path, kind)


def test_meta_without_or_with_broken_params(tmp_path: Path) -> None:
    weights = as_meta(llama())
    torch.save(weights, tmp_path / "consolidated.00.pth")
    assert "params.json is missing or not JSON" in refused(tmp_path)
    (tmp_path / "params.json").write_text("{")
    assert "params.json is missing or not JSON" in refused(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    del weights["layers.0.feed_forward.w1.weight"]
    torch.save(weights, tmp_path / "consolidated.00.pth")
    assert "the weights lack the matrix layers.0.feed_forward.w1.weight" in refused(tmp_path)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_llama2_c(tmp_path: Path, prefix: str) -> None:
    module = llama(tie_word_embeddings=True)
    weights = {prefix + name: w for name, w in as_meta(module).items() if name != "rope.freqs"}
    weights |= {prefix + "freqs_cos": torch.ones(2), prefix + "freqs_sin": torch.ones(2)}
    arguments = {
        "dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 29,
        "multiple_of": 32,
        "max_seq_len": 16,
        "dropout": 0.0,
    }
    torch.save({"model": weights, "model_args": arguments, "iter_num": 1, "config": {}}, tmp_path / "ckpt.pt")
    model = load_checkpoint(tmp_path / "ckpt.pt")
    assert (model.config.max_positions, model.config.tie_embeddings) == (16, True)
    same_logits(model, module)


# litgpt's

LITGPT: dict[str, Any] = {
    "name": "Llama-2-7b-hf",
    "hf_config": {"org": "meta-llama", "name": "Llama-2-7b-hf"},
    "block_size": 32,
    "n_layer": 2,
    "n_embd": 24,
    "vocab_size": 27,
    "padded_vocab_size": 29,
    "padding_multiple": 64,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-5,
    "parallel_residual": False,
    "shared_attention_norm": False,
    "n_head": 4,
    "head_size": 6,
    "n_query_groups": 2,
    "rope_base": 10000,
    "rotary_percentage": 1.0,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "intermediate_size": 28,
    "bias": False,
    "mlp_class_name": "LLaMAMLP",
    "gelu_approximate": "none",
    "n_expert": 0,
    "lm_head_bias": False,
    "attention_scores_scalar": None,
    "sliding_window_size": None,
}


def as_litgpt(module: nn.Module, *, old: bool = False, interleaved: bool = False) -> dict[str, Tensor]:
    config, weights = module.config, module.state_dict()
    named = {
        "transformer.wte.weight": weights["model.embed_tokens.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        theirs, name = f"model.layers.{layer}", f"transformer.h.{layer}"
        named |= {
            f"{name}.norm_1.weight": weights[f"{theirs}.input_layernorm.weight"],
            f"{name}.norm_2.weight": weights[f"{theirs}.post_attention_layernorm.weight"],
            f"{name}.attn.proj.weight": weights[f"{theirs}.self_attn.o_proj.weight"],
            f"{name}.mlp.fc_1.weight": weights[f"{theirs}.mlp.gate_proj.weight"],
            f"{name}.mlp.fc_2.weight": weights[f"{theirs}.mlp.up_proj.weight"],
            f"{name}.mlp.proj.weight": weights[f"{theirs}.mlp.down_proj.weight"],
        }
        q, k, v = (weights[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv")
        if interleaved:
            q, k = neighbors(q, heads), neighbors(k, groups)
        if old:
            pieces = zip(q.chunk(groups), k.chunk(groups), v.chunk(groups), strict=True)
            named[f"{name}.attn.attn.weight"] = torch.cat([torch.cat(piece) for piece in pieces])
        else:
            named[f"{name}.attn.qkv.weight"] = torch.cat([q, k, v])
    return {name: weight.detach().clone() for name, weight in named.items()}


def write_litgpt(folder: Path, content: object, **change: Any) -> Path:
    import yaml

    torch.save(content, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(LITGPT | change))
    return folder


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_litgpt(tmp_path: Path, old: bool, interleaved: bool, wrapped: bool) -> None:
    module = llama()
    weights = as_litgpt(module, old=old, interleaved=interleaved)
    folder = write_litgpt(tmp_path, {"model": weights} if wrapped else weights, rope_interleave=interleaved)
    model = load_checkpoint(folder)
    assert (model.config.vocab_size, model.config.max_positions) == (29, 32)
    same_logits(model, module)


def test_litgpt_with_scaled_positions(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    module = llama(rope_parameters=rope)
    for change in ({"rope_condense_ratio": 4}, {"rope_adjustments": {"factor": 4.0}}):
        same_logits(load_checkpoint(write_litgpt(tmp_path, as_litgpt(module), **change)), module)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 8}, "litgpt with n_expert = 8 is not supported"),
        ({"mlp_class_name": "LLaMAMoE"}, "litgpt with mlp_class_name = 'LLaMAMoE' is not supported"),
        ({"parallel_residual": True}, "litgpt with parallel_residual and a norm for each of the blocks is not supp"),
        ({"norm_class_name": "BatchNorm"}, "litgpt with norm_class_name = 'BatchNorm' is not supported"),
        ({"norm_1": False}, "litgpt with norm_1 or norm_2 left out is not supported"),
        ({"norm_qk": True, "norm_qk_type": "olmo2"}, "litgpt with norm_qk by LayerNorm or as OLMo 2 has it"),
        ({"post_mlp_norm": True}, "litgpt with a norm after only one of the blocks is not supported"),
        ({"rope_local_base_freq": 10000.0}, "litgpt with rope_local_base_freq = 10000.0 is not supported"),
        (
            {"rope_adjustments": {"factor": 2.0, "beta_fast": 32}},
            "with rope_adjustments.beta_fast = 32 is not",
        ),
        ({"n_head": None}, "a litgpt configuration needs 'n_head', which this one lacks"),
        ({"rotary_percentage": 0.5}, "rotary positions pair entries of a head: 3 of 6 cannot be turned"),
    ],
    ids=str,
)
def test_litgpt_that_ours_cannot_say(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    assert told in refused(write_litgpt(tmp_path, as_litgpt(llama()), **change), ConfigError)


def test_malformed_litgpt(tmp_path: Path) -> None:
    weights = as_litgpt(llama())
    folder = write_litgpt(tmp_path, weights)
    (folder / "model_config.yaml").write_text("!!python/object/apply:os.system ['touch marker']")
    assert "is missing or not YAML of plain values" in refused(folder)
    (folder / "model_config.yaml").write_text("- 1")
    assert "holds a list, not the fields of litgpt's Config" in refused(folder)
    (folder / "model_config.yaml").unlink()
    assert "model_config.yaml is missing or not YAML" in refused(folder)
    del weights["transformer.h.1.attn.qkv.weight"]
    assert "missing: decoder.layers.1.self_attn.in_proj.weight" in refused(write_litgpt(folder, weights))


def test_litgpt_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_litgpt(tmp_path, as_litgpt(llama()))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "needs the package PyYAML: pip install pyyaml" in refused(folder)


# torch.nn's modules


def encoder(**options: Any) -> nn.TransformerEncoder:
    norm = nn.LayerNorm(24) if options.pop("norm", False) else None
    layer = nn.TransformerEncoderLayer(24, 4, 28, dropout=0.0, batch_first=True, **options)
    module = randomise(nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False))
    assert isinstance(module, nn.TransformerEncoder)
    return module


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, {}),
        ({"norm": True}, {}),
        ({"bias": False}, {}),
        ({"activation": "gelu", "norm_first": True, "norm": True}, {"activation": "gelu", "norm_first": True}),
        ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_torch_encoder(tmp_path: Path, options: dict[str, Any], config: dict[str, Any], prefix: str) -> None:
    module = encoder(**options)
    torch.save({prefix + name: w for name, w in module.state_dict().items()}, tmp_path / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps(config))
    model = load_checkpoint(tmp_path / "w.pt", config=tmp_path / "c.json", nhead=4)
    x_BTD = torch.randn(3, 9, 24)
    real_BT = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    want = module(x_BTD, src_key_padding_mask=~real_BT)
    got = model(x_BTD, src_mask=real_BT)
    torch.testing.assert_close(got[real_BT], want[real_BT], rtol=0, atol=SINGLE)


@torch.no_grad()
def test_torch_encoder_under_a_causal_mask(tmp_path: Path) -> None:
    module = encoder()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps({"kind": "decoder", "nhead": 4}))
    model = load_checkpoint(tmp_path / "w.pt", config=tmp_path / "c.json")
    x_BSD = torch.randn(3, 9, 24)
    want = module(x_BSD, mask=nn.Transformer.generate_square_subsequent_mask(9), is_causal=True)
    torch.testing.assert_close(model(x_BSD), want, rtol=0, atol=SINGLE)
    head, past = model.decoder(x_BSD[:, :5])
    tail, _ = model.decoder(x_BSD[:, 5:], past=past)
    torch.testing.assert_close(torch.cat([head, tail], 1), want, rtol=0, atol=SINGLE)


def transformer(**options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd number of heads keeps torch off its fast path
        return randomise(nn.Transformer(24, 3, 2, 1, 28, dropout=0.0, batch_first=True, **options))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"norm_first": True, "activation": "gelu"}], ids=str)
@torch.no_grad()
def test_torch_transformer(tmp_path: Path, options: dict[str, Any]) -> None:
    module = transformer(**options)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps({key: value for key, value in options.items() if key != "bias"}))
    model = load_checkpoint(tmp_path / "w.pt", config=tmp_path / "c.json", nhead=3)
    assert (model.config.num_encoder_layers, model.config.num_decoder_layers) == (2, 1)
    source_BTD, target_BSD = torch.randn(3, 9, 24), torch.randn(3, 7, 24)
    padded_BT = torch.arange(9) >= torch.tensor([9, 4, 1])[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.bool)
    want = module(
        source_BTD, target_BSD, tgt_mask=causal, src_key_padding_mask=padded_BT, memory_key_padding_mask=padded_BT
    )
    torch.testing.assert_close(model(source_BTD, target_BSD, src_mask=~padded_BT), want, rtol=0, atol=SINGLE)


def test_graphs_over_vectors_are_verified(tmp_path: Path) -> None:
    import onnx_ir as ir

    from tfm.export import graphs_of, to_onnx, verify
    from tfm.export.verify.samples import cases

    torch.save(transformer().state_dict(), tmp_path / "w.pt")
    model = load_checkpoint(tmp_path / "w.pt", nhead=3)
    for graph in graphs_of(model):
        assert graph.inputs[0].name == "inputs_embeds"
        assert "last_hidden_state" in {value.name for value in graph.outputs}
        ir.save(to_onnx(graph), tmp_path / f"{graph.file}.onnx")
        report = verify(graph, tmp_path / f"{graph.file}.onnx", cases(graph))
        assert report.passed, report.first_fault


@pytest.mark.parametrize(
    ("make", "nhead", "told"),
    [
        (lambda: encoder().state_dict(), None, "whose weights do not show the number of heads: tell it with --nhead"),
        (
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(24, 4, 28), 1).state_dict(),
            4,
            "is a torch.nn.TransformerDecoder or half of a torch.nn.Transformer, which needs a memory from elsewhere",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(3, 24), encoder()).state_dict() | {},
            4,
            "holds 0.weight beside the weights of torch.nn.Transformer's layers; export the module that computes with",
        ),
        (lambda: encoder().state_dict() | {"layers.0.linear3.weight": torch.ones(2)}, 4, "not in the model: encoder."),
        (
            lambda: {n: w for n, w in encoder().state_dict().items() if n != "layers.1.norm1.bias"},
            4,
            "missing: encoder.layers.1.self_attn_residual.norm.bias",
        ),
    ],
    ids=["no heads", "decoder", "embedding", "more", "less"],
)
def test_malformed_torch_nn(tmp_path: Path, make: Callable[[], Any], nhead: int | None, told: str) -> None:
    torch.save(make(), tmp_path / "w.pt")
    assert told in refused(tmp_path / "w.pt", nhead=nhead)


def test_torch_nn_with_heads_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(encoder().state_dict(), tmp_path / "w.pt")
    assert "d_model must be a multiple of nhead, but 24 % 5 is 4" in refused(tmp_path / "w.pt", ConfigError, nhead=5)


# In several files


def write_shards(folder: Path, weights: dict[str, Tensor], kind: str = "safetensors", parts: int = 3) -> Path:
    """Spread weights over files, with the index that Hugging Face writes."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = list(weights)
    places = {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05}-of-{parts:05}.{kind}"
        shard = {name: weights[name].clone() for name in names[part::parts]}
        places |= dict.fromkeys(shard, file)
        if kind == "safetensors":
            safetensors.torch.save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    model = ours()
    index = write_shards(tmp_path, dict(model.state_dict()), kind)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    for path in (tmp_path, index):
        loaded = load_checkpoint(path).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_shards_of_huggingface(tmp_path: Path) -> None:
    module = llama()
    module.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    same_logits(load_checkpoint(tmp_path), module)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_malformed_shards(tmp_path: Path, kind: str) -> None:
    model = ours()
    index = write_shards(tmp_path, dict(model.state_dict()), kind)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    content = json.loads(index.read_text())
    places = content["weight_map"]
    name, shard = next(iter(places.items()))
    index.write_text(json.dumps({"weight_map": places | {name: places[list(places)[-1]]}}))
    assert f"places the tensor {name!r} in {places[list(places)[-1]]!r}, which does not hold it" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {name: "../x"}}))
    assert "names the shard '../x', which is not the name of a file beside it" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {key: value for key, value in places.items() if value != shard}}))
    assert "the weights do not fit the configuration: missing:" in refused(tmp_path)
    index.write_text(json.dumps(content))
    whole = (tmp_path / shard).read_bytes()
    (tmp_path / shard).write_bytes(whole[: len(whole) // 2])
    assert f"{shard}" in refused(tmp_path)
    (tmp_path / shard).unlink()
    assert f"names the shard {shard!r}, which is missing from {tmp_path}" in refused(tmp_path)
    for text in ("{}", "{", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{[]}"):
        index.write_text(text)
        assert "is not a checkpoint: neither a torch.save file nor safetensors" in refused(tmp_path)


# Folders


def test_the_only_file_of_weights_is_found(tmp_path: Path) -> None:
    save_checkpoint(ours(), tmp_path / "epoch-3.bin")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").touch()
    assert load_checkpoint(tmp_path).config.d_model == 8
    save_checkpoint(ours(), tmp_path / "epoch-4.bin")
    assert "holds epoch-3.bin, epoch-4.bin; name the one meant" in refused(tmp_path)


# The hub


def test_id_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    save_checkpoint(ours(), tmp_path / "model.safetensors")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_checkpoint("org/some-model.v2").config.d_model == 8
    assert (asked["name"], asked["allow_patterns"]) == ("org/some-model.v2", ["*.json", "*.safetensors"])


def test_unknown_id_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def download(*_: Any, **__: Any) -> str:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its arguments differ between versions

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "and no model of that name on the Hugging Face hub that you may read" in refused("org/name")


def test_hub_when_offline(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    code = "from tfm.model import load_checkpoint; load_checkpoint('org/name')"
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "CheckpointError: there is no checkpoint at org/name, and the Hugging Face hub could not be asked" in last
    assert "download it where there is a connection and give its folder" in last


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "could not be asked for it (ConnectionError: no route to host); download" in refused("org/name")


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub to fetch it" in refused("org/name")


@pytest.mark.parametrize(
    "path", ["absent", "org/name.pt", "a/b/c", "/org/name", "./name", "../org/name", "org/../name"]
)
def test_what_is_no_id_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.ModuleType("huggingface_hub"))
    assert refused(path) == f"there is no checkpoint at {path}"


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_loading_does_not_hold_weights_twice(tmp_path: Path) -> None:
    """Packed projections are copies; the pages they were read from are given back."""
    weights = {
        f"layers.{layer}.{name}": torch.full(shape, 0.5, dtype=torch.bfloat16)
        for layer in range(4)
        for name, shape in {
            **{f"self_attn.{part}_proj.weight": (1024, 1024) for part in "qkvo"},
            **{f"mlp.{part}_proj.weight": (4096, 1024) for part in ("gate", "up")},
            "mlp.down_proj.weight": (1024, 4096),
            "input_layernorm.weight": (1024,),
            "post_attention_layernorm.weight": (1024,),
        }.items()
    }
    weights |= {"norm.weight": torch.ones(1024), "embed_tokens.weight": torch.ones(8000, 1024, dtype=torch.bfloat16)}
    size = sum(weight.nbytes for weight in weights.values())
    write_shards(tmp_path, {f"model.{name}": weight for name, weight in weights.items()})
    values = {
        "model_type": "llama",
        "vocab_size": 8000,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "intermediate_size": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    llama().to(torch.bfloat16).save_pretrained(tmp_path / "tiny", max_shard_size="8KB")
    code = (
        "import re, sys; from tfm.model import load_checkpoint\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "def load(path):\n"
        "    model = load_checkpoint(path)\n"
        "    for parameter in model.parameters(): parameter.sum()\n"
        "    return model\n"
        "load(sys.argv[2])\n"  # what torch itself takes when it is first used is none of the checkpoint's
        "before = peak()\n"
        "model = load(sys.argv[1])\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "tiny")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1.25 * size


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_loading_again_does_not_undo_training(tmp_path: Path, name: str) -> None:
    """Weights that were mapped before, and written to since, are left alone."""
    save_checkpoint(ours(d_model=128, vocab_size=500), tmp_path / name)
    first = load_checkpoint(tmp_path)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7.0)
    second = load_checkpoint(tmp_path)
    assert all((parameter == 7.0).all() for parameter in first.parameters())
    assert not any((parameter == 7.0).all() for parameter in second.parameters())


# The command line


@pytest.mark.slow
@pytest.mark.parametrize("make", [encoder, transformer])
def test_command_line_tells_heads_and_configuration(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    from click.testing import CliRunner

    from tfm.cli.export import export
    from tfm.runtime import load

    torch.save(make().state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps({"max_positions": 24}))
    options = ["--ckpt", str(tmp_path / "w.pt"), "-o", str(tmp_path / "b"), "--precision", "fp32"]
    done = CliRunner().invoke(export, options)
    assert "tell it with --nhead" in str(done.exception)
    done = CliRunner().invoke(
        export, [*options, "--config", str(tmp_path / "c.json"), "--nhead", "4" if make is encoder else "3"]
    )
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "b").manifest.config["max_positions"] == 24
