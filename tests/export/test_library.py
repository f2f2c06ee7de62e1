"""A bundle against the library that its checkpoint comes with: what agrees passes, and what does not is found."""

import dataclasses
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfm.export.bundle as export_bundle
from tests.support.task_models import edit_json, make, quick
from tfm.export import export_checkpoint
from tfm.export.verify.ask_library import NotCompared, Reference, ask_library
from tfm.export.verify.library import TASK_FLOORS, compare_with_library, spearman
from tfm.runtime import load

pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the library: pip install transformers")

HAS_SENTENCES = importlib.util.find_spec("sentence_transformers") is not None
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("ForSequenceClassification", {"num_labels": 3}),
    "rank": ("ForSequenceClassification", {"num_labels": 1}),
    "classify_tokens": ("ForTokenClassification", {"id2label": {0: "O", 1: "B-PLACE", 2: "I-PLACE"}}),
    "fill_mask": ("ForMaskedLM", {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Any, Path]]:
    found: dict[Any, tuple[Any, Path]] = {}

    def of(family: str, task: str) -> tuple[Any, Path]:
        if (family, task) not in found:
            folder = tmp_path_factory.mktemp("library")
            head, options = HEADS[task]
            make(family, head, folder / "checkpoint", **options)
            bundle = load(quick(folder / "checkpoint", folder / "x.tfm"), provider="cpu", threads=1)
            found[family, task] = bundle, folder / "checkpoint"
        return found[family, task]

    return of


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "classify"), ("bert", "rank"), ("bert", "classify_tokens"), ("bert", "fill_mask"), ("mpnet", "classify")],
)
def test_what_is_right_agrees(made: Callable[..., Any], family: str, task: str) -> None:
    bundle, folder = made(family, task)
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    assert reference.library == f"transformers {transformers.__version__}"
    [found] = compare_with_library(reference, bundle)
    assert found.passed, found
    assert (found.measure, found.count) == ("task scores", len(reference.inputs))
    assert found.count >= 5
    assert found.gate.stage == "task"
    if task == "classify":
        assert any(isinstance(one, tuple) for one in reference.inputs)


def test_what_reads_padding_is_compared_one_by_one(made: Callable[..., Any]) -> None:
    """ConvBERT's convolutions reach into padding: its library gives a text other scores beside a longer one."""
    bundle, folder = made("convbert", "classify")
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference), reference
    assert reference.alone
    [found] = compare_with_library(reference, bundle)
    assert found.passed, found
    assert "each alone, as padding changes what the library gives" in found.data
    [together] = compare_with_library(dataclasses.replace(reference, alone=False), bundle)
    assert not together.passed
    other = ask_library(made("bert", "classify")[1], made("bert", "classify")[0])
    assert isinstance(other, Reference)
    assert not other.alone


