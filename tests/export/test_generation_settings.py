"""How a bundle generates, read from generation_config.json or the configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from tfm.errors import ConfigError
from tfm.export.manifest import generation_settings
from tfm.model import TransformerConfig


def config(kind: Any = "decoder", **options: Any) -> TransformerConfig:
    sizes = {"vocab_size": 9, "d_model": 4, "nhead": 1, "max_positions": 16}
    return TransformerConfig(kind=kind, **(sizes | options))


def test_a_decoder_needs_neither_start_nor_end(tmp_path: Path) -> None:
    settings = generation_settings(tmp_path, config())
    assert settings is not None
    assert [settings[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [None, None, None]
    assert settings["max_new_tokens"] == 16
    settings = generation_settings(tmp_path, config(eos_token_id=3))
    assert settings is not None
    assert [settings[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [3, None, 3]


def test_an_encoder_decoder_needs_both_and_an_encoder_none(tmp_path: Path) -> None:
    assert generation_settings(tmp_path, config("encoder-decoder", eos_token_id=3)) is None
    assert generation_settings(tmp_path, config("encoder-decoder", eos_token_id=3, bos_token_id=1)) is not None
    assert generation_settings(tmp_path, config("encoder")) is None


def test_several_ids_may_end_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2], "max_new_tokens": 7}))
    settings = generation_settings(tmp_path, config(eos_token_id=3))
    assert settings is not None
    assert (settings["eos_token_id"], settings["pad_token_id"], settings["max_new_tokens"]) == ([5, 2], 5, 7)


@pytest.mark.parametrize(
    "values", [{"eos_token_id": 9}, {"eos_token_id": [2, 9]}, {"eos_token_id": [True]}, {"bos_token_id": [1]}], ids=str
)
def test_wrong_ids_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"generation_config\.json: \w+_token_id must be .*, but is "):
        generation_settings(tmp_path, config())


def said(folder: Path, file: str = "generation_config.json", **values: Any) -> dict[str, Any]:
    (folder / file).write_text(json.dumps(values))
    settings = generation_settings(folder, config(eos_token_id=3))
    assert settings is not None
    return settings


def test_what_the_runtime_has_becomes_a_default(tmp_path: Path) -> None:
    settings = said(tmp_path, repetition_penalty=1.2, num_beams=4, early_stopping=True, min_length=3, max_length=12)
    assert settings["defaults"] == {"repetition_penalty": 1.2, "num_beams": 4, "early_stopping": True, "min_length": 3}
    assert (settings["max_length"], settings["max_new_tokens"], settings["not_carried"]) == (12, 16, [])
    # Values that change nothing are as if they were not there, and so are those that are null.
    plain = said(tmp_path, num_beams=1, repetition_penalty=1.0, do_sample=False, use_cache=True, suppress_tokens=None)
    assert (plain["defaults"], plain["not_carried"], plain["max_length"]) == ({}, [], None)


def test_of_two_limits_transformers_minds_one(tmp_path: Path) -> None:
    settings = said(tmp_path, max_new_tokens=5, max_length=9, min_new_tokens=2, min_length=4)
    assert (settings["max_new_tokens"], settings["max_length"]) == (5, None)
    assert settings["defaults"] == {"min_new_tokens": 2}


def test_what_changes_no_answer_is_named(tmp_path: Path) -> None:
    settings = said(tmp_path, max_time=3.0, num_return_sequences=2, my_own=1, temperature=0.0, typical_p=0.9, top_p=0.5)
    assert settings["not_carried"] == ["max_time", "my_own", "num_return_sequences", "temperature", "typical_p"]
    assert settings["defaults"] == {"top_p": 0.5}


def test_an_older_config_says_it_too_but_not_beside_a_newer_file(tmp_path: Path) -> None:
    older = {"model_type": "x", "num_beams": 3, "max_length": 11, "force_bos_token_to_be_generated": True}
    settings = said(tmp_path, "config.json", **older, bos_token_id=2, decoder={"no_repeat_ngram_size": 2})
    assert settings["defaults"] == {"no_repeat_ngram_size": 2, "num_beams": 3, "forced_bos_token_id": 2}
    assert settings["max_length"] == 11
    assert said(tmp_path, eos_token_id=3)["defaults"] == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size = 3 is not supported: the runtime has no "),
        ({"num_beam_groups": 2}, "num_beam_groups = 2 is not supported: .*; take it out of the file to export without"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p = 0.5 is not supported"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be a number in .*, but is 0.0"),
        ({"do_sample": True, "num_beams": 2}, "do_sample=True and num_beams > 1 exclude each other"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be an integer of at least 0, but is -1"),
        ({"bad_words_ids": [[3], [9]]}, r"bad_words_ids\[1\] names the id 9; this model's ids are in \[0, 9\)"),
        ({"num_beams": 2, "stop_strings": ["a"]}, "stop is not available with num_beams > 1"),
        ({"max_length": 0}, "max_length must be an integer from 1 to 2147483647, but is 0"),
    ],
)
def test_what_would_change_the_answer_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {message}"):
        said(tmp_path, **values)
