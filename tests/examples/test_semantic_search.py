"""The example app that searches a folder, where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import tfm.export.bundle as bundle
from tfm.export import export_checkpoint
from tfm.model import save_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples/semantic_search/search.py"
WITHOUT = "import runpy, sys; sys.modules['torch'] = sys.modules['onnx'] = None; sys.argv = sys.argv[1:]; {}"
WORDS = [*(f"word{number}" for number in range(14)), "cat", "lease"]

FILES = {
    "pets.txt": "word1 word2\nword3\n\n\nthe cat cat\ncat\n\nword4",
    "deep/home.md": "lease lease\n",
    "deep/none.py": "cat cat cat cat",
    "empty.txt": "",
}


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> Path:
    """A bundle whose sentence embedding is the mean of the words' own, as good as none of its layers does anything."""
    folder = tmp_path_factory.mktemp("model")
    tiny = make_model(
        kind="encoder", activation="gelu", pooling="mean", normalize=True, positions="none", norm_first=True
    )
    with torch.no_grad():
        for name, parameter in tiny.named_parameters():
            if "layers" in name and "norm" not in name:
                parameter.mul_(0.01)
    save_checkpoint(tiny, folder / "model.pt")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("$A [SEP]", None, [("[SEP]", 2)])
    made.save(str(folder / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
        export_checkpoint(folder / "model.pt", folder / "x.tfm", precisions=["fp32"])
    return folder / "x.tfm"


def search(folder: Path, query: str, model: Path) -> list[list[str]]:
    code = WITHOUT.format("runpy.run_path(sys.argv[0], run_name='__main__')")
    command = [sys.executable, "-c", code, str(SCRIPT), str(folder), query, "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("  ", 2) for line in done.stdout.splitlines()]


def test_it_finds_the_passage(model: Path, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = search(tmp_path, "Cat", model)
    assert found[0][1:] == [f"{tmp_path}/pets.txt:5", "the cat cat cat"]
    assert len(found) == 4
    assert [float(score) for score, _, _ in found] == sorted((float(score) for score, _, _ in found), reverse=True)
    assert search(tmp_path, "lease", model)[0][1:] == [f"{tmp_path}/deep/home.md:1", "lease lease"]


def test_embeddings_are_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\n\nlease")
    first = search(tmp_path, "cat", model)
    cache = tmp_path / ".search.npz"
    kept = dict(np.load(cache))
    assert len(kept) == 2
    for vector in kept.values():
        vector *= -1.0
    np.savez(cache, **kept)  # what is kept is used: now the nearest is the farthest
    assert [row[1] for row in search(tmp_path, "cat", model)] == [row[1] for row in first][::-1]
    (tmp_path / "a.txt").write_text("lease\n\nword1")
    search(tmp_path, "cat", model)
    assert len(set(np.load(cache)) & set(kept)) == 1
    assert len(np.load(cache)) == 2


def test_an_empty_folder(model: Path, tmp_path: Path) -> None:
    assert search(tmp_path, "cat", model) == []
    assert search(tmp_path, "cat", model) == []


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
