"""`python -m benchmarks.activation_study` as a user meets it: a whole study of the example, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from activation_study.command import study
from click.testing import CliRunner

REPO = Path(__file__).resolve().parents[3]
EXAMPLE = REPO / "examples" / "g2p"


@pytest.mark.slow
def test_the_quick_study_of_the_example(tmp_path: Path) -> None:
    """In under three minutes on two idle cores: one seed, 60 steps, relu, gelu and swiglu."""
    arguments = [str(EXAMPLE), "--quick", "--rounds", "6", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.activation_study", *arguments], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert [run["activation"] for run in results["runs"]] == ["relu", "gelu", "swiglu"]
    assert all(run["deployed"]["passed"] for run in results["runs"])
    assert all(len(run["trained"]["loss"]) == 3 for run in results["runs"])
    for name in ("relu", "gelu", "swiglu"):
        assert name in done.stdout
    assert "<svg" in (tmp_path / "runs" / "study.html").read_text()


def test_the_table_of_finished_results() -> None:
    """Which docs/activations.md has; `test_page_of_docs` compares them."""
    done = CliRunner().invoke(study, [str(REPO / "docs" / "activations.json")])
    assert done.exit_code == 0
    assert done.output in (REPO / "docs" / "activations.md").read_text(encoding="utf-8")
    assert done.output.count("\n") == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no task to study: it has no task.py"),
        ([str(Path(__file__).parent / "toy"), "--activation", "rel"], "the nearest is 'relu'"),
    ],
)
def test_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(study, [*arguments, "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "runs").exists()
