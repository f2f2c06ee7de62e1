"""`generate()` without arguments gives what transformers' gives of the same folder, token for token.

All that the folder says of generating is in generation_config.json or, as in older folders, in config.json.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.generation_models import V
from tests.support.tiny_bundles import BOS, EOS, PAD
from tfm.bundle import read_manifest, renew_manifest
from tfm.errors import InputError
from tfm.export.manifest import generation_settings
from tfm.model import load_checkpoint
from tfm.runtime import load

PROMPTS = [np.random.default_rng(seed).integers(4, V, length).tolist() for seed, length in enumerate((1, 9, 4))]
SOME = list(range(4, 38))

CASES: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 33},
    "max_new_tokens": {"max_new_tokens": 27, "max_length": 12},
    "min_length": {"min_length": 16, "max_length": 24},
    "min_new_tokens": {"min_new_tokens": 11, "min_length": 30, "max_length": 36},
    "repetition_penalty": {"repetition_penalty": 1.5, "max_length": 30},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "max_length": 30},
    "suppress_tokens": {"suppress_tokens": [*SOME[::3], 99], "max_length": 30},
    "begin_suppress_tokens": {"begin_suppress_tokens": SOME, "max_length": 30},
    "begin_suppress_tokens behind a forced one": {
        "begin_suppress_tokens": SOME,
        "forced_bos_token_id": 7,
        "max_length": 30,
    },
    "bad_words_ids": {"bad_words_ids": [[14], [4], [25, 28], [19, 19], [PAD]], "max_length": 30},
    "language of a translation": {"forced_bos_token_id": 31, "max_length": 20},
    "forced_eos_token_id": {"forced_eos_token_id": EOS, "suppress_tokens": [5], "max_length": 18},
    "several ends": {"eos_token_id": [EOS, 9, 10, 11, 20, 35], "max_length": 30},
    "num_beams": {"num_beams": 4, "max_length": 20},
    "length_penalty": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "max_length": 20},
    "without effect": {
        "temperature": 0.0,
        "top_p": 0.9,
        "length_penalty": 2.0,
        "early_stopping": True,
        "use_cache": False,
        "max_length": 20,
    },
    "summaries of news": {
        "num_beams": 4,
        "min_length": 12,
        "max_length": 30,
        "no_repeat_ngram_size": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "forced_bos_token_id": 1,
        "forced_eos_token_id": EOS,
    },
}


class Pair:
    """A bundle and transformers' model, both of a folder with settings of generating in it."""

    def __init__(self, bundle: Path, model: Any) -> None:
        self.ours, self._model = load(bundle, provider="cpu", threads=1), model

    def theirs(self, **options: Any) -> list[list[int]]:
        """Per prompt its new tokens, without the one that ended it."""
        start = 1 if self._model.config.is_encoder_decoder else None
        return [self._one(prompt, len(prompt) if start is None else start, options) for prompt in PROMPTS]

    def _one(self, prompt: list[int], start: int, options: dict[str, Any]) -> list[int]:
        ids_1S = torch.tensor([prompt])
        [row] = self._model.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **options).tolist()
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        row = row[start:]
        return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


@pytest.fixture
def folder_with(
    tmp_path: Path, generation_bundle: Callable[[str], tuple[Path, Any]]
) -> Callable[[str, str, dict[str, Any]], Pair]:
    def make(kind: str, file: str, settings: dict[str, Any]) -> Pair:
        bundle, model = generation_bundle(kind)
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(bundle.parent / "checkpoint", checkpoint)
        shutil.copytree(bundle, tmp_path / "bundle")
        said = json.loads((checkpoint / "generation_config.json").read_text())
        (checkpoint / "generation_config.json").unlink()
        if file == "config.json":
            said = json.loads((checkpoint / file).read_text())
        (checkpoint / file).write_text(
            json.dumps({**said, "eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": BOS, **settings})
        )
        written = generation_settings(checkpoint, load_checkpoint(checkpoint).config)
        renew_manifest(read_manifest(bundle), tmp_path / "bundle", {"generation": written})
        return Pair(tmp_path / "bundle", type(model).from_pretrained(checkpoint).eval())

    return make


FolderWith = Callable[[str, str, dict[str, Any]], Pair]
kinds = pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "marian", "bart"])


def _mostly_slow(kind: str, case: str) -> Any:
    """Of one family what it comes with, and of two what they differ in, are enough for every day."""
    daily = {"bart": ("summaries of news", "bad_words_ids", "several ends"), "gpt2": ("max_length", "min_new_tokens")}
    daily["t5"] = ("begin_suppress_tokens behind a forced one", "length_penalty")
    return pytest.param(kind, case, marks=[] if case in daily.get(kind, ()) else [pytest.mark.slow])


