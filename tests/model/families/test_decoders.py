"""GPT-2, Llama and the families that descend from them against Hugging Face's own modules, and what they export to."""

import copy
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

from tests.support.decoder_configs import DECODERS
from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.verify.samples import cases
from tfm.model import FAMILIES, Transformer, load_checkpoint
from tfm.model.fields import Fields

# float32 on both sides: a few layers of sums of some twenty terms of order 1, each rounded at 6e-8
SINGLE = 1e-5

GPT2 = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 18, "n_head": 3, "n_layer": 2, "n_positions": 24}

LLAMA = {
    "model_type": "llama",
    "vocab_size": 41,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 28,
    "max_position_embeddings": 24,
    "pad_token_id": None,
}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 5}
QWEN2 = LLAMA | {"model_type": "qwen2", "eos_token_id": 7}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 10}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "head_dim": 10,
    "sliding_window": 4,
    "query_pre_attn_scalar": 14,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
    "num_hidden_layers": 3,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2, untied, relu, narrow": GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 13},
    "gpt2, unscaled": GPT2 | {"scale_attn_weights": False, "n_head": 2, "layer_norm_epsilon": 1e-3},
    "llama": LLAMA,
    "llama, tied, one kv head, odd size": LLAMA
    | {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 14, "rms_norm_eps": 1e-3},
    "llama, biases, gelu": LLAMA
    | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "num_key_value_heads": None},
    "llama, linear": LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}},
    "llama, dynamic": LLAMA
    | {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 300.0}, "max_position_embeddings": 8},
    "llama, yarn": LLAMA | {"rope_parameters": YARN},
    "llama, llama3": LLAMA | {"rope_parameters": LLAMA3},
    "mistral": MISTRAL,
    "mistral, no window, tied": MISTRAL | {"sliding_window": None, "tie_word_embeddings": True},
    "mistral, window of one": MISTRAL | {"sliding_window": 1, "head_dim": 8},
    "qwen2": QWEN2,
    "qwen2, sliding from the second layer, tied": QWEN2
    | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3, biases, sliding by layer_types": QWEN3
    | {
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_key_value_heads": 4,
    },
    "gemma2": GEMMA2,
    "gemma2, untied, no caps": GEMMA2
    | {
        "tie_word_embeddings": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention"] * 3,
        "attention_bias": True,
    },
    **DECODERS,
}

EXPORTED = ["gpt2", "llama, llama3", "qwen2, sliding from the second layer, tied", "qwen3", "mistral", "gemma2"]
EXPORTED += ["gemma3, far scaled, capped, untied", "smollm3, sliding where nothing turns, untied"]


def theirs(values: dict[str, Any]) -> nn.Module:
    """Hugging Face's module with random weights, norms and biases included, computing attention step by step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        values = copy.deepcopy(values)  # transformers writes into what it is given
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    center = 0.0 if config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (center if norm else 0.0))
    return module


Pairs = Callable[[str], tuple[nn.Module, Transformer, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    made: dict[str, tuple[nn.Module, Transformer, Path]] = {}

    def pair(name: str) -> tuple[nn.Module, Transformer, Path]:
        if name not in made:
            module, folder = theirs(CONFIGS[name]), tmp_path_factory.mktemp("hf")
            module.save_pretrained(folder)
            made[name] = module, load_checkpoint(folder), folder
        return made[name]

    return pair


def batch(model: Transformer, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged rows padded on one side, their mask, and each token's position in its row."""
    generator = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(model.config.vocab_size, (3, 19), generator=generator)
    lengths_B1 = torch.tensor([[19], [8], [1]])
    place_S = torch.arange(19)
    mask_BS = (place_S < lengths_B1 if side == "right" else place_S >= 19 - lengths_B1).to(torch.int64)
    return ids_BS, mask_BS, (mask_BS.cumsum(1) - 1).clamp(min=0)


def run(module: nn.Module, ids_BS: Tensor, mask_BS: Tensor, places_BS: Tensor) -> Tensor:
    """Their logits; positions that ALiBi reads off the mask need not be told."""
    told = {} if module.config.model_type == "bloom" else {"position_ids": places_BS}
    logits: Tensor = module(input_ids=ids_BS, attention_mask=mask_BS, **told).logits
    return logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_theirs(name: str, side: str, pairs: Pairs, families: Any) -> None:
    module, model, _ = pairs(name)
    ids_BS, mask_BS, places_BS = batch(model, side)
    want = run(module, ids_BS, mask_BS, places_BS)
    got = model.decoder(ids_BS, mask_BS, position_ids_BS=places_BS)[0]
    real_BS = mask_BS.bool()
    assert want[real_BS].std() > 0.1
    families.compare(module, CONFIGS[name], got[real_BS], want[real_BS])
    if side == "right":  # positions need not be told
        families.compare(module, CONFIGS[name], model(ids_BS, src_mask=mask_BS)[real_BS], want[real_BS])


