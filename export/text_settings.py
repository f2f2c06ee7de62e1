"""How texts become ids, as the files beside a tokenizer.json say it: limits, prompts, the side that is cut off, cases.

Sentence-transformers and transformers' AutoTokenizer read these files and change what the tokenizer does. What they say
goes into the manifest and the bundle's tokenizer.json, so that the runtime reads a text as the library does.
"""

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from tfm.bundle import read_file, write_json
from tfm.errors import CheckpointError
from tfm.model import Fields, read_json

_NO_LIMIT = 1 << 24
"""`model_max_length` beyond which tokenizers mean that there is none: transformers writes 1e30."""

_MOST_BYTES = 1 << 20
"""Of a module's configuration."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_NORMALIZED = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of tokenizer_config.json by which transformers' fast BERT tokenizers set their normalizer."""


def text_settings(folder: Path) -> dict[str, Any]:
    """Read how texts are prepared before they are tokenized, as JSON values of the manifest.

    Args:
        folder: The bundle's, with the checkpoint's files in it.

    Raises:
        ConfigError: A file says what it cannot mean.
        CheckpointError: A file is not JSON, or holds no object.
    """
    named = _fields(folder, "config_sentence_transformers.json")
    prompts = named.any("prompts") if named.has("prompts") else {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise named.error("prompts", "names and their texts")
    default = named.any("default_prompt_name") if named.has("default_prompt_name") else None
    if default is not None and default not in prompts:
        raise named.error("default_prompt_name", f"one of the prompts: {', '.join(prompts) or 'there are none'}")
    side = _fields(folder, "tokenizer_config.json")
    truncated = side.any("truncation_side") if side.has("truncation_side") else "right"
    if truncated not in ("left", "right"):
        raise side.error("truncation_side", '"left" or "right"')
    return {
        "truncation_side": truncated,
        "lower_case": _fields(folder, "sentence_bert_config.json").flag("do_lower_case"),
        "prompts": prompts,
        "default_prompt": default,
    }


def max_text_tokens(folder: Path) -> int | None:
    """How many tokens of a text are read: sentence-transformers' limit, else the tokenizer's, where one is told."""
    limit = _fields(folder, "sentence_bert_config.json").optional_size("max_seq_length")
    if limit is not None:
        return limit
    tokenizer = _fields(folder, "tokenizer_config.json")
    told = tokenizer.any("model_max_length") if tokenizer.has("model_max_length") else None
    # 1e30 is written as a float by some.
    if told is None or (isinstance(told, int | float) and told >= _NO_LIMIT):
        return None
    return tokenizer.optional_size("model_max_length")


def copy_modules(source: Path, folder: Path) -> None:
    """Copy the configurations of sentence-transformers' modules, which pool and scale, to where it looks for them.

    What they say is in our graphs already; sentence-transformers and fastembed, opening the bundle, do it themselves.
    """
    if not (source / "modules.json").is_file():
        return
    modules = read_json(source / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        name = module.get("path") if isinstance(module, dict) else None
        # What leads elsewhere, or is no name on some system, names no folder of the checkpoint.
        if not isinstance(name, str) or not name or len(name) > 255 or any(c in name for c in "\\:\0"):
            continue
        if PurePosixPath(name).is_absolute() or ".." in name or not (source / name / "config.json").is_file():
            continue
        try:
            content = read_file(source / name / "config.json", _MOST_BYTES)
        except OSError as error:
            raise CheckpointError(
                f"{source / name / 'config.json'} cannot be read: {error.strerror or error}"
            ) from error
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_bytes(content)
        if str(module.get("type")).endswith(".Dense"):
            _copy_dense(source / name, folder / name)


def _copy_dense(source: Path, folder: Path) -> None:
    # Dense layers have weights, which these readers apply to what they pooled.
    for name in _WEIGHTS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def apply_tokenizer_config(folder: Path) -> None:
    """Write into tokenizer.json what tokenizer_config.json changes of it when transformers loads both.

    Transformers' BERT tokenizers set their normalizer anew where the configuration says otherwise
    (`BertTokenizerFast.__init__`).

    Args:
        folder: With both files, or without.

    Raises:
        CheckpointError: tokenizer.json is not JSON of a tokenizer.
    """
    path, config = folder / "tokenizer.json", _fields(folder, "tokenizer_config.json")
    told = {ours: config.any(name) for name, ours in _NORMALIZED.items() if config.has(name)}
    if not path.is_file() or not told:
        return
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    normalizer = tokenizer.get("normalizer") if isinstance(tokenizer, dict) else None
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return
    if wrong := {name: value for name, value in told.items() if value is not None and normalizer.get(name) != value}:
        tokenizer["normalizer"] = {**normalizer, **wrong}
        write_json(path, tokenizer)


def write_limit(folder: Path) -> None:
    """Write sentence-transformers' limit into tokenizer_config.json, which is all that fastembed and others read.

    Sentence-transformers itself tells its tokenizer so, and saves it there since version 6. MiniLM as it was published
    has 512 there, and 256 in sentence_bert_config.json.
    """
    path, limit = folder / "tokenizer_config.json", max_text_tokens(folder)
    if limit is None or not path.is_file():
        return
    written = _fields(folder, "tokenizer_config.json").values
    told = written.get("model_max_length")
    if not isinstance(told, int | float) or told > limit:
        write_json(path, {**written, "model_max_length": limit})


def _fields(folder: Path, name: str) -> Fields:
    """A file's fields; none where it is not there."""
    path = folder / name
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a dict")
    return Fields(path, name, values)
