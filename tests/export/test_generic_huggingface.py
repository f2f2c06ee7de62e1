"""Hugging Face families that are not native pass the same export and verification, through transformers."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from tfm.errors import CheckpointError, ConfigError
from tfm.export import export_checkpoint, to_onnx, verify
from tfm.export.generic.open import describe_generic, is_generic, open_generic
from tfm.export.verify.samples import cases
from tfm.runtime import load

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 61,
    "max_position_embeddings": 34,
}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

Family = tuple[str, str, dict[str, Any], set[str]]
FAMILIES: dict[str, Family] = {  # model class, config class, options, the forms that its ops must take
    "mpnet": ("MPNetModel", "MPNetConfig", SIZES, {"Softmax", "Gelu", "Tanh"}),
    "megatron-bert": ("MegatronBertModel", "MegatronBertConfig", SIZES, {"Gelu", "Tanh"}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        {"Attention", "Relu"},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "seq_length": 40},
        {"Softmax", "Tanh"},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        SEQ2SEQ
        | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 24, "decoder_start_token_id": 1},
        {"Attention", "Gelu"},
    ),
    "m2m_100": (
        "M2M100ForConditionalGeneration",
        "M2M100Config",
        SEQ2SEQ | {"max_position_embeddings": 40},
        {"Attention", "Relu"},
    ),
    "deberta-v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        {"Softmax", "Gelu"},
    ),
    "phi": (
        "PhiForCausalLM",
        "PhiConfig",
        SIZES | {"hidden_act": "gelu_new", "num_key_value_heads": 2},
        {"Attention"},
    ),
}
SLOW = {"deberta-v2", "whisper", "m2m_100", "phi"}


def save(family: str, folder: Path) -> None:
    cls, config_cls, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(transformers, cls)(getattr(transformers, config_cls)(**options)).save_pretrained(folder)


def test_grouped_heads_are_the_same_attention_with_and_without_a_mask(tmp_path: Path) -> None:
    # Of a full mask transformers hands torch two key heads; of one with padding, and so in the trace, four.
    transformers.PhiModel(transformers.PhiConfig(**FAMILIES["phi"][2])).save_pretrained(tmp_path)
    graph = open_generic(tmp_path)
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    ids = torch.tensor([[5, 6, 7, 8]])
    for mask in (torch.ones_like(ids), torch.tensor([[1, 1, 1, 0]])):
        report = verify(graph, tmp_path / "model.onnx", [[ids, mask]])
        assert report.first_fault == ""
        assert {op.form for op in report.ops} >= {"Attention"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in FAMILIES]
)
def test_a_family_that_is_not_native_is_verified(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    graph = open_generic(tmp_path)
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    report = verify(graph, tmp_path / "model.onnx", cases(graph))
    assert report.first_fault == ""
    assert report.passed
    assert {op.form for op in report.ops} >= FAMILIES[family][3]


def test_the_bundle_says_that_it_came_through_transformers(tmp_path: Path) -> None:
    save("megatron-bert", tmp_path / "m")
    assert is_generic(tmp_path / "m")
    assert describe_generic(tmp_path / "m") == "read checkpoint by transformers (megatron-bert is not a native family)"
    report = export_checkpoint(tmp_path / "m", tmp_path / "m.tfm", precisions=["fp32"])
    assert report.faults() == []
    bundle = load(tmp_path / "m.tfm")
    assert bundle.manifest.family == "transformers:megatron-bert"
    assert bundle.manifest.kind == "module"
    assert bundle.manifest.config["hidden_size"] == 32
    with torch.no_grad():
        module = transformers.MegatronBertModel.from_pretrained(tmp_path / "m").eval()
        ids = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        expected = module(ids, attention_mask=mask).last_hidden_state
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": 0 * ids.numpy()}
    found = bundle.run(**feeds)["last_hidden_state"]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: v | {"auto_map": {"AutoModel": "x.Y"}}, ConfigError, "auto_map asks for code that comes with the"),
        (lambda v: v | {"architectures": ["NoSuch"]}, ConfigError, "architectures names 'NoSuch', which transformers"),
        (lambda v: v | {"architectures": ["os"]}, ConfigError, "architectures names 'os'"),
        (lambda v: v | {"model_type": "no-such"}, CheckpointError, "transformers .* cannot read"),
        (lambda v: v | {"num_hidden_layers": 3}, CheckpointError, "lacks weights of MPNetModel: encoder.layer.2"),
    ],
)
def test_what_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], error: type[Exception], message: str, tmp_path: Path
) -> None:
    save("mpnet", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(change(json.loads(config.read_text()))))
    with pytest.raises(error, match=message):
        open_generic(tmp_path)


POOLED_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mpnet": ("MPNetModel", "MPNetConfig", SIZES),
    "albert": ("AlbertModel", "AlbertConfig", SIZES | {"embedding_size": 16}),
    "t5": ("T5EncoderModel", "T5Config", {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SIZES | {"num_key_value_heads": 2, "head_dim": 8}),
}


def write_pooled(folder: Path, family: str, pooling: str, *more: str) -> Any:
    """Save a tiny model as sentence-transformers does, with a Dense of 32 to 5; give the model and that weight."""
    cls, config, options = POOLED_FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", "Dense", *more]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"in_features": 32, "out_features": 5, "bias": False}))
    weight = torch.randn(5, 32)
    safetensors.torch.save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    return model, weight


@pytest.mark.parametrize("family", POOLED_FAMILIES)
def test_sentence_transformers_folders_are_pooled_too(tmp_path: Path, family: str) -> None:
    """Also those of native families that are decoders, or have one: they lost pooling, Dense and Normalize."""
    pooling = "lasttoken" if family == "qwen3" else "mean"
    model, weight = write_pooled(tmp_path, family, pooling, "Normalize")
    assert is_generic(tmp_path) == (family in ("t5", "qwen3"))
    graph = open_generic(tmp_path)
    lengths, ids_BS = torch.tensor([7, 3]), torch.randint(3, 61, (2, 7))
    mask_BS = (torch.arange(7) < lengths[:, None]).long()
    with torch.no_grad():
        base = getattr(model, "model", model)
        hidden = base(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        given = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": 0 * ids_BS}
        found = dict(zip((o.name for o in graph.outputs), graph(*[given[i.name] for i in graph.inputs]), strict=True))
    for row, length in enumerate(lengths.tolist()):
        pooled = hidden[row, length - 1] if pooling == "lasttoken" else hidden[row, :length].mean(0)
        expected = torch.tanh(weight @ pooled)
        torch.testing.assert_close(found["sentence_embedding"][row], expected / expected.norm(), rtol=0, atol=1e-5)


def test_what_cannot_be_pooled_as_sentence_transformers_does_is_refused(tmp_path: Path) -> None:
    write_pooled(tmp_path, "qwen3", "lasttoken", "WordWeights")
    with pytest.raises(CheckpointError, match=r"WordWeights is not supported; known: Transformer, Pooling, Dense"):
        open_generic(tmp_path)
    assert "pooled as sentence-transformers does, qwen3 is not native" in describe_generic(tmp_path)