@pytest.mark.parametrize("task", ["classify", "rank"])
def test_pairs_without_their_types_are_found(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    bundle, folder = made("bert", task)
    reference = ask_library(folder, bundle)
    assert isinstance(reference, Reference)
    monkeypatch.setattr(bundle._reader, "_has_types", False)
    [found] = compare_with_library(reference, bundle)
    assert not found.passed
    assert not found.gate.may_be_overruled


def test_a_longer_limit_is_found(made: Callable[..., Any], tmp_path: Path) -> None:
    _, folder = made("bert", "classify")
    reference = ask_library(folder, made("bert", "classify")[0])
    assert isinstance(reference, Reference)
    bundle = quick(folder, tmp_path / "x.tfm")
    edit_json(bundle / "manifest.json", max_text_tokens=16)
    [found] = compare_with_library(reference, load(bundle, provider="cpu", threads=1))
    assert not found.passed


def test_of_a_quantized_graph_it_is_what_is_made_of_it(made: Callable[..., Any], monkeypatch: Any) -> None:
    for task, measure in (("classify", "task labels"), ("rank", "task Spearman"), ("classify_tokens", "task labels")):
        bundle, folder = made("bert", task)
        reference = ask_library(folder, bundle)
        assert isinstance(reference, Reference)
        with monkeypatch.context() as patched:
            patched.setattr(bundle, "precision", "int8")  # the same graph, judged as a quantized one
            [found] = compare_with_library(reference, bundle)
            assert (found.measure, found.passed) == (measure, True)
            assert found.gate.may_be_overruled
            turned = dataclasses.replace(reference, expected=reference.expected[::-1])
            if task == "rank":
                [found] = compare_with_library(turned, bundle)
                assert not found.passed


def test_what_is_not_installed_is_told(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, folder = made("bert", "classify")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = ask_library(folder, bundle)
    assert found == NotCompared("transformers is not installed: pip install transformers")


def test_what_the_library_cannot_run_is_told(made: Callable[..., Any], tmp_path: Path) -> None:
    bundle, _ = made("bert", "classify")
    (tmp_path / "config.json").write_text("{}")
    found = ask_library(tmp_path, bundle)
    assert isinstance(found, NotCompared)
    assert found.why.startswith(f"transformers {transformers.__version__} could not run the checkpoint: ")


def test_a_head_that_the_library_would_draw_at_random(tmp_path: Path) -> None:
    make("electra", "ForPreTraining", tmp_path / "checkpoint")
    bundle = load(quick(tmp_path / "checkpoint", tmp_path / "x.tfm"), provider="cpu", threads=1)
    assert bundle.tasks == ("classify_tokens",)
    found = ask_library(tmp_path / "checkpoint", bundle)
    assert isinstance(found, NotCompared)
    assert "it has no weights for ElectraForTokenClassification, such as classifier.bias" in found.why


def test_a_checkpoint_of_no_library(made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _ = made("bert", "classify")
    assert ask_library(None, bundle) is None
    assert ask_library(tmp_path, bundle) is None
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(bundle, "manifest", dataclasses.replace(bundle.manifest, family="transformer"))
    assert ask_library(tmp_path, bundle) is None


@pytest.mark.parametrize("installed", [True, False])
def test_an_export_says_whether_it_was_compared(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    _, folder = made("bert", "classify")
    monkeypatch.setattr(export_bundle, "measure_latency", lambda *_: [])  # it has its own tests, and takes longest
    if not installed:
        monkeypatch.setattr(export_bundle, "ask_library", lambda *_: NotCompared("transformers is not here"))
    report = export_checkpoint(folder, tmp_path / "x.tfm", precisions=["fp32"])
    assert report.passed
    certificate = json.loads((tmp_path / "x.tfm" / "parity.json").read_text())
    measures = [entry["measure"] for entry in certificate["fidelity"]]
    page = (tmp_path / "x.tfm" / "report.html").read_text()
    if installed:
        assert measures == ["cosine", "task scores"]
        assert certificate["not_judged"] == []
        assert f"against transformers {transformers.__version__}" in page
        assert "fp32 task scores" in [gate["name"] for gate in json.loads(read(tmp_path))["gates"]]
    else:
        said = "The task was not compared with the library that the checkpoint comes with: transformers is not here."
        assert (measures, certificate["not_judged"]) == (["cosine"], [said])
        assert said in page


def read(folder: Path) -> str:
    return (folder / "x.tfm" / "manifest.json").read_text()


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="needs the package pillow")
def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(image_size=12, patch_size=4, initializer_range=0.6, num_labels=7, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "checkpoint")
    processor = transformers.ViTImageProcessorPil(size={"height": 12, "width": 12})
    processor.save_pretrained(tmp_path / "checkpoint")
    bundle = load(quick(tmp_path / "checkpoint", tmp_path / "x.tfm"), provider="cpu", threads=1)
    reference = ask_library(tmp_path / "checkpoint", bundle)
    assert isinstance(reference, Reference), reference
    [found] = compare_with_library(reference, bundle)
    assert (found.measure, found.passed, found.count) == ("task scores", True, 4)
    monkeypatch.setattr(bundle._reader, "_preparation", dataclasses.replace(bundle._reader._preparation, resample=0))
    assert not compare_with_library(reference, bundle)[0].passed


@pytest.mark.skipif(not HAS_SENTENCES, reason="needs the package sentence-transformers")
@pytest.mark.parametrize(("family", "alone"), [("bert", False), ("deberta-v2", False), ("convbert", True)])
def test_sentence_transformers(tmp_path: Path, family: str, alone: bool) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    make(family, "Model", tmp_path / "base")
    words = Transformer(str(tmp_path / "base"), max_seq_length=24)
    modules = [words, Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "checkpoint"))
    bundle = load(quick(tmp_path / "checkpoint", tmp_path / "x.tfm"), provider="cpu", threads=1)
    reference = ask_library(tmp_path / "checkpoint", bundle)
    assert isinstance(reference, Reference), reference
    assert reference.library.startswith("sentence-transformers ")
    assert reference.alone is alone
    [found] = compare_with_library(reference, bundle)
    assert (found.measure, found.passed) == ("task cosine", True)
    longer = dataclasses.replace(reference, expected=np.asarray(reference.expected) * 3)
    assert not compare_with_library(longer, bundle)[0].passed
    other = dataclasses.replace(reference, expected=np.asarray(reference.expected)[::-1])
    assert not compare_with_library(other, bundle)[0].passed


def test_every_measure_has_a_floor_in_every_precision_that_it_is_of() -> None:
    whole = ("cosine", "scores", "letters")
    exact = {(f"task {measure}", precision) for measure in whole for precision in ("fp32", "fp16")}
    rounded = {(f"task {measure}", precision) for measure in ("Spearman", "labels") for precision in ("int8", "int4")}
    steps = {("task steps", precision) for precision in ("fp16", "int8", "int4")}
    assert set(TASK_FLOORS) == exact | rounded | steps | {("task tokens", "fp32")}


def test_spearman() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert abs(spearman(values, rng.standard_normal(40))) < 0.5
