"""What is recorded of a checkpoint is what its feed-forward blocks compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from tfm.errors import CheckpointError
from tfm.latency.text import english_sentences, english_words
from tfm.model import Transformer, save_checkpoint
from tfm.model.layer import FeedForward
from tfm.study.activations.hidden import TEXTS, TOKENS, normal_states, record_states

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.'()-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IDS = {"?": 0, "<s>": 1, "</s>": 2} | {letter: 3 + place for place, letter in enumerate(LETTERS)}

Save = Callable[..., tuple[Path, Transformer]]


@pytest.fixture
def save(make_model: Callable[..., Transformer], tmp_path: Path) -> Save:
    """Save a tiny model that reads letters, and what stands beside it."""

    def made(*, generation: dict[str, Any] | None = None, **options: Any) -> tuple[Path, Transformer]:
        common = {"vocab_size": len(IDS), "max_positions": 96, "bos_token_id": 1, "eos_token_id": 2}
        model = make_model(**(common | options))
        save_checkpoint(model, tmp_path / "model.pt")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="?"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path / "model.pt", model

    return made


def read_by_second_projection(model: Transformer, *inputs: torch.Tensor) -> list[np.ndarray]:
    """What each feed-forward block's second projection reads: what its activation gives."""
    seen: list[np.ndarray] = []
    hooks = [
        block.linear2.register_forward_pre_hook(lambda _, read: seen.append(read[0][0].numpy()))
        for block in model.modules()
        if isinstance(block, FeedForward)
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("name", "own"), [("mish", ("mish", False)), ("swiglu", ("silu", True))])
def test_its_own_activation_gives_what_its_second_projections_read(save: Save, name: str, own: Any) -> None:
    path, model = save(kind="encoder", activation=name, num_encoder_layers=2)
    states = record_states(path)
    outputs = list(states.outputs(*own))
    sentences = english_sentences(TEXTS)
    assert len(outputs) == TEXTS
    for sentence, found in zip(sentences, outputs, strict=True):
        ids = torch.tensor([[IDS.get(letter, 0) for letter in sentence][:TOKENS]])
        expected = read_by_second_projection(model, ids)
        assert len(expected) == len(found) == 2
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert states.source == "checkpoint"
    assert f"the 2 activations of model.pt ({name}, 24 units) on 32 sentences" in states.about


def test_values_of_a_plain_model_are_its_inputs_on_other_tokens(save: Save) -> None:
    states = record_states(save(kind="encoder", activation="gelu", num_encoder_layers=2)[0])
    assert "values are the inputs of other tokens, shuffled" in states.about
    for layer in range(2):
        gates, values = (
            torch.cat([getattr(text[layer], which) for text in states.texts]) for which in ("gate_TF", "value_TF")
        )
        same = (gates == values).all(dim=1)
        assert same.float().mean() < 0.1  # repeated letters at one place
        assert sorted(gates.tolist()) == sorted(values.tolist())
    (y,) = next(states.outputs("relu", True))[:1]
    first = states.texts[0][0]
    np.testing.assert_array_equal(y, (first.gate_TF.clamp(min=0) * first.value_TF).numpy())


def test_a_gated_model_has_values(save: Save) -> None:
    states = record_states(save(kind="decoder", activation="geglu")[0])
    assert "gates and values are the model's" in states.about


def test_words_go_through_an_encoder_decoder_that_writes(save: Save) -> None:
    path, model = save(kind="encoder-decoder", activation="relu", generation={"split_on_whitespace": True})
    states = record_states(path)
    assert "the 2 activations of" in states.about
    assert "32 words" in states.about
    words = english_words(TEXTS)
    lengths = [[len(layer.gate_TF) for layer in text] for text in states.texts]
    assert [source for source, _ in lengths] == [len(word) for word in words]
    source = torch.tensor([[IDS[letter] for letter in words[0]]])
    target = [1]
    with torch.no_grad():
        while len(target) < lengths[0][1]:
            target.append(int(model(source, torch.tensor([target]))[0, -1].argmax()))
    expected = read_by_second_projection(model, source, torch.tensor([target]))
    for one, other in zip(expected, next(states.outputs("relu", False)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(target for _, target in lengths) > 1


def test_normal_inputs_are_normal_and_say_so() -> None:
    states = normal_states()
    assert states.about.startswith("normal inputs, not a model's")
    gates, values = (
        torch.cat([getattr(text[0], which).flatten() for text in states.texts]) for which in ("gate_TF", "value_TF")
    )
    for drawn in (gates, values):
        assert abs(float(drawn.mean())) < 0.01  # 0.001 is one standard error
        assert abs(float(drawn.std()) - 1) < 0.01
    assert abs(float((gates * values).mean())) < 0.01


def test_what_cannot_be_recorded_is_said(save: Save, tmp_path: Path) -> None:
    path, model = save(kind="encoder", activation="relu")
    with torch.no_grad():
        model.encoder.layers[0].feed_forward.linear1.weight[0, 0] = torch.nan
    save_checkpoint(model, path)
    with pytest.raises(CheckpointError, match="NaN or infinity enters an activation"):
        record_states(path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json: put it there, or leave the checkpoint out"):
        record_states(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        record_states(tmp_path / "none.pt")


def test_images_are_no_texts(save: Save) -> None:
    path, _ = save(kind="encoder", activation="gelu", image_size=8, patch_size=4, positions="learned")
    with pytest.raises(CheckpointError, match="reads no text"):
        record_states(path)


def test_a_tokenizer_of_no_english_is_refused(save: Save, tmp_path: Path) -> None:
    path, _ = save(kind="decoder", activation="relu", generation={"split_on_whitespace": True})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "ж": 1}, unk_token="?"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="reads 0 of the built-in English texts, fewer than 6"):
        record_states(path)