@pytest.mark.parametrize(
    ("kind", "case"), [_mostly_slow(kind, case) for kind in ("gpt2", "llama", "t5", "marian", "bart") for case in CASES]
)
def test_without_arguments(folder_with: FolderWith, kind: str, case: str) -> None:
    pair = folder_with(kind, "generation_config.json", CASES[case])
    assert pair.ours.generate(PROMPTS) == pair.theirs()


@pytest.mark.parametrize(
    ("kind", "case"), [("gpt2", "max_length"), ("t5", "no_repeat_ngram_size"), ("bart", "num_beams")]
)
def test_without_arguments_of_an_older_folder(folder_with: FolderWith, kind: str, case: str) -> None:
    pair = folder_with(kind, "config.json", CASES[case])
    assert pair.ours.generate(PROMPTS) == pair.theirs()


@pytest.mark.slow
@kinds
def test_the_settings_do_something(folder_with: FolderWith, kind: str, tmp_path: Path) -> None:
    plain = folder_with(kind, "generation_config.json", {"max_length": 30}).ours
    found = plain.generate(PROMPTS)
    for case in ("repetition_penalty", "begin_suppress_tokens", "language of a translation", "several ends"):
        shutil.rmtree(tmp_path / "bundle"), shutil.rmtree(tmp_path / "checkpoint")
        assert folder_with(kind, "generation_config.json", CASES[case]).ours.generate(PROMPTS) != found, case


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_what_is_asked_for_goes_before_the_folder(folder_with: FolderWith, kind: str) -> None:
    pair = folder_with(kind, "generation_config.json", CASES["summaries of news"])
    for asked in (
        {"num_beams": 1, "max_new_tokens": 15},
        {"num_beams": 2, "length_penalty": -1.0},
        {"min_length": 0, "no_repeat_ngram_size": 0, "forced_bos_token_id": 6},
        {"max_new_tokens": 40, "min_new_tokens": 35},
    ):
        assert pair.ours.generate(PROMPTS, **asked) == pair.theirs(**asked)


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_a_stream_goes_without_the_folders_beams(folder_with: FolderWith, kind: str) -> None:
    """Transformers refuses a streamer beside beams; only who asks for them himself is refused here."""
    pair = folder_with(kind, "generation_config.json", CASES["summaries of news"])
    assert [list(pair.ours.stream(prompt)) for prompt in PROMPTS] == pair.theirs(num_beams=1)
    with pytest.raises(InputError, match="a stream is one text of which nothing is taken back"):
        pair.ours.stream(PROMPTS[0], num_beams=4)


def test_a_folder_that_draws_is_drawn_from(folder_with: FolderWith) -> None:
    """As in chat models' folders; transformers draws from 50 tokens where the folder does not say from how many."""
    pair = folder_with(
        "llama", "generation_config.json", {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_length": 40}
    )
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50}
    assert dict(pair.ours.manifest.generation.defaults) == defaults
    drawn = pair.ours.generate(PROMPTS, seed=3)
    assert drawn == pair.ours.generate(PROMPTS, seed=3, **defaults) != pair.ours.generate(PROMPTS, seed=4)
    assert pair.ours.generate(PROMPTS, do_sample=False) == pair.theirs(do_sample=False) != drawn
    assert pair.ours.generate(PROMPTS, num_beams=2) == pair.theirs(do_sample=False, num_beams=2)


def test_a_prompt_beyond_the_folders_length_is_refused_as_transformers_refuses_it(folder_with: FolderWith) -> None:
    pair = folder_with("gpt2", "generation_config.json", {"max_length": 9})
    with pytest.raises(InputError, match=r"prompt 0 has 9 tokens, and this bundle's texts end at 9, .* max_new_tokens"):
        pair.ours.generate([PROMPTS[1]])
    with pytest.raises(ValueError, match="Input length of input_ids is 9, but `max_length` is set to 9"):
        pair.theirs()
    assert len(pair.ours.generate([PROMPTS[1]], max_new_tokens=3)[0]) <= 3
    talk = pair.ours.conversation()
    list(talk.reply([5, 6]))
    with pytest.raises(InputError, match="this bundle's texts end at 9"):
        talk.reply([5, 6])
    had = list(talk.tokens)
    assert len(list(talk.reply([5, 6], max_new_tokens=2))) == 2
    assert talk.tokens[: len(had) + 2] == [*had, 5, 6]
