"""GGUF, llama.cpp's single-file form: metadata, tokenizer and weights of Llama and Qwen 2, dequantized on reading.

The layout is llama.cpp's gguf.md; the names are those of its converter from Hugging Face.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tfm.errors import CheckpointError, TfmError

from ..config import RotaryScaling
from ..fields import Fields, shown
from ..positions import rotary_frequencies
from .gguf_layout import check_layout

if TYPE_CHECKING:
    import tokenizers

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Metadata that would make the model another function → the values that do not."""

_SPLITS = {
    "gpt-2": (),
    "smollm": (),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
"""llama.cpp's name of a pre-tokenizer → the pattern that splits text into words; none: GPT-2's own."""

_CONTROL, _USER_DEFINED = 3, 4  # kinds of token


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a GGUF file as a Hugging Face checkpoint: values of a config.json, and weights under Hugging Face's names.

    Their model_type is "llama" or "qwen2". float16, bfloat16 and float32 are mapped as they are, any other kind is
    dequantized to float32.
    """
    with _reading(file):
        reader = _open(file)
        # The vocabulary is most of the metadata, and only the tokenizer needs it.
        metadata = _metadata(reader, skip=("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))
        stored = {tensor.name: tensor for tensor in reader.tensors}
        values = _read_values(file, metadata, stored)
        weights = {}
        for name, tensor in stored.items():
            if name == "rope_freqs.weight":
                values["rope_scaling"] = _find_scaling(file, values, _dequantize(file, tensor))
            else:
                weights[_rename(file, name)] = _dequantize(file, tensor)
        # llama.cpp's converter interleaves the rows of Llama's queries and keys, and leaves those of
        # Qwen 2 as they are.
        if values["model_type"] == "llama":
            for part, heads in (("q_proj", values["num_attention_heads"]), ("k_proj", values["num_key_value_heads"])):
                for name in [name for name in weights if f".{part}." in name]:
                    weights[name] = _unpermute(weights[name], heads)
    return values, weights


def read_gguf_tokenizer(file: Path) -> "tokenizers.Tokenizer":
    """Rebuild the tokenizer that a GGUF file's metadata describes: byte-level BPE, as GPT-2's."""
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise CheckpointError(f"{file}: its tokenizer needs the package tokenizers: pip install tokenizers") from error
    with _reading(file):
        metadata = _read_tokenizer(file)
        split = metadata["pre"]
        tokens = _required(file, metadata, "tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in _required(file, metadata, "merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        # Llama 3 takes a word that is a token whole, whatever the merges would make of it.
        made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
        made.pre_tokenizer = pre_tokenizers.Sequence(_splitting(split))
        made.decoder = decoders.ByteLevel()
        if split == "qwen2":
            made.normalizer = normalizers.NFC()
        # Control tokens are left out of what is decoded; those that a user has added are text.
        for token, type_ in zip(tokens, metadata.get("token_type", []), strict=False):
            if type_ == _CONTROL:
                made.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True)])
            elif type_ == _USER_DEFINED:
                made.add_tokens([tokenizers.AddedToken(token, normalized=False)])
        # Where a file does not say it: of these tokenizers only Llama 3's puts a token first.
        if metadata.get("add_bos_token", split == "llama-bpe"):
            first = tokens[_required(file, metadata, "bos_token_id")]
            made.post_processor = processors.TemplateProcessing(f"{first} $A", None, [(first, vocabulary[first])])
    return made


@dataclass(frozen=True)
class ChatTemplateText:
    """How messages are written for a model.

    Attributes:
        template: Jinja.
        special_tokens: What the template is told: "bos_token" and "eos_token" → their texts.
    """

    template: str
    special_tokens: Mapping[str, str]


def read_gguf_chat_template(file: Path) -> ChatTemplateText | None:
    """Read the chat template in a GGUF file's metadata; None: there is none."""
    with _reading(file):
        metadata = _metadata(_open(file), skip=("tokenizer.ggml.merges",))
        template, tokens = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.ggml.tokens") or []
        if not isinstance(template, str):
            return None
        ids = {f"{name}_token": metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return ChatTemplateText(template, {name: tokens[place] for name, place in ids.items() if place is not None})


def _splitting(split: str) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[split]]
    # ByteLevel splits by GPT-2's pattern itself, unless one of the family's own has split before.
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not _SPLITS[split])]


