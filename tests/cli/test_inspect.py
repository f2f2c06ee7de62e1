"""`tfm inspect`: tables, JSON, a page, and one sentence for bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.cli import main
from tfm.export.manifest import write_manifest

Run = Callable[..., tuple[int, str, str]]
ENCODER = {
    "kind": "encoder",
    "activation": "gelu",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "positions": "learned",
}


@pytest.fixture
def bundle(export_tiny: Any, toys: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "x.tfm"
    (folder / "onnx").mkdir(parents=True)
    one = export_tiny(**ENCODER)["model"]
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(one.path.read_bytes())
    toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
    write_manifest(folder, one.graph.model.config, "own", [one.graph], {"fp32": {"model": path}}, 24, [])
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def test_tables(run: Run, bundle: Path) -> None:
    code, out, err = run(bundle, "a b c b")
    assert (code, err) == (0, "")
    assert out.startswith("x.tfm · encoder · fp32\n  reads a b c b\n")
    for said in ("attention, 6 tokens", "layers.0.self_attn", "feed-forward units, gelu", "24", "residual stream"):
        assert said in out
    assert "encoder.layers" not in out


def test_json(run: Run, bundle: Path) -> None:
    code, out, _ = run(bundle, "a b c b", "--json")
    content = json.loads(out)
    assert (code, content["schema"], content["bundle"], content["text"]) == (0, 1, "x.tfm", "a b c b")
    assert content["stacks"][0]["tokens"] == ["<s>", "a", "b", "c", "b", "</s>"]
    assert "weights" not in content["stacks"][0]["attentions"][0]
    _, out, _ = run(bundle, "a b c b", "--json", "--weights")
    weights = json.loads(out)["stacks"][0]["attentions"][0]["weights"]
    assert [len(weights), len(weights[0]), len(weights[0][0])] == [2, 6, 6]


def test_a_page(run: Run, bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run(bundle, "a b", "-o", tmp_path / "look.html")
    assert code == 0
    assert out.endswith(f"→ {tmp_path / 'look.html'}\n")
    assert "x.tfm: a look inside" in (tmp_path / "look.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["  "], "tfm: the text is empty; give one to look at\n"),
        (["a b", "--precision", "int3"], "has no 'int3' graph to look into; it has: fp32\n"),
        (["a b", "-o", "nowhere/at/all.html"], "tfm: --output: there is no folder "),
        (["a b", "--weights"], "--weights is for --json\n"),
        (["a " * 30], "the text has 32 tokens, but "),
        ([], "Missing argument 'TEXT'"),
    ],
)
def test_bad_usage(run: Run, bundle: Path, arguments: list[str], said: str) -> None:
    code, out, err = run(bundle, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_what_is_no_bundle(run: Run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "a")
    assert code == 2
    assert "holds no manifest.json" in err


@pytest.mark.parametrize("absent", ["onnx_ir", "rich", "jinja2"])
def test_a_missing_package_is_named(bundle: Path, tmp_path: Path, absent: str) -> None:
    (tmp_path / f"{absent}.py").write_text(f"raise ModuleNotFoundError('no {absent}', name='{absent}')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tfm.cli import main; main(['inspect', 'x', 'a'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"tfm: a look inside needs the package {absent}: pip install 'tfm-export[quantize]'\n"


def test_it_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    page = tmp_path / "x.html"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tfm.cli import main; "
        f"main(['inspect', {str(bundle)!r}, 'a b', '-o', {str(page)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert page.is_file()
