"""`tfm parity --ckpt`: a bundle against eager PyTorch, on the command line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import tfm.export.bundle as bundle
from tfm.cli import main
from tfm.export import export_checkpoint
from tfm.model import save_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt, good.tfm, and bad.tfm, whose gelu is the wrong one."""
    folder = tmp_path_factory.mktemp("parity")
    save_checkpoint(make_model(kind="encoder", activation="gelu"), folder / "model.pt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
        assert export_checkpoint(folder / "model.pt", folder / "good.tfm").passed
    shutil.copytree(folder / "good.tfm", folder / "bad.tfm")
    file = folder / "bad.tfm" / "onnx" / "model.onnx"
    model = ir.load(file)
    (node,) = (node for node in model.graph if node.op_type == "Gelu")
    node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    ir.save(model, file)
    manifest = json.loads((folder / "bad.tfm" / "manifest.json").read_text())
    content = file.read_bytes()
    manifest["files"]["onnx/model.onnx"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "bad.tfm" / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], made: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `tfm parity … --ckpt model.pt`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(made)

    def invoke(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["parity", *map(str, arguments), "--ckpt", "model.pt"])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def test_the_same(run: Run) -> None:
    code, out, err = run("good.tfm", "--cases", 2)
    assert code == 0
    assert "✓ the same as eager PyTorch on 3 inputs and every id of the vocabulary" in out
    assert "layers.0.feed_forward.activation" in out
    assert "compare int8 model with eager on 3 inputs" in err


def test_a_zip(run: Run, made: Path, tmp_path: Path) -> None:
    code, out, _ = run(shutil.make_archive(str(tmp_path / "good"), "zip", made / "good.tfm"), "--cases", 2)
    assert code == 0
    assert "✓ the same as eager PyTorch on 3 inputs" in out


def test_not_the_same(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("bad.tfm", "--cases", 2, "--precision", "fp32", "--bisect", tmp_path / "smallest")
    assert code == 1
    assert "✗ not the same as eager PyTorch:" in out
    assert "fp32 model: activation encoder.layers.0.feed_forward.activation: off by itself by 4" in out
    assert "called at tfm/model/layer.py:" in out
    assert "by itself: Gelu, off by 4" in out
    assert {file.name for file in (tmp_path / "smallest").iterdir()} == {"differs.onnx", "differs.npz", "reproduce.py"}
    assert "--bisect FOLDER cuts out the smallest part" in run("bad.tfm", "--cases", 1, "--precision", "fp32")[1]


def test_for_machines(run: Run) -> None:
    code, out, _ = run("bad.tfm", "--cases", 1, "--seed", 5, "--json")
    report = json.loads(out)
    assert (code, report["passed"], len(report["graphs"])) == (1, False, 2)
    assert "activation encoder.layers.0.feed_forward.activation" in report["faults"][0]


def test_what_cannot_be(run: Run) -> None:
    assert run("good.tfm", "--threads", 2)[0] == 2
    code, _, err = run("nothing.tfm")
    assert code == 2
    assert "nothing.tfm" in err
    code, _, err = run("good.tfm", "--precision", "int4")
    assert (code, "has no 'int4'" in err) == (2, True)