def _read_tokenizer(file: Path) -> dict[str, Any]:
    """Read what the metadata says of the tokenizer; refuse one that is not known."""
    own = "tokenizer.ggml."
    found = {key.removeprefix(own): value for key, value in _metadata(_open(file)).items() if key.startswith(own)}
    kind, split = found.get("model"), found.get("pre")
    if kind != "gpt2":
        raise CheckpointError(f"{file}: its tokenizer is of kind {kind!r}, which is not supported; known: gpt2")
    if split not in _SPLITS:
        raise CheckpointError(
            f"{file}: its tokenizer splits text as {split!r} (tokenizer.ggml.pre), which is not supported; known: "
            f"{', '.join(_SPLITS)}"
        )
    return found


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn whatever damaged bytes make the reader raise into one sentence."""
    try:
        yield
    except TfmError:
        raise
    except Exception as error:  # the reader has no one error for damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file} is a damaged GGUF file ({reason}); was it cut short?") from error


def _open(file: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{file} is GGUF, which needs the package gguf, which is not installed: pip install gguf"
        ) from error
    check_layout(file)
    return gguf.GGUFReader(file, "c")  # copied on writing: as mutable as any weight, and the file stays as it is


def _metadata(reader: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: _value(field) for name, field in reader.fields.items() if name not in skip}


def _value(field: Any) -> Any:
    """Give a field as a number, text, flag, or a list of these."""
    if not field.types:
        return None
    # Of an array the last type is that of its items.
    text = field.types[-1].name == "STRING"
    items = [bytes(field.parts[i]).decode() if text else field.parts[i][0].item() for i in field.data]
    return items if field.types[0].name == "ARRAY" else items[0]


def _required(file: Path, entries: Mapping[str, Any], key: str) -> Any:
    if key not in entries:
        raise CheckpointError(f"{file} lacks {key}; was it cut short?")
    return entries[key]


def _read_values(file: Path, metadata: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values of the config.json that this model had."""
    family = _required(file, metadata, "general.architecture")
    if family not in ("llama", "qwen2"):
        raise CheckpointError(f"{file}: GGUF of architecture {shown(family)} is not supported; known: llama, qwen2")
    parts = Fields(file, "GGUF", metadata).optional_size("split.count", least=0) or 0
    if parts > 1:
        raise CheckpointError(f"{file} is one of {parts} parts; join them with llama-gguf-split")
    named = {key.removeprefix(f"{family}."): v for key, v in metadata.items() if key.startswith(f"{family}.")}
    own = Fields(file, "GGUF", named)

    def required(key: str) -> int:
        _required(file, metadata, f"{family}.{key}")
        return own.size(key)

    heads, longest = required("attention.head_count"), required("context_length")
    # Where it is not told, D / N; at least 1, so that the sizes are refused by name later.
    size = own.size("attention.key_length", max(required("embedding_length") // heads, 1))
    _check_function(file, family, own, size, longest)
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    _required(file, metadata, f"{family}.attention.layer_norm_rms_epsilon")
    return {
        "model_type": family,
        # GGUF tells sizes from the innermost on: (D, V).
        "vocab_size": int(_required(file, stored, "token_embd.weight").shape[1]),
        "hidden_size": required("embedding_length"),
        "intermediate_size": required("feed_forward_length"),
        "num_hidden_layers": required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(own, heads),
        "head_dim": size,
        "hidden_act": "silu",
        "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon", most=1.0),
        "max_position_embeddings": longest,
        "rope_theta": own.number("rope.freq_base", 10000.0),
        "rope_scaling": _read_scaling(file, own),
        # No metadata says these: whether there is such a weight does.
        "tie_word_embeddings": "output.weight" not in stored,
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "mlp_bias": "blk.0.ffn_up.bias" in stored,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
    }


def _kv_heads(own: Fields, heads: int) -> int:
    """Read the number of key/value heads, which may be told for each layer, if it is one for all."""
    key = "attention.head_count_kv"
    given = own.values.get(key)
    if isinstance(given, list):
        if not given or any(type(each) is not int or each != given[0] for each in given):
            raise own.error(key, "one number of heads for all layers")
        own = own.replaced(**{key: given[0]})
    return own.size(key, heads)


def _check_function(file: Path, family: str, own: Fields, size: int, longest: int) -> None:
    """Refuse metadata that would make the model another function."""
    # A window as long as the longest sequence hides nothing.
    expected: dict[str, tuple[Any, ...]] = {
        **_NEUTRAL,
        "attention.value_length": (size,),
        "rope.dimension_count": (size,),
        "attention.sliding_window": (0, longest),
    }
    for key, allowed in expected.items():
        if key in own.values and own.values[key] not in allowed:
            raise CheckpointError(
                f"{file}: {family}.{key} = {shown(own.values[key])} is not supported; expected {allowed[0]!r}"
            )


def _read_scaling(file: Path, own: Fields) -> dict[str, Any] | None:
    older = own.number("rope.scale_linear", 1.0, least=0.0)
    # Before there were types, a factor alone meant linear scaling.
    kind = own.text("rope.scaling.type", "linear" if older != 1.0 else "none")
    factor = own.number("rope.scaling.factor", older, least=0.0)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"{file}: rope.scaling.type = {shown(kind)} is not supported; known: none, linear, yarn")
    scaling = {"rope_type": kind, "factor": factor}
    trained = own.optional_size("rope.scaling.original_context_length")
    return scaling if trained is None else scaling | {"original_max_position_embeddings": trained}


def _find_scaling(file: Path, values: Mapping[str, Any], divisors: Tensor) -> dict[str, Any]:
    """Find the Llama 3 scaling that gives these divisors of the frequencies: of its four numbers only one varies."""
    size, base, factor = values["head_dim"], values["rope_theta"], float(divisors.max())
    # The largest divisor is that of the longest wavelengths, which are stretched in full.
    scaling = RotaryScaling(kind="llama3", factor=max(factor, 1.0), original_max_positions=8192)
    found = rotary_frequencies(size, base, None) / rotary_frequencies(size, base, scaling)
    if divisors.shape != found.shape or not torch.allclose(divisors.float(), found, rtol=1e-4):
        raise CheckpointError(f"{file}: its rope_freqs.weight is not that of Llama 3.1 or 3.2, and is not supported")
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def _rename(file: Path, name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{kind}"
    parts = module.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    raise CheckpointError(f"{file}: its tensor {name!r} has no place in a Llama or Qwen 2")


def _dequantize(file: Path, tensor: Any) -> Tensor:
    import gguf

    kind = tensor.tensor_type.name
    if kind in ("F32", "F16"):
        return torch.from_numpy(tensor.data)
    if kind == "BF16":
        return torch.from_numpy(tensor.data).view(torch.bfloat16)
    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError as error:
        raise CheckpointError(f"{file}: its tensor {tensor.name} is {kind}, which gguf cannot dequantize") from error


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """Put rows that llama.cpp interleaved, pair by pair, back to halves: (N, H / 2, 2, …) → (N, 2, H / 2, …)."""
    if weight.size(0) % (2 * heads):
        raise ValueError(f"{weight.size(0)} rows are no {heads} heads")
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
