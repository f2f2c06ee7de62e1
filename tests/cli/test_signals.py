"""Signals as a shell, a terminal that closes, or a user who hits Ctrl-C again and again sends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.model import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")

STOPS_AT = """
import pathlib, signal, sys, time
import tfm.export.bundle as bundle, tfm.bundle.staging as staging, tfm.bundle.scratch as scratch
from tfm.cli import export
def wait(*_, **__):
    print("here", flush=True)
    time.sleep(60)
place = {place!r}
if place == "work":
    bundle.to_onnx = wait
elif place == "clean-up":
    bundle.to_onnx = lambda *_, **__: 1 / 0
    remove = scratch.shutil.rmtree
    def slow(*arguments, **options):
        print("here", flush=True)
        time.sleep(1)
        remove(*arguments, **options)
    scratch.shutil.rmtree = slow
elif place == "end":
    bundle.measure_latency = lambda *_: []
    import tfm.cli.report as report
    report.print_report = wait
export(sys.argv[1:])
"""


@pytest.fixture
def checkpoint(make_model: Any, tmp_path: Path) -> Path:
    save_checkpoint(make_model(kind="encoder", activation="gelu"), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def _heed() -> None:
    """Let a child heed what tests may have been started to ignore, as by nohup or in the background."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start(code: str, *arguments: object, ignored: bool = False) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*(["nohup"] if ignored else []), sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n", process.communicate()[1]
    return process


def send(process: "subprocess.Popen[str]", *numbers: int) -> tuple[int, str]:
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("sent", "code"),
    [([signal.SIGHUP], 129), ([signal.SIGINT] * 5, 130), ([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], 143)],
    ids=["SIGHUP", "SIGINT x5", "one after the other"],
)
def test_whatever_asks_it_to_stop_it_cleans_up(checkpoint: Path, tmp_path: Path, sent: list[int], code: int) -> None:
    process = start(STOPS_AT.format(place="work"), "--ckpt", checkpoint, "-o", tmp_path / "out" / "x.tfm")
    assert len(list((tmp_path / "out").iterdir())) == 1
    ended, err = send(process, *sent)
    assert ended == code, err
    assert "Traceback" not in err
    assert ("nothing was left behind" in err) == (code == 130)
    assert not (tmp_path / "out").exists()


def test_an_impatient_user_does_not_cut_the_clean_up_short(checkpoint: Path, tmp_path: Path) -> None:
    """The first of them comes while an error is cleaned up after."""
    process = start(STOPS_AT.format(place="clean-up"), "--ckpt", checkpoint, "-o", tmp_path / "out" / "x.tfm")
    ended, err = send(process, *[signal.SIGINT] * 5)
    assert ended == 130, err
    assert "interrupted; nothing was left behind" in err
    assert not (tmp_path / "out").exists()


def test_what_is_said_once_the_bundle_is_there_is_true(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--precision", "fp32", "-o", tmp_path / "x.tfm")
    ended, err = send(start(STOPS_AT.format(place="end"), "--ckpt", checkpoint, *options), signal.SIGINT)
    assert ended == 130
    assert f"interrupted, but {tmp_path / 'x.tfm'} was complete, and is in place" in err
    assert (tmp_path / "x.tfm" / "manifest.json").is_file()


def test_under_nohup_a_closed_terminal_ends_nothing(checkpoint: Path, tmp_path: Path) -> None:
    code, options = STOPS_AT.format(place="work"), ("--ckpt", checkpoint, "-o", tmp_path / "out" / "x.tfm")
    process = start(code, *options, ignored=True)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    assert send(process, signal.SIGTERM)[0] == 143


TUNE = """
import time, torch
def losses(model):
    ids = torch.arange(12).reshape(2, 6)
    return [lambda model: model(ids, ids).logsumexp(-1).sum(1)]
def fine_tune(model, original, say):
    with torch.no_grad():
        model.decoder.head.bias.fill_(7.0)
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "code"), [([signal.SIGINT] * 5, 130), ([signal.SIGTERM], 143)], ids=["SIGINT x5", "SIGTERM"]
)
def test_what_a_pruned_model_learned_is_kept(make_model: Any, tmp_path: Path, sent: list[int], code: int) -> None:
    options = {"bos_token_id": 1, "eos_token_id": 2, "nhead": 4, "dim_feedforward": 32}
    save_checkpoint(make_model(**options), tmp_path / "model.pt")
    (tmp_path / "tune.py").write_text(TUNE, encoding="utf-8")
    arguments = ["prune", "--ckpt", tmp_path / "model.pt", "--keep", "0.5", "--multiple", "4"]
    process = start(
        "from tfm.cli import main; main()", *arguments, "--fine-tune", tmp_path / "tune.py", "-o", tmp_path / "small"
    )
    ended, err = send(process, *sent)
    assert ended == code, err
    head = load_checkpoint(tmp_path / "small").decoder.head
    assert head is not None
    assert (head.bias == 7.0).all()


def test_pruning_replaces_a_pruned_checkpoint_and_nothing_else(
    make_model: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfm.cli import main

    def prune(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["prune", "--ckpt", "model.pt", "--heads", "1", "--fine-tune", "tune.py", "-o", "small", *more])
        return int(stopped.value.code or 0), capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    save_checkpoint(make_model(bos_token_id=1, eos_token_id=2), tmp_path / "model.pt")
    (tmp_path / "tune.py").write_text(TUNE.partition("def fine_tune")[0], encoding="utf-8")
    assert prune()[0] == 0
    written = (tmp_path / "small" / "pruning.json").stat().st_ino
    code, err = prune()
    assert code == 2
    assert "small exists already; choose another folder with -o, or replace the pruned checkpoint with" in err
    assert prune("--overwrite")[0] == 0
    assert (tmp_path / "small" / "pruning.json").stat().st_ino != written
    os.unlink(tmp_path / "small" / "pruning.json")
    code, err = prune("--overwrite")
    assert code == 2
    assert "is not a pruned checkpoint (it has no pruning.json): --overwrite leaves it alone" in err
