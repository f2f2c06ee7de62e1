"""Odd values in every field of every configuration that is read: each is refused in a line, or means what it says.

`cases` gives them, `run` tries them in a child process of bounded memory that is killed where one takes too long.

    python -m tests.support.odd_configs 20000
"""

import copy
import dataclasses
import functools
import itertools
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Path_ = tuple[str | int, ...]

MEMORY = 4 << 30
"""Address space of the child, in bytes."""

SECONDS = 10.0
"""Of one processor, beyond which a case counts as hanging; on a busy machine they may take far longer to pass."""

PATIENCE = 12
"""How many times longer a case may take by the clock before its process is killed."""

GREEDY = 256 << 20
"""Bytes by which one case may raise the child's greatest memory."""


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 100, 4097, 2**20, 2**24, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, -(2**63),
    2.0, 0.5, 1.5, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", "2", "true", "null",
    "ü" * 3000, [], [[]], [1], [2, 2], ["sliding_attention", "full_attention"], [None], {}, {"": 1},
    {"0": "a", "1": "b"}, {"type": "yarn", "factor": 2.0}, {"rope_type": "dynamic", "factor": float("inf")}, _deep(3),
    _deep(300),
]  # fmt: skip
"""What a field is set to."""

TEXTS: list[bytes] = [
    b"", b"null", b"[]", b"3", b'"x"', b"{", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}",
    '{"vocab_size": 3}'.encode("utf-16"), b"\xff\xfe\x00", b'{"vocab_size": 1, "vocab_size": 2}', b"NaN", b"9" * 5000,
]  # fmt: skip
"""What a whole file is set to."""

EXTRA = {
    "bert": ["id2label", "num_labels", "tie_word_embeddings", "auto_map", "pruned_heads", "position_embedding_type"],
    "llama": [
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "mrope_section",
        "original_max_position_embeddings",
    ],
    "qwen2": ["layer_types", "use_sliding_window"],
    "gemma2": ["layer_types"],
    "own": ["rotary_scaling", "labels", "encoder_heads", "sliding_layers", "image_size"],
    "params": ["use_scaled_rope", "rope_scaling_factor", "sliding_window", "dropout", "rope_high_freq_factor"],
    "generation": ["decoder_start_token_id", "eos_token_id", "pad_token_id"],
}
"""Keys that the tiny ones lack."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One odd configuration: values put at places of a format's file, or a whole file's content."""

    format: str
    changes: tuple[tuple[Path_, Any], ...] = ()
    text: bytes | None = None

    def __str__(self) -> str:
        if self.text is not None:
            return f"{self.format}: the file is {self.text[:40]!r}"
        return f"{self.format}: " + ", ".join(f"{'.'.join(map(str, p))} = {repr(v)[:60]}" for p, v in self.changes)


@dataclasses.dataclass
class Format:
    """A tiny checkpoint on disk and how its configuration is written."""

    folder: Path
    load: Path
    content: Any
    write: Callable[[Any], None]
    text: Callable[[bytes], None] | None = None


@dataclasses.dataclass
class ErrorStats:
    """What became of the cases."""

    cases: int = 0
    refused: int = 0
    accepted: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)


