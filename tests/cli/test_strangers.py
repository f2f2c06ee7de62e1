"""What a stranger found who tried to break the command line, each with the sentence it gets now."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tfm.cli import export, main
from tfm.model import save_checkpoint

ENCODER = {"kind": "encoder", "activation": "gelu"}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], command: Any = export) -> str:
    """The one sentence on stderr with which a command ends, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        command(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def checkpoint(make_model: Any, tmp_path: Path) -> Path:
    save_checkpoint(make_model(**ENCODER), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(
    make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    model = make_model(**ENCODER)
    with torch.no_grad():
        model.encoder.layers[0].feed_forward.linear1.weight[1, 2] = value
    save_checkpoint(model, tmp_path / "model.pt")
    said = refused(["--ckpt", str(tmp_path / "model.pt"), "-o", str(tmp_path / "x.tfm")], capsys)
    assert "NaN or infinity in the weights encoder.layers.0.feed_forward.linear1.weight" in said
    assert not (tmp_path / "x.tfm").exists()


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_too_few_positions(make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    save_checkpoint(make_model(kind=kind, max_positions=7), tmp_path / "model.pt")
    said = refused(["--ckpt", str(tmp_path / "model.pt"), "-o", str(tmp_path / "x.tfm")], capsys)
    assert said.endswith("a model of 7 positions is too short to export: it needs 8 or more")


def test_fewest_positions(make_model: Any, tmp_path: Path) -> None:
    save_checkpoint(make_model(kind="decoder", max_positions=8), tmp_path / "model.pt")
    with pytest.raises(SystemExit) as caught:
        export(["--ckpt", str(tmp_path / "model.pt"), "-o", str(tmp_path / "x.tfm"), "--precision", "fp32"])
    assert caught.value.code == 0


def test_a_broken_tokenizer(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text('{"a":')
    said = refused(["--ckpt", str(checkpoint), "-o", str(tmp_path / "x.tfm")], capsys)
    assert f"{tmp_path / 'tokenizer.json'} cannot be read by tokenizers" in said


def test_a_broken_generation_config_is_named_where_it_is(
    make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(make_model(kind="decoder"), tmp_path / "model.pt")
    (tmp_path / "generation_config.json").write_text("{")
    said = refused(["--ckpt", str(tmp_path / "model.pt"), "-o", str(tmp_path / "x.tfm")], capsys)
    assert f"{tmp_path / 'generation_config.json'} is not JSON" in said


def test_a_tolerance_that_is_no_number(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--atol and --rtol must be finite numbers" in refused(["--ckpt", str(checkpoint), "--atol", "nan"], capsys)


def test_far_too_many_threads_and_blank_text(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tmp_path / "x.tfm")
    with pytest.raises(SystemExit):
        export(["--ckpt", str(checkpoint), "-o", bundle, "--precision", "fp32", "--json"])
    assert json.loads(capsys.readouterr().out)["passed"] is True
    said = refused(["run", bundle, "a", "--threads", "99999999999"], capsys, main)
    assert "threads must be at most 1024, but is 99999999999" in said
    assert "every TEXT is blank" in refused(["run", bundle, "  "], capsys, main)


def test_a_polite_kill_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from tfm.cli import export; export(sys.argv[1:])"]
    output = tmp_path / "out" / "x.tfm"
    process = subprocess.Popen([*command, "--ckpt", str(checkpoint), "-o", str(output)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not output.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert output.parent.exists(), "the export never began to write"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not output.parent.exists()


def test_a_link_to_a_bundle_is_followed(checkpoint: Path, tmp_path: Path) -> None:
    def run(target: Path, *more: str) -> None:
        with pytest.raises(SystemExit) as caught:
            export(["--ckpt", str(checkpoint), "-o", str(target), "--precision", "fp32", *more])
        assert caught.value.code == 0

    run(tmp_path / "x.tfm")
    written = (tmp_path / "x.tfm" / "manifest.json").stat().st_mtime_ns
    (tmp_path / "link").symlink_to(tmp_path / "x.tfm")
    run(tmp_path / "link", "--overwrite")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x.tfm" / "manifest.json").stat().st_mtime_ns > written