@pytest.mark.parametrize("name", [name for name in CONFIGS if "dynamic" not in name])  # it turns old keys otherwise
@torch.no_grad()
def test_steps_with_the_cache_are_one_pass(name: str, pairs: Pairs, families: Any) -> None:
    module, model, _ = pairs(name)
    ids_BS, mask_BS, places_BS = batch(model, "left")
    whole = run(module, ids_BS, mask_BS, places_BS)
    past = None
    for start, end in [(0, 1), (1, 2), (2, 9), (9, 10), (10, 19)]:
        logits, past = model.decoder(
            ids_BS[:, start:end], mask_BS[:, :end], past, position_ids_BS=places_BS[:, start:end]
        )
        real_BS = mask_BS[:, start:end].bool()
        if real_BS.any():
            families.compare(module, CONFIGS[name], logits[real_BS], whole[:, start:end][real_BS])


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.5},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
        LLAMA3 | {"original_max_position_embeddings": 512},
    ],
    ids=str,
)
@torch.no_grad()
def test_scaled_positions_are_theirs_far_out(tmp_path: Path, parameters: dict[str, Any]) -> None:
    parameters = {"rope_theta": 10000.0} | parameters
    module = theirs(
        LLAMA
        | {"head_dim": 64, "num_hidden_layers": 1, "max_position_embeddings": 1024, "rope_parameters": dict(parameters)}
    )
    module.save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path)
    for length in (1500, 700, 3000):
        places_1S = torch.arange(length)[None]
        cos_1SH, sin_1SH = module.model.rotary_emb(torch.zeros(1), places_1S)
        cos_1SI, sin_1SI = model.decoder.rotary(places_1S)  # theirs has each twice, once for either half of a pair
        torch.testing.assert_close(cos_1SI.repeat(1, 1, 2), cos_1SH, rtol=0, atol=SINGLE)
        torch.testing.assert_close(sin_1SI.repeat(1, 1, 2), sin_1SH, rtol=0, atol=SINGLE)


def write(folder: Path, values: dict[str, Any], **change: Any) -> Path:
    """A checkpoint of `values`, whose config.json is then changed."""
    theirs(values).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


