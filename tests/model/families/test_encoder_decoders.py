"""T5, BART and their kin against Hugging Face's own modules: ragged sources, cached steps, and what they export to."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.export import export_checkpoint, graphs_of, to_onnx, verify
from tfm.export.manifest import generation_settings
from tfm.export.verify.samples import cases
from tfm.model import FAMILIES, Transformer, load_checkpoint

# float32 on both sides: a few layers of sums of some twenty terms of order 1, each rounded at 6e-8
SINGLE = 1e-5

T5 = {
    "model_type": "t5",
    "vocab_size": 41,
    "d_model": 20,
    "d_kv": 7,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "n_positions": 24,
    "decoder_start_token_id": 0,
}

BART = {
    "model_type": "bart",
    "vocab_size": 37,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 22,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}

MARIAN = BART | {
    "model_type": "marian",
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": 36,
    "eos_token_id": 0,
    "bos_token_id": None,
    "forced_eos_token_id": 0,
    "decoder_start_token_id": 36,
}

MT5 = T5 | {"model_type": "mt5", "feed_forward_proj": "gated-gelu"}
MBART = BART | {"model_type": "mbart"}
PEGASUS = BART | {"model_type": "pegasus", "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
M2M = BART | {"model_type": "m2m_100"}

CONFIGS: dict[str, dict[str, Any]] = {
    "t5 1.0": T5,
    "t5 1.0, unlike depths": T5 | {"num_decoder_layers": 1, "num_heads": 4, "d_kv": 5},
    "t5 1.1, tied": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5 1.1, untied": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "untie": True},
    "t5, gated silu": T5 | {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3},
    "bart": BART,
    "bart, scaled, relu, unlike depths": BART
    | {"scale_embedding": True, "activation_function": "relu", "decoder_layers": 1, "d_model": 15},
    "bart, untied": BART | {"tie_word_embeddings": False, "activation_function": "gelu_new"},
    "marian": MARIAN,
    "marian, odd size, unlike depths": MARIAN | {"d_model": 15, "encoder_layers": 1, "activation_function": "relu"},
    "marian, two vocabularies": MARIAN
    | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 39, "scale_embedding": False},
    "mt5": MT5,
    "mt5, untied, unlike depths": MT5 | {"untie": True, "num_decoder_layers": 1, "d_kv": 5},
    "mbart": MBART,
    "mbart, scaled, relu, unlike depths": MBART
    | {"scale_embedding": True, "activation_function": "relu", "encoder_layers": 1, "d_model": 15},
    "mbart, untied": MBART | {"tie_word_embeddings": False},
    "pegasus": PEGASUS,
    "pegasus, scaled, odd size": PEGASUS | {"scale_embedding": True, "d_model": 15, "decoder_layers": 1},
    "m2m_100": M2M,
    "m2m_100, unscaled, odd size, gelu": M2M
    | {"scale_embedding": False, "d_model": 15, "activation_function": "gelu", "encoder_layers": 1},
}

EXPORTED = ["t5 1.1, untied", "bart", "marian", "m2m_100"]


def theirs(values: dict[str, Any]) -> nn.Module:
    """Hugging Face's module with random weights, norms, biases and final_logits_bias included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        names = {
            "t5": "T5ForConditionalGeneration",
            "bart": "BartForConditionalGeneration",
            "marian": "MarianMTModel",
            "mt5": "MT5ForConditionalGeneration",
            "mbart": "MBartForConditionalGeneration",
            "pegasus": "PegasusForConditionalGeneration",
            "m2m_100": "M2M100ForConditionalGeneration",
        }
        values = dict(values)
        untie, family = values.pop("untie", False), values.pop("model_type")
        config = transformers.AutoConfig.for_model(family, **values)
        torch.manual_seed(0)
        module = getattr(transformers, names[family])(config).eval()
    if untie:
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_positions" in name and family in ("marian", "pegasus"):
                continue  # a fixed table, which is not saved
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0))
        for name, buffer in module.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn_like(buffer))
    return module


def save(module: nn.Module, folder: Path, values: dict[str, Any]) -> Path:
    """What save_pretrained writes; where weights were untied behind its back, by hand."""
    if values.get("untie"):
        folder.mkdir(exist_ok=True)
        module.config.save_pretrained(folder)
        weights = {name: weight.clone() for name, weight in module.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Transformer, Path]]:
    made: dict[str, tuple[nn.Module, Transformer, Path]] = {}

    def pair(name: str) -> tuple[nn.Module, Transformer, Path]:
        if name not in made:
            module = theirs(CONFIGS[name])
            folder = save(module, tmp_path_factory.mktemp("hf"), CONFIGS[name])
            made[name] = module, load_checkpoint(folder), folder
        return made[name]

    return pair


