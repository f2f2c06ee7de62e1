"""What a bundle generates against transformers' own `generate`, as an export compares it: what is wrong is found."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tfm.export.bundle as export_bundle
from tests.support.task_models import COMPARED
from tests.support.tiny_bundles import BOS, EOS, PAD, tokenizer
from tfm.bundle import read_manifest, renew_manifest
from tfm.export import export_checkpoint
from tfm.export.manifest import generation_settings
from tfm.export.verify.ask_generation import Continued
from tfm.export.verify.ask_library import NotCompared, Reference, ask_library
from tfm.export.verify.library import compare_with_library
from tfm.model import load_checkpoint
from tfm.runtime import Decoder, EncoderDecoder, load

transformers = pytest.importorskip("transformers", reason="the library: pip install transformers")

Made = Callable[..., tuple[Decoder | EncoderDecoder, Path]]
BEAMS = {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "early_stopping": True}


@pytest.fixture
def made(tmp_path: Path, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Made:
    """A bundle, and the checkpoint that it is of, with a tokenizer or without, and settings of generating."""

    def of(kind: str, *, texts: bool = True, **settings: Any) -> tuple[Decoder | EncoderDecoder, Path]:
        bundle, _ = generation_bundle(kind)
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(bundle.parent / "checkpoint", checkpoint)
        shutil.copytree(bundle, tmp_path / "bundle")
        said = json.loads((checkpoint / "generation_config.json").read_text())
        ids = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": BOS}
        (checkpoint / "generation_config.json").write_text(json.dumps({**said, **ids, **settings}))
        if texts:
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer()).save_pretrained(checkpoint)
        else:
            (tmp_path / "bundle" / "tokenizer.json").unlink()
        written = generation_settings(checkpoint, load_checkpoint(checkpoint).config)
        renew_manifest(read_manifest(bundle), tmp_path / "bundle", {"generation": written})
        opened = load(tmp_path / "bundle", provider="cpu", threads=1)
        assert isinstance(opened, Decoder | EncoderDecoder)
        return opened, checkpoint

    return of


@pytest.mark.parametrize("kind", COMPARED["generate"][2])
def test_what_is_right_agrees(made: Made, kind: str) -> None:
    bundle, folder = made(kind, **(BEAMS if kind in ("bart", "llama") else {}))
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    assert (reference.library, reference.task) == (f"transformers {transformers.__version__}", "generate")
    ways = [way.settings["num_beams"] for way in reference.expected]
    assert ways == ([1, 3] if kind in ("bart", "llama") else [1])
    [found] = compare_with_library(reference, bundle)
    assert found.passed, found
    assert (found.measure, found.count, found.gate.stage) == ("task tokens", 5 * len(ways), "task")
    assert not found.gate.may_be_overruled
    assert len({len(row) for row in bundle.tokenize(list(reference.inputs))}) > 2  # a ragged batch
    assert any(continued.tokens for continued in reference.expected[0].expected)


def test_of_ids_alone(made: Made) -> None:
    bundle, folder = made("gpt2", texts=False)
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    assert [len(row) for row in reference.inputs] == [12, 1, 7, 3, 16]
    [found] = compare_with_library(reference, bundle)
    assert found.passed


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"repetition_penalty": 3.0}),
        ("bart", {"forced_bos_token_id": 11}),
        ("t5", {"no_repeat_ngram_size": 1}),
        ("llama", {**BEAMS, "length_penalty": -4.0}),
    ],
)
def test_a_setting_that_is_dropped_is_found(made: Made, kind: str, settings: dict[str, Any]) -> None:
    bundle, folder = made(kind, **settings)
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    assert compare_with_library(reference, bundle)[0].passed
    # As an export that reads no settings would have it.
    assert bundle.manifest.generation is not None
    bare = dataclasses.replace(bundle.manifest.generation, defaults={})
    manifest = dataclasses.replace(bundle.manifest, generation=bare)
    bundle.manifest = manifest
    bundle.__dict__.pop("_defaults", None)
    [found] = compare_with_library(reference, bundle)
    assert not found.passed
    assert found.value < 1


def test_texts_that_are_read_otherwise_are_found(made: Made) -> None:
    bundle, folder = made("llama")
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    other = [f"x{text}" for text in reference.inputs]
    assert compare_with_library(dataclasses.replace(reference, inputs=other), bundle)[0].value == 0


@pytest.mark.parametrize("kind", COMPARED["generate"][2])
def test_rounded_graphs_are_led_along_the_librarys_tokens(
    made: Made, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, folder = made(kind, repetition_penalty=1.5)
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    monkeypatch.setattr(bundle, "precision", "int8")
    [found] = compare_with_library(reference, bundle)
    # The graph is fp32's, so that every step is the library's, and the end of a text is a step too.
    assert (found.measure, found.value, found.passed) == ("task steps", 1.0, True)
    greedy = reference.expected[0].expected
    assert found.count == sum(len(continued.ties) for continued in greedy) > len(greedy)
    # One token that is another counts once: what follows goes on from the library's.
    first = dataclasses.replace(greedy[0], ties=[frozenset({-1}), *greedy[0].ties[1:]])
    way = dataclasses.replace(reference.expected[0], expected=[first, *greedy[1:]])
    [found] = compare_with_library(dataclasses.replace(reference, expected=[way]), bundle)
    assert found.value == pytest.approx(1 - 1 / found.count)


def test_without_transformers_nothing_is_said_to_agree(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, folder = made("gpt2")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert ask_library(folder, bundle) == NotCompared("transformers is not installed: pip install transformers")


def test_an_export_compares_what_is_generated(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = made("llama", **BEAMS)
    monkeypatch.setattr(export_bundle, "measure_latency", lambda *_: [])  # it has its own tests
    report = export_checkpoint(folder, tmp_path / "x.tfm", precisions=["fp32"])
    assert report.passed
    found = {part.measure: part for part in report.fidelity}["task tokens"]
    assert found.data == f"prompts in 2 ways, against transformers {transformers.__version__}"
    assert report.certificate["not_judged"] == []
    assert "fp32 task tokens" in [
        gate["name"] for gate in json.loads((tmp_path / "x.tfm/manifest.json").read_text())["gates"]
    ]


ENDS = (2, 9)


@pytest.mark.parametrize(
    ("ours", "same"),
    [
        ([5, 6, 7], True),
        ([5, 6, 8], False),
        ([5, 4, 8], True),  # a tie at the second
        ([5, 3, 7], False),
        ([5, 6], True),  # it ended where the end was as good
        ([5], False),
        ([], False),
        ([5, 6, 7, 4], False),
        ([1, 1], True),
    ],
)
def test_where_two_tokens_are_as_good(ours: list[int], same: bool) -> None:
    ties = [frozenset({5}), frozenset({6, 4}), frozenset({7, 9}), frozenset({2})]
    assert Continued([1], [5, 6, 7], ties, others=[[1, 1]]).agrees(ours, ENDS) is same