@torch.no_grad()
def test_older_configurations(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` with a `type`, or neither, buffers among the weights, and no prefix."""
    scaling = {"type": "linear", "factor": 2.0}
    folder = write(tmp_path / "a", LLAMA, rope_parameters=..., rope_theta=777.0, rope_scaling=scaling)
    config = load_checkpoint(folder).config
    assert config.rotary_base == 777.0
    assert config.rotary_scaling is not None
    assert (config.rotary_scaling.kind, config.rotary_scaling.factor) == ("linear", 2.0)
    folder = write(tmp_path / "b", LLAMA, rope_parameters=..., num_key_value_heads=2, attention_bias=..., mlp_bias=...)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(3) for layer in (0, 1)}
    torch.save({name.removeprefix("model."): weight for name, weight in weights.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model = load_checkpoint(folder)
    assert (model.config.rotary_base, model.config.rotary_scaling) == (10000.0, None)
    folder = write(tmp_path / "c", GPT2)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights |= {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24),
        "transformer.h.1.attn.masked_bias": torch.ones(1),
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    assert load_checkpoint(folder).config.tie_embeddings


def test_longest_sequences() -> None:
    config = FAMILIES["llama"]  # the mapping alone: an empty checkpoint lacks weights, which comes later
    values = LLAMA | {"hidden_act": "silu", "rms_norm_eps": 1e-6}
    for scaling, longest in (
        ({"type": "dynamic", "factor": 3.0}, 72),
        (YARN, 48),
        ({"type": "linear", "factor": 3.0}, 24),
        (LLAMA3, 24),
    ):
        with pytest.raises(CheckpointError, match=r"the weights lack decoder\.layers\.0\.self_attn\.q_proj\.weight"):
            config(Path("x"), Fields("x", "llama", values | {"rope_scaling": scaling}), {})
        from tfm.model.families.rotary import read_rotary

        assert read_rotary(Fields("x", "Llama", values | {"rope_scaling": scaling}))["max_positions"] == longest


def test_ids_outside_of_the_vocabulary_are_none(tmp_path: Path) -> None:
    config = load_checkpoint(write(tmp_path, LLAMA, pad_token_id=-1, bos_token_id=41, eos_token_id=[40, 3])).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, 40)


@torch.no_grad()
def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    theirs(GEMMA2).to(torch.bfloat16).save_pretrained(tmp_path)
    module = type(theirs(GEMMA2)).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    model = load_checkpoint(tmp_path)
    kinds = {name.endswith("norm.weight") or "inner" in name: w.dtype for name, w in model.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}  # 1 + w has no bfloat16
    ids_BS, mask_BS, places_BS = batch(model, "left")
    want = module(input_ids=ids_BS, attention_mask=mask_BS, position_ids=places_BS).logits
    got = model.float().decoder(ids_BS, mask_BS, position_ids_BS=places_BS)[0]
    torch.testing.assert_close(got[mask_BS.bool()], want[mask_BS.bool()], rtol=0, atol=SINGLE)


def export_and_verify(model: Transformer, folder: Path) -> None:
    (graph,) = graphs_of(model)
    path = folder / f"{graph.file}.onnx"
    ir.save(to_onnx(graph), path)
    report = verify(graph, path, cases(graph))
    assert report.passed, report.first_fault


@pytest.mark.parametrize("name", EXPORTED)
def test_the_graph_is_verified(tmp_path: Path, name: str, pairs: Pairs, families: Any) -> None:
    export_and_verify(pairs(name)[1], tmp_path)
    families.note_verified(pairs(name)[0], CONFIGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in EXPORTED])
def test_the_graphs_of_the_others_are_verified(tmp_path: Path, name: str, pairs: Pairs, families: Any) -> None:
    export_and_verify(pairs(name)[1], tmp_path)
    families.note_verified(pairs(name)[0], CONFIGS[name])


@pytest.mark.parametrize(
    ("values", "change", "kind", "told"),
    [
        (GPT2, {"add_cross_attention": True}, ConfigError, "GPT2 with add_cross_attention = True is not supported"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, ConfigError, "scale_attn_by_inverse_layer_idx = True is not"),
        (GPT2, {"n_embd": ...}, ConfigError, "a GPT2 configuration needs 'n_embd', which this one lacks"),
        (GPT2, {"architectures": ["GPT2ForTokenClassification"]}, ConfigError, "known: one of GPT2LMHeadModel, GPT2"),
        (GPT2, {"n_layer": 1}, CheckpointError, "not in the model: decoder.layers.1."),
        (LLAMA, {"auto_map": {"AutoModel": "x.Y"}}, ConfigError, "auto_map asks for Python code"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, ConfigError, "architectures"),
        (LLAMA, {"hidden_act": "tanh"}, ConfigError, "Llama with hidden_act = 'tanh' is not supported"),
        (LLAMA, {"rms_norm_eps": ...}, ConfigError, "a Llama configuration needs 'rms_norm_eps'"),
        (LLAMA, {"num_hidden_layers": 3}, CheckpointError, "lack decoder.layers.2.self_attn.q_proj.weight"),
        (LLAMA, {"rope_scaling": {"type": "longrope"}}, ConfigError, "needs 'short_factor' in rope_scaling"),
        (LLAMA, {"rope_scaling": {"type": "spiral"}}, ConfigError, "rotary scaling 'spiral' is not supported"),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "yarn"}},
            ConfigError,
            "'yarn' of a Llama configuration needs 'factor'",
        ),
        (LLAMA, {"rope_scaling": YARN | {"truncate": False}}, ConfigError, "truncate = False is not supported"),
        (LLAMA, {"rope_scaling": {"full_attention": {}}}, ConfigError, "positions that differ between layers"),
        (LLAMA, {"partial_rotary_factor": 0.5}, ConfigError, "partial_rotary_factor = 0.5 is not supported"),
        (LLAMA, {"rope_scaling": [4]}, ConfigError, "positions that differ between layers is not supported: [4]"),
        (MISTRAL, {"layer_types": ["full_attention"] * 2}, ConfigError, "Mistral with layer_types is not supported"),
        (MISTRAL, {"sliding_window": ...}, ConfigError, "a Mistral configuration needs 'sliding_window'"),
        (QWEN2, {"layer_types": ["chunked_attention"] * 2}, ConfigError, "expected one of sliding_attention, full_att"),
        (QWEN2, {"layer_types": ["full_attention"]}, ConfigError, "for each of 2 layers"),
        (QWEN2, {"layer_types": ["sliding_attention"] * 2}, ConfigError, "needs a sliding_window"),
        (QWEN3, {"head_dim": ...}, ConfigError, "a Qwen3 configuration needs 'head_dim'"),
        (GEMMA2, {"use_bidirectional_attention": True}, ConfigError, "use_bidirectional_attention = True is not"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, values: dict[str, Any], change: dict[str, Any], kind: type[TfmError], told: str
) -> None:
    with pytest.raises(kind) as caught:
        load_checkpoint(write(tmp_path, values, **change))
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)