def batch(model: Transformer) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged sources, right-padded, their mask, and targets that begin as this family's do."""
    generator = torch.Generator().manual_seed(1)
    source_BT = torch.randint(3, model.config.vocab_size - 1, (3, 17), generator=generator)
    mask_BT = (torch.arange(17) < torch.tensor([17, 9, 1])[:, None]).to(torch.int64)
    target_BS = torch.randint(3, model.config.target_vocab_size - 1, (3, 13), generator=generator)
    target_BS[:, 0] = model.config.bos_token_id
    return torch.where(mask_BT == 1, source_BT, model.config.pad_token_id), mask_BT, target_BS


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_theirs(
    name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]], families: Any
) -> None:
    module, model, _ = pairs(name)
    source_BT, mask_BT, target_BS = batch(model)
    want = module(input_ids=source_BT, attention_mask=mask_BT, decoder_input_ids=target_BS)
    assert want.logits.std() > 0.1
    families.compare(module, CONFIGS[name], model(source_BT, target_BS, src_mask=mask_BT), want.logits, SINGLE)
    hidden_BTD = model.encoder(source_BT, mask_BT)
    real_BT = mask_BT.bool()
    wanted_BTD = want.encoder_last_hidden_state
    families.compare(module, CONFIGS[name], hidden_BTD[real_BT], wanted_BTD[real_BT], SINGLE)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_steps_with_the_cache_are_one_pass(
    name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]], families: Any
) -> None:
    module, model, _ = pairs(name)
    source_BT, mask_BT, target_BS = batch(model)
    whole = module(input_ids=source_BT, attention_mask=mask_BT, decoder_input_ids=target_BS).logits
    cross = model.decoder.project(model.encoder(source_BT, mask_BT))
    past = None
    for start, end in [(0, 1), (1, 2), (2, 7), (7, 8), (8, 13)]:
        logits, past = model.decoder(target_BS[:, start:end], past=past, cross=cross, cross_mask_BT=mask_BT)
        families.compare(module, CONFIGS[name], logits, whole[:, start:end], SINGLE)


def export_and_verify(model: Transformer, folder: Path) -> None:
    for graph in graphs_of(model):
        path = folder / f"{graph.file}.onnx"
        ir.save(to_onnx(graph), path)
        report = verify(graph, path, cases(graph))
        assert report.passed, report.first_fault


@pytest.mark.parametrize("name", EXPORTED)
def test_both_graphs_are_verified(
    tmp_path: Path, name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]], families: Any
) -> None:
    export_and_verify(pairs(name)[1], tmp_path)
    families.note_verified(pairs(name)[0], CONFIGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in EXPORTED])
def test_both_graphs_of_the_others_are_verified(
    tmp_path: Path, name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]], families: Any
) -> None:
    export_and_verify(pairs(name)[1], tmp_path)
    families.note_verified(pairs(name)[0], CONFIGS[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t5 1.0", {"bos_token_id": 0, "eos_token_id": 1, "tie_embeddings": True, "max_positions": 24}),
        ("t5 1.1, untied", {"tie_embeddings": False, "logit_scale": 1.0, "activation": "geglu_tanh"}),
        ("bart", {"bos_token_id": 2, "eos_token_id": 2, "tie_embeddings": True, "embedding_norm": True}),
        ("bart, untied", {"tie_embeddings": False}),
        ("marian", {"bos_token_id": 36, "eos_token_id": 0, "activation": "silu", "scale_embeddings": True}),
        ("marian, two vocabularies", {"tgt_vocab_size": 39, "tie_embeddings": True}),
    ],
)
def test_configuration(
    name: str, expected: dict[str, Any], pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]
) -> None:
    values = pairs(name)[1].config.to_dict()
    assert {key: values[key] for key in expected} == expected


def test_shared_embeddings_are_one_parameter(pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]) -> None:
    for name in ("t5 1.0", "bart", "marian"):
        model = pairs(name)[1]
        assert model.encoder.embedding.token.weight is model.decoder.embedding.token.weight
        assert model.decoder.head.weight is model.decoder.embedding.token.weight


def test_start_is_read_from_generation_config(
    tmp_path: Path, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]
) -> None:
    save(pairs("bart")[0], tmp_path, BART)
    values = json.loads((tmp_path / "config.json").read_text())
    values.pop("decoder_start_token_id", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    assert load_checkpoint(tmp_path).config.bos_token_id == 5
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is missing or not JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert load_checkpoint(tmp_path).config.bos_token_id == 0


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_old_folders_save_every_name(
    tmp_path: Path, name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]
) -> None:
    """Before safetensors, pytorch_model.bin held shared weights under each of their names, and Marian's table."""
    module, model, folder = pairs(name)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    want, got = model.state_dict(), load_checkpoint(tmp_path).state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[key], got[key]) for key in want)


