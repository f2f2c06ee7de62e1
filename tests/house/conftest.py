"""A checkpoint as Hugging Face writes it, of a model with nothing in it."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def hugging_face_bert() -> Callable[..., Path]:
    """Save a tiny BertModel's folder, with changes of its config.json."""

    def save(folder: Path, **changes: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers' own making
            from transformers import BertConfig, BertModel

            config = BertConfig(
                vocab_size=19,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=12,
                max_position_embeddings=16,
            )
            BertModel(config).save_pretrained(folder / "bert")
        file = folder / "bert" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder / "bert"

    return save
