"""What embeddings lose in a smaller form is measured, and told in the certificate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfm.export.bundle as export_bundle
from tests.support.task_models import make
from tfm.export import export_checkpoint
from tfm.export.verify import vector_forms
from tfm.export.verify.vector_forms import measure_vector_forms, recall
from tfm.runtime import Encoder, load

transformers = pytest.importorskip("transformers", reason="what the checkpoints are made with")

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
FORMS = ("int8", "int8 restored", "binary", "16 dimensions")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    make("bert", "Model", folder / "checkpoint")
    (folder / "checkpoint" / "modules.json").write_text(json.dumps(MODULES))
    (folder / "checkpoint" / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "checkpoint" / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_bundle, "measure_latency", lambda *_: [])  # it has its own tests
        patched.setattr(export_bundle, "ask_library", lambda *_: None)
        assert export_checkpoint(folder / "checkpoint", folder / "x.tfm", precisions=["fp32"]).passed
    return folder / "x.tfm"


def test_the_certificate_tells_each_form(exported: Path) -> None:
    certificate = json.loads((exported / "parity.json").read_text())
    found = {entry["measure"]: entry for entry in certificate["fidelity"] if entry["measure"] != "cosine"}
    assert list(found) == [f"{measure}, {form}" for form in FORMS for measure in ("Spearman", "recall@10")]
    assert all(entry["passed"] and entry["floor"] == 0 and entry["count"] == 128 for entry in found.values())
    assert found["Spearman, int8 restored"]["value"] > 0.99 > found["Spearman, binary"]["value"] > 0
    assert "recall@10, binary in fp32" in (exported / "report.html").read_text()


def test_each_figure_is_of_its_form(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, by another way: bits are compared by how many differ."""
    bundle = load(exported, provider="cpu", threads=1)
    assert isinstance(bundle, Encoder)
    texts = [f"{a} {b} {c}" for a in ("paris", "who lives") for b in ("town", "new york") for c in "abcdefghijkl"]
    monkeypatch.setattr(vector_forms, "held_out", lambda *_: texts)
    found = {part.measure: part.value for part in measure_vector_forms(bundle)}
    rows = bundle.embed(texts)
    differ = (rows[:, None] > 0) != (rows[None] > 0)
    expected = recall(by_hand(-differ.sum(-1)), by_hand(cosines(rows)))
    assert found["recall@10, binary"] == pytest.approx(expected, abs=0.05)  # where bits tie, the order is any
    assert found["recall@10, 16 dimensions"] == recall(by_hand(cosines(rows[:, :16])), by_hand(cosines(rows)))
    assert found["recall@10, int8"] > 0.5


def cosines(rows: Any) -> Any:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def by_hand(near: Any) -> Any:
    near = near.astype(np.float64)
    np.fill_diagonal(near, -np.inf)
    return near


def test_of_too_few_texts_nothing_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load(exported, provider="cpu", threads=1)
    assert isinstance(bundle, Encoder)
    monkeypatch.setattr(vector_forms, "held_out", lambda *_: ["paris"] * 39)
    assert measure_vector_forms(bundle) == []


def test_recall() -> None:
    near = by_hand(np.random.default_rng(0).standard_normal((20, 20)))
    assert recall(near, near) == 1
    assert recall(near, by_hand(-near)) < 0.4
    assert recall(near, by_hand(np.where(np.isinf(near), 0, near) * 3 + 1)) == 1