@torch.no_grad()
def test_t5_encoder_alone(tmp_path: Path, families: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        torch.manual_seed(0)
        options = {key: value for key, value in T5.items() if key != "model_type"}
        module = transformers.T5EncoderModel(transformers.T5Config(**options)).eval()
    module.save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path)
    assert model.config.kind == "encoder"
    ids_BT = torch.randint(3, 41, (2, 17), generator=torch.Generator().manual_seed(1))
    mask_BT = (torch.arange(17) < torch.tensor([17, 6])[:, None]).to(torch.int64)
    want = module(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    real_BT = mask_BT.bool()
    families.compare(module, T5, model(ids_BT, src_mask=mask_BT)[real_BT], want[real_BT])
    export_and_verify(model, tmp_path)
    families.note_verified(module, T5)


@pytest.mark.parametrize(
    ("name", "change", "kind", "told"),
    [
        (
            "bart",
            {"decoder_ffn_dim": 30},
            ConfigError,
            "BART with encoder_ffn_dim = 28 and decoder_ffn_dim = 30 is not",
        ),
        ("marian", {"decoder_attention_heads": 2}, ConfigError, "Marian with encoder_attention_heads = 3 and decoder_"),
        (
            "bart",
            {"normalize_before": True},
            ConfigError,
            "BART with normalize_before = True is not supported; expected",
        ),
        ("bart", {"normalize_embedding": False}, ConfigError, "BART with normalize_embedding = False is not supported"),
        ("marian", {"add_final_layer_norm": True}, ConfigError, "Marian with add_final_layer_norm = True is not"),
        ("bart", {"activation_function": "gelo"}, ConfigError, "unknown activation 'gelo'; the nearest is 'gelu'"),
        ("bart", {"d_model": ...}, ConfigError, "a BART configuration needs 'd_model', which this one lacks"),
        ("marian", {"max_position_embeddings": ...}, ConfigError, "a Marian configuration needs 'max_position_emb"),
        ("bart", {"encoder_layers": 3}, CheckpointError, "the weights lack encoder.layers.2.self_attn.q.weight"),
        (
            "bart",
            {"encoder_layers": "2"},
            ConfigError,
            "encoder_layers must be an integer from 1 to 10000",
        ),
        ("bart", {"architectures": ["BartForCausalLM"]}, ConfigError, "architectures ['BartForCausalLM'] is not supp"),
        ("t5 1.0", {"auto_map": {"AutoModel": "x.py"}}, ConfigError, "auto_map asks for Python code"),
        ("bart", {"decoder_layers": 1}, CheckpointError, "not in the model: decoder.layers.1."),
        ("bart", {"max_position_embeddings": 24}, CheckpointError, "encoder.embedding.position is (22, 24), not (24"),
        (
            "t5 1.0",
            {"feed_forward_proj": "gated"},
            ConfigError,
            "T5 with feed_forward_proj = 'gated' is not supported",
        ),
        ("t5 1.0", {"is_decoder": True}, ConfigError, "T5 with is_decoder = True is not supported; expected False"),
        ("t5 1.0", {"d_kv": ...}, ConfigError, "a T5 configuration needs 'd_kv', which this one lacks"),
        ("t5 1.0", {"num_layers": 3}, CheckpointError, "the weights lack encoder.layers.2.self_attn.q.weight"),
        (
            "t5 1.0",
            {"num_heads": "3"},
            ConfigError,
            "num_heads must be an integer from 1 to",
        ),
    ],
    ids=str,
)
def test_unsupported_configurations_are_refused(
    tmp_path: Path,
    name: str,
    change: dict[str, Any],
    kind: type[TfmError],
    told: str,
    pairs: Callable[[str], tuple[nn.Module, Transformer, Path]],
) -> None:
    folder = save(pairs(name)[0], tmp_path, CONFIGS[name])
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    with pytest.raises(kind) as caught:
        load_checkpoint(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["t5 1.0", "bart", "marian"])
def test_weights_without_embedding_are_refused(
    tmp_path: Path, name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]
) -> None:
    folder = save(pairs(name)[0], tmp_path, CONFIGS[name])
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "shared" not in key and "embed_tokens" not in key}
    safetensors.torch.save_file(kept, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the weights lack shared\.weight, the embedding of tokens"):
        load_checkpoint(folder)


def test_families_are_registered() -> None:
    assert {"t5", "bart", "marian"} <= set(FAMILIES)


def test_bundles_start_with_the_decoders_own_token(
    tmp_path: Path, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]
) -> None:
    """A generation_config.json names bos_token_id too, which is another."""
    config = pairs("bart")[1].config
    for content, start in (({"bos_token_id": 0, "decoder_start_token_id": 5}, 5), ({"bos_token_id": 0}, 2)):
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
        settings = generation_settings(tmp_path, config)
        assert settings is not None
        assert settings["bos_token_id"] == start


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart", "marian"])
def test_whole_bundle(tmp_path: Path, name: str, pairs: Callable[[str], tuple[nn.Module, Transformer, Path]]) -> None:
    """BART begins with the token that also ends: greedy decoding must not stop before its first token."""
    report = export_checkpoint(pairs(name)[2], tmp_path / "bundle", precisions=["fp32"])
    assert report.passed, report.faults()