def paths(content: Any, within: Path_ = ()) -> Iterator[Path_]:
    """The places of all values in JSON values, those of containers included."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*within, key)
        yield from paths(value, (*within, key))


def cases(formats: Mapping[str, Format], pairs: int = 0, seed: int = 0) -> Iterator[Case]:
    """Every odd value in every field, whole odd files, and then so many pairs of odd fields of each format."""
    rng = random.Random(seed)
    for name, form in formats.items():
        known = [*paths(form.content), *((key,) for key in EXTRA.get(name, []))]
        if isinstance(form.content, dict):
            known += [("unknown_key",)]
        for path, value in itertools.product(known, ODD):
            yield Case(name, ((path, value),))
        if form.text is not None:
            for text in TEXTS:
                yield Case(name, text=text)
        for _ in range(pairs):
            two = rng.sample(known, min(2, len(known)))
            yield Case(name, tuple((path, rng.choice(ODD)) for path in two))


def make_formats(root: Path, *, generic: bool = False) -> dict[str, Format]:
    """Write a tiny checkpoint of each format; or one of a family that transformers reads for the export."""
    if generic:
        return {"generic": _huggingface(root / "generic", *_GENERIC)}
    made = {name: _huggingface(root / name, *about) for name, about in _families().items()}
    made |= {"own": _own(root / "own"), "own in .pt": _own_pt(root / "own_pt"), "params": _params(root / "params")}
    made |= {"litgpt": _litgpt(root / "litgpt"), "nanogpt": _nanogpt(root / "nanogpt")}
    made |= {"torch.nn": _torch_nn(root / "torch_nn"), "gguf": _gguf(root / "gguf")}
    sentence = _huggingface(root / "sentence", *_families()["bert"])
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (sentence.folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 12}
    made["modules"] = _json(sentence.folder, sentence.load, "modules.json", modules)
    made["pooling"] = _json(sentence.folder, sentence.load, "1_Pooling/config.json", pooling)
    bart = _huggingface(root / "generation", *_families()["bart"])
    made["generation"] = _json(
        bart.folder, bart.load, "generation_config.json", {"max_new_tokens": 3, "eos_token_id": 2}
    )
    values = json.loads((bart.folder / "config.json").read_text())
    values.pop("decoder_start_token_id", None)
    (bart.folder / "config.json").write_text(json.dumps(values))
    return made


def _families() -> dict[str, tuple[str, dict[str, Any]]]:
    tiny = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = tiny | {"intermediate_size": 16, "max_position_embeddings": 16}
    llama = bert | {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    seq = {"vocab_size": 23, "d_model": 12, "max_position_embeddings": 16, "pad_token_id": 1, "eos_token_id": 2}
    seq |= {f"{side}_{size}": n for side in ("encoder", "decoder") for size, n in _SIDE.items()}
    return {
        "bart": ("BartForConditionalGeneration", seq | {"decoder_start_token_id": 2}),
        "bert": ("BertForSequenceClassification", bert),
        "distilbert": (
            "DistilBertForMaskedLM",
            {"vocab_size": 23, "dim": 12, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 16},
        ),
        "electra": ("ElectraForTokenClassification", bert | {"embedding_size": 8}),
        "gemma2": ("Gemma2ForCausalLM", llama | {"head_dim": 8, "sliding_window": 4}),
        "gpt2": ("GPT2LMHeadModel", {"vocab_size": 23, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16}),
        "llama": (
            "LlamaForCausalLM",
            llama | {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 300.0}},
        ),
        "marian": ("MarianMTModel", seq | {"decoder_start_token_id": 1, "scale_embedding": True}),
        "mistral": ("MistralForCausalLM", llama | {"sliding_window": 5}),
        "qwen2": (
            "Qwen2ForCausalLM",
            llama | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ),
        "qwen3": ("Qwen3ForCausalLM", llama | {"head_dim": 8}),
        "roberta": ("RobertaModel", bert | {"type_vocab_size": 1}),
        "t5": (
            "T5ForConditionalGeneration",
            {"vocab_size": 23, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3},
        ),
        "vit": (
            "ViTModel",
            {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
            | {"image_size": 8, "patch_size": 4},
        ),
        "xlm-roberta": ("XLMRobertaForMaskedLM", bert),
        **_descendants(bert, llama, seq),
    }


def _descendants(
    bert: dict[str, Any], llama: dict[str, Any], seq: dict[str, Any]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Families that are a variation of another; each gets the values that it varies."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    linear = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}}
    long = {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3, "rope_theta": 300.0}
    return {
        "albert": ("AlbertForMaskedLM", bert | {"embedding_size": 8}),
        "bloom": ("BloomForCausalLM", {"vocab_size": 23, "hidden_size": 12, "n_layer": 2, "n_head": 2} | ids),
        "camembert": ("CamembertForSequenceClassification", bert | {"type_vocab_size": 1}),
        "data2vec-text": ("Data2VecTextForMaskedLM", bert | {"type_vocab_size": 1}),
        "gemma": ("GemmaForCausalLM", llama | linear | {"head_dim": 8}),
        "gemma3_text": ("Gemma3ForCausalLM", llama | {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2}),
        "gpt_neox": (
            "GPTNeoXForCausalLM",
            bert | ids | {"hidden_size": 16, "rotary_pct": 0.5, "rope_parameters": {"rope_theta": 30.0}},
        ),
        "gptj": ("GPTJForCausalLM", {"vocab_size": 23, "n_embd": 12, "n_layer": 2, "n_head": 2, "rotary_dim": 4} | ids),
        "granite": ("GraniteForCausalLM", llama | {"residual_multiplier": 0.5, "logits_scaling": 2.0}),
        "m2m_100": ("M2M100ForConditionalGeneration", seq | {"decoder_start_token_id": 2}),
        "mbart": ("MBartForConditionalGeneration", seq | {"decoder_start_token_id": 2}),
        "modernbert": (
            "ModernBertForSequenceClassification",
            bert | ids | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "classifier_pooling": "mean"},
        ),
        "mpnet": ("MPNetForTokenClassification", bert),
        "mt5": (
            "MT5ForConditionalGeneration",
            {"vocab_size": 23, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3},
        ),
        "nomic_bert": ("NomicBertModel", bert),
        "olmo2": ("Olmo2ForCausalLM", llama | linear),
        "opt": ("OPTForCausalLM", bert | ids | {"ffn_dim": 16, "word_embed_proj_dim": 12}),
        "pegasus": ("PegasusForConditionalGeneration", seq | {"decoder_start_token_id": 0}),
        "phi": ("PhiForCausalLM", llama | {"hidden_size": 16}),
        "phi3": ("Phi3ForCausalLM", llama | {"rope_parameters": long, "original_max_position_embeddings": 8}),
        "smollm3": ("SmolLM3ForCausalLM", llama | {"use_sliding_window": True, "sliding_window": 4}),
        "stablelm": ("StableLmForCausalLM", llama | {"hidden_size": 32}),
        "starcoder2": ("Starcoder2ForCausalLM", llama | {"sliding_window": 5}),
        "arcee": ("ArceeForCausalLM", llama),
        "cohere": ("CohereForCausalLM", llama),
        "cohere2": ("Cohere2ForCausalLM", llama | {"sliding_window": 4}),
        "falcon": ("FalconForCausalLM", bert | ids | {"new_decoder_architecture": True, "num_kv_heads": 1}),
        "glm": ("GlmForCausalLM", llama | {"head_dim": 8}),
        "glm4": ("Glm4ForCausalLM", llama | {"head_dim": 8}),
        "gpt_neo": (
            "GPTNeoForCausalLM",
            {"vocab_size": 23, "hidden_size": 12, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 18}
            | ids
            | {"attention_types": [[["global", "local"], 1]], "window_size": 4, "intermediate_size": 16},
        ),
        "helium": ("HeliumForCausalLM", llama | {"head_dim": 6}),
        "mpt": (
            "MptForCausalLM",
            {"vocab_size": 23, "d_model": 12, "n_heads": 2, "n_layers": 2, "max_seq_len": 18} | ids,
        ),
        "nemotron": ("NemotronForCausalLM", llama | {"head_dim": 8}),
        "olmo": ("OlmoForCausalLM", llama),
        "olmo3": ("Olmo3ForCausalLM", llama | {"sliding_window": 4}),
        **_of_gpt2(ids),
    }


def _of_gpt2(ids: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    sizes = {"vocab_size": 23, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 18} | ids
    return {
        "codegen": ("CodeGenForCausalLM", sizes | {"n_embd": 16, "rotary_dim": 4}),
        "gpt_bigcode": ("GPTBigCodeForCausalLM", sizes),
    }


_GENERIC = (
    "MegatronBertModel",
    {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    | {"max_position_embeddings": 18},
)

_SIDE = {"layers": 2, "attention_heads": 2, "ffn_dim": 16}


def _huggingface(folder: Path, cls: str, options: dict[str, Any]) -> Format:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.disable_progress_bar()
        made = getattr(transformers, cls)
        made(made.config_class(**options)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return _json(folder, folder, "config.json")


def _json(folder: Path, load: Path, name: str, content: Any = None) -> Format:
    file = folder / name
    if content is None:
        content = json.loads(file.read_text(encoding="utf-8"))

    def write(values: Any) -> None:
        file.write_text(json.dumps(values), encoding="utf-8")

    write(content)
    return Format(folder, load, content, write, file.write_bytes)  # type: ignore[arg-type]


def _own_model() -> Any:
    from tfm.model import Transformer, TransformerConfig

    return Transformer(
        TransformerConfig(
            vocab_size=11, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=12,
            max_positions=16, sliding_window=4, decoder_heads=(2, 2), pad_token_id=0,
        )
    )  # fmt: skip


def _own(folder: Path) -> Format:
    from tfm.model import save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(_own_model(), folder / "model.safetensors")
    return _json(folder, folder, "config.json")


def _saved(folder: Path, name: str, key: str, content: Any, others: Mapping[str, Any]) -> Format:
    """A configuration within what torch.save wrote."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)

    def write(values: Any) -> None:
        torch.save({**others, key: values}, folder / name)

    write(content)
    return Format(folder, folder / name, content, write)


