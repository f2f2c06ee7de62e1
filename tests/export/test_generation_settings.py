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