def _own_pt(folder: Path) -> Format:
    model = _own_model()
    return _saved(folder, "model.pt", "config", _jsonable(model.config.to_dict()), {"state_dict": model.state_dict()})


def _jsonable(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _params(folder: Path) -> Format:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    values = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": -1, "multiple_of": 4}
    values |= {"norm_eps": 1e-5, "rope_theta": 500.0, "max_seq_len": 16}
    layer = {"attention.wq": (8, 8), "attention.wk": (4, 8), "attention.wv": (4, 8), "attention.wo": (8, 8)}
    layer |= {"feed_forward.w1": (12, 8), "feed_forward.w3": (12, 8), "feed_forward.w2": (8, 12)}
    layer |= {"attention_norm": (8,), "ffn_norm": (8,)}
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (11, 8), "norm": (8,), "output": (11, 8)}
    shapes |= {f"layers.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()}
    torch.save({f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(values))
    return _json(folder, folder, "params.json")


def _litgpt(folder: Path) -> Format:
    import torch
    import yaml  # type: ignore[import-untyped, unused-ignore]

    folder.mkdir(parents=True, exist_ok=True)
    values = {"name": "x", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_query_groups": 1, "block_size": 16, "bias": False}
    values |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": 12, "head_size": 4}
    values |= {"parallel_residual": False, "rotary_percentage": 1.0, "norm_eps": 1e-5, "rope_base": 300}
    values |= {"sliding_window_size": 4, "sliding_window_indices": [1, 0], "rope_condense_ratio": 1}
    layer: dict[str, tuple[int, ...]] = {"norm_1": (8,), "norm_2": (8,), "attn.qkv": (16, 8), "attn.proj": (8, 8)}
    layer |= {"mlp.fc_1": (12, 8), "mlp.fc_2": (12, 8), "mlp.proj": (8, 12)}
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte": (11, 8), "transformer.ln_f": (8,), "lm_head": (11, 8)}
    shapes |= {f"transformer.h.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()}
    torch.save({f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}, folder / "lit_model.pth")
    file = folder / "model_config.yaml"

    def write(content: Any) -> None:
        file.write_text(yaml.safe_dump(content))

    write(values)
    return Format(folder, folder, values, write, file.write_bytes)  # type: ignore[arg-type]


def _nanogpt(folder: Path) -> Format:
    import torch

    values = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "bias": False, "vocab_size": 11, "dropout": 0.0}
    layer: dict[str, tuple[int, ...]] = {"ln_1": (8,), "ln_2": (8,), "attn.c_attn": (24, 8), "attn.c_proj": (8, 8)}
    layer |= {"mlp.c_fc": (32, 8), "mlp.c_proj": (8, 32)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (11, 8), "wpe": (16, 8), "ln_f": (8,)}
    shapes |= {f"h.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()}
    weights = {f"transformer.{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return _saved(folder, "ckpt.pt", "model_args", values, {"model": weights})


def _torch_nn(folder: Path) -> Format:
    import torch
    from torch import nn

    folder.mkdir(parents=True, exist_ok=True)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    torch.save(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).state_dict(), folder / "w.pt")
    values = {"nhead": 2, "max_positions": 16, "activation": "relu", "norm_first": False, "layer_norm_eps": 1e-5}
    values |= {"kind": "encoder", "d_model": 8, "num_encoder_layers": 2, "dim_feedforward": 12}
    return _json(folder, folder / "w.pt", "c.json", values)


def _gguf(folder: Path) -> Format:
    import numpy as np
    from gguf import GGUFWriter

    folder.mkdir(parents=True, exist_ok=True)
    values = {"context_length": 16, "embedding_length": 8, "feed_forward_length": 12, "block_count": 2}
    values |= {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    values |= {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    values |= {"attention.key_length": 4, "rope.scaling.original_context_length": 8, "rope.dimension_count": 4}
    layer: dict[str, tuple[int, ...]] = {"attn_norm": (8,), "ffn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8)}
    layer |= {"attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (12, 8), "ffn_up": (12, 8), "ffn_down": (8, 12)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (11, 8), "output_norm": (8,), "output": (11, 8)}
    shapes |= {f"blk.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}

    def write(content: Any) -> None:
        writer = GGUFWriter(folder / "x.gguf", "llama")
        for key, value in content.items():
            _add(writer, f"llama.{key}", value)
        for name, weight in weights.items():
            writer.add_tensor(name, weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write(values)
    return Format(folder, folder / "x.gguf", values, write)


class Unwritable(Exception):
    """A value that the format has no way to say: there is no such file, and so nothing to judge."""


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        (writer.add_uint32 if 0 <= value < 2**32 else writer.add_uint64 if value > 0 else writer.add_int64)(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    elif isinstance(value, str) and value:  # of an empty one the writer writes nothing
        writer.add_string(key, value)
    elif isinstance(value, list) and value and all(type(item) is type(value[0]) is int for item in value):
        writer.add_array(key, value)
    elif value is not None:
        raise Unwritable(f"{key} = {value!r}")


# The child


def apply(form: Format, case: Case) -> None:
    """Write the configuration of a case."""
    if case.text is not None:
        assert form.text is not None
        form.text(case.text)
        return
    content = copy.deepcopy(form.content)
    for path, value in case.changes:
        place = content
        for part in path[:-1]:
            place = place[part] if isinstance(place, list | dict) and _has(place, part) else {}
        if isinstance(place, dict):
            place[path[-1]] = copy.deepcopy(value)  # a second change may go into it, and it serves all cases
        elif isinstance(place, list) and _has(place, path[-1]):
            place[int(path[-1])] = copy.deepcopy(value)
    form.write(content)


def _has(place: Any, part: str | int) -> bool:
    return part in place if isinstance(place, dict) else isinstance(part, int) and part < len(place)


class Recording(dict[str, Any]):
    """Fields that note which of them are read, by their whole places, as rope_scaling.factor."""

    read: set[str] = set()  # noqa: RUF012 - one for all, cleared before each case

    def __init__(self, values: Mapping[str, Any], within: str) -> None:
        super().__init__(values)
        self.within = within

    def get(self, key: Any, default: Any = None) -> Any:
        Recording.read.add(f"{self.within}{key}")
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        Recording.read.add(f"{self.within}{key}")
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        Recording.read.add(f"{self.within}{key}")
        return super().__getitem__(key)


def load(form: Format, name: str) -> Any:
    """Read what is there, as `load_checkpoint` and the export do; give its configuration."""
    from tfm.export.manifest import generation_settings
    from tfm.model import load_checkpoint

    if name == "generic":
        return _load_generic(form)
    config = form.folder / "c.json" if name == "torch.nn" else None
    model = load_checkpoint(form.load, config)
    settings = generation_settings(form.folder, model.config)
    return model.config.to_dict() | {"generation": settings}


def _load_generic(form: Format) -> Any:
    from tfm.export.generic.open import is_generic, open_generic
    from tfm.model import load_checkpoint

    if not is_generic(form.load):
        return load_checkpoint(form.load).config.to_dict()
    graph = open_generic(form.load)
    return [str(value) for value in (*graph.inputs, *graph.outputs)]


def judge(case: Case, read: set[str], before: Any, found: Any, original: Any) -> str | None:
    """Say why a case that was accepted should not have been; None where all is well."""
    if case.format == "generic":  # types are for transformers to judge: what it reads of them, it reads
        return None
    if case.text is not None:
        return None if found == before or case.format in ("generation", "torch.nn") else "a whole odd file was accepted"
    for path, value in case.changes:
        names = [part for part in path if isinstance(part, str)]
        key, place = names[-1] if names else "", ".".join(names)
        if case.format in ("own", "own in .pt", "torch.nn") or place in read:
            at = _at(original, path)
            if value is not None and not _alike(at, value, key):
                return f"{key} = {repr(value)[:40]} was read and accepted in place of {at!r}"
        elif len(case.changes) == 1 and found != before:
            return f"{key} changed the model, though it was not seen to be read"
    return None


def _at(content: Any, path: Path_) -> Any:
    for part in path:
        if not (isinstance(content, list | dict) and _has(content, part)):
            return None
        content = content[part]  # type: ignore[index]
    return content


_NUMBERS = {"rope_theta", "rope_base", "norm_eps", "layer_norm_eps", "rms_norm_eps", "dropout", "rope.freq_base"}
"""Fields that are numbers where the original may be an integer."""


def _alike(original: Any, value: Any, key: str) -> bool:
    """Whether a value is of the type that a field is of."""
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return False
    if isinstance(original, bool):
        return isinstance(value, bool) or value == {}
    if isinstance(original, float) or key in _NUMBERS:
        return type(value) in (int, float)
    if isinstance(original, int):
        each = key == "attention.head_count_kv" and value in ([original], [original] * 2)  # for each layer
        several = each or ("token_id" in key and isinstance(value, list) and all(type(item) is int for item in value))
        square = key in ("image_size", "patch_size") and isinstance(value, list)
        return type(value) is int or several or square or (type(value) is float and _is_number(key))
    if original is None:
        return True
    return type(value) is type(original)


def _is_number(key: str) -> bool:
    return any(part in key for part in ("scalar", "factor", "softcap", "ratio", "percentage", "scale", "pdrop"))


def child(root: Path, seed: int, pairs: int, generic: bool, numbers: Iterable[int]) -> None:
    """Try the cases of these numbers, and say of each what became of it, a line of JSON each."""
    import resource

    from tfm.errors import TfmError
    from tfm.model import fields
    from tfm.model.formats import mapped

    formats = make_formats(root, generic=generic)
    plain = fields.Fields.__init__

    @functools.wraps(plain)
    def recording(self: Any, source: Any, form: str, values: Any, within: str = "") -> None:
        plain(self, source, form, Recording(values, within), within)

    fields.Fields.__init__ = recording  # type: ignore[method-assign]
    mapped.GivingBack.give_back = lambda self: None  # type: ignore[method-assign]  # reads all of /proc/self/maps
    wanted, last = set(numbers), ""
    normal = {name: load(form, name) for name, form in formats.items()}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"ready": True}), flush=True)
    for number, case in enumerate(cases(formats, pairs, seed)):
        if number not in wanted:
            continue
        form = formats[case.format]
        if last and last != case.format:
            formats[last].write(formats[last].content)
        last = case.format
        Recording.read = set()
        told: dict[str, Any] = {"number": number, "case": str(case), "outcome": "refused", "fault": None}
        started = time.process_time()
        try:
            apply(form, case)
            found = load(form, case.format)
        except Unwritable:
            told["outcome"] = "unwritable"
        except TfmError as error:
            if len(str(error)) > 1000 or "\n" in str(error):
                told["fault"] = f"the message is no short line: {str(error)[:200]}"
            told["kind"] = type(error).__name__
        except BaseException as error:
            told |= {"outcome": "untyped", "fault": f"{type(error).__name__}: {str(error)[:200]}"}
        else:
            fault = judge(case, Recording.read, normal[case.format], found, form.content)
            told |= {"outcome": "accepted", "fault": fault}
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (after - before) * 1024 > GREEDY:
            told["fault"] = told["fault"] or f"it took {(after - before) >> 10} MiB"
        if time.process_time() - started > SECONDS:
            told["fault"] = told["fault"] or f"it took {time.process_time() - started:.0f} s"
        before = max(after, before)
        print(json.dumps(told), flush=True)


def run(numbers: Iterable[int], seed: int = 0, pairs: int = 0, *, generic: bool = False) -> ErrorStats:
    """Try cases, by their numbers, in a child process that is begun anew after one that hangs or crashes."""
    figures, left = ErrorStats(), list(numbers)
    with tempfile.TemporaryDirectory() as folder:
        while left:
            command = [sys.executable, __file__, "child", folder, str(seed), str(pairs), str(int(generic))]
            done = _run_child(command, left, figures)
            left = left[done:]
    return figures


def _run_child(command: list[str], numbers: list[int], figures: ErrorStats) -> int:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # unbuffered, as what has been read ahead is nothing that one can wait for
    with subprocess.Popen(command, env=os.environ | one_thread, bufsize=0, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(numbers).encode())
        process.stdin.close()
        done, begun = 0, False
        while done < len(numbers):
            line = _line(process.stdout, PATIENCE * SECONDS if done else 600.0)
            told = json.loads(line) if line else {}
            if told.get("ready"):
                begun = True
                continue
            # It would be begun anew for each case, and each would count as one that ends it.
            if not begun:
                raise RuntimeError(f"the child ends before its first case: {' '.join(command)}")
            done += 1
            figures.cases += 1
            if not told:
                state = "hangs" if line is None else "ends the process"
                told = {"outcome": state, "fault": state, "case": f"case {numbers[done - 1]}"}
            figures.kinds[told["outcome"]] += 1
            figures.refused += told["outcome"] == "refused"
            figures.accepted += told["outcome"] == "accepted"
            if told["fault"]:
                figures.faults.append(f"{told['case']}: {told['fault']}")
                print(figures.cases, figures.faults[-1][:300], file=sys.stderr, flush=True)
            if not line:
                process.kill()
                break
    return done


def _line(stream: Any, seconds: float) -> bytes | None:
    """The next line; None where none comes in time, and nothing at the end."""
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else None


def count(pairs: int = 0, seed: int = 0, *, generic: bool = False) -> int:
    """How many cases there are."""
    with tempfile.TemporaryDirectory() as folder:
        return sum(1 for _ in cases(make_formats(Path(folder), generic=generic), pairs, seed))


def main() -> None:
    """Try as many cases as the command line says, each field by itself before pairs of them, and print the figures."""
    wanted = int(sys.argv[1])
    single = count()
    rounds = count(pairs=1) - single
    pairs = max(0, -(-(wanted - single) // rounds))
    started = time.monotonic()
    figures = run(range(single + pairs * rounds if pairs else wanted), pairs=pairs)
    print(f"{figures.cases} cases in {time.monotonic() - started:.0f} s: {dict(figures.kinds)}")
    print(f"{len(figures.faults)} faults")
    for fault in figures.faults:
        print(" ", fault)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore"
    if sys.argv[1] == "child":
        child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1", json.loads(sys.stdin.read()))
    else:
        main()
