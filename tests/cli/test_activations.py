"""`tfm activations` as a user meets it: tables, JSON, a page, exit codes, a clear sentence for bad input."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
from rich.text import Text

from tests.support.parity_schema import problems
from tfm.cli import activations, main
from tfm.export import to_onnx
from tfm.study.activations.sqnr import Estimate, Sqnr

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `tfm activations`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["activations", *arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def test_every_field_is_documented_and_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfm.study.activations import speed

    monkeypatch.setattr(speed, "_TURN", 0.002)
    page = tmp_path / "page.html"
    code, out, err = run("--activation", "relu", "--activation", "tanh", "--rounds", "6", "--json", "-o", str(page))
    assert code == 0
    values = json.loads(out)
    assert problems(values, "activations-table.md") == []
    assert [entry["activation"] for entry in values["activations"]] == ["relu", "tanh"]
    assert values["inputs"]["source"] == "normal"
    assert values["rounds"] == 6
    assert "time them in 6 rounds" in err
    text = page.read_text(encoding="utf-8")
    assert text.count('<path class="derivative"') == 2
    values["activations"][0]["mean"] = 1.0
    assert problems(values, "activations-table.md") == ["activations[].mean is not documented"]


def test_tables(run: Run) -> None:
    code, out, _ = run("--activation", "relu", "--no-timing")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.startswith(" relu")]
    assert lines[0] == ["relu", "max(x,", "0)", "Relu", "Relu", "(CPU)"]
    assert lines[1] == ["relu", "0.0e+00", "—", "0.0e+00", "—"]
    assert re.fullmatch(r" *relu +46\.\d \(4\d\.\d–4\d\.\d\) +4\d\.\d \(4\d\.\d–4\d\.\d\) *", out.splitlines()[-3])
    assert "on normal inputs, not a model's: 32 tensors of 64×384, standard normal" in out
    assert "µs" not in out


def test_a_wrong_op_exits_with_1_and_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(graph: Any) -> ir.Model:
        model = to_onnx(graph)
        for node in model.graph:
            if node.op_type == "Gelu":
                node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
        return model

    monkeypatch.setattr(sys.modules["tfm.export.sweeps.run"], "to_onnx", export)
    code, out, _ = run("--activation", "gelu", "--no-timing")
    assert code == 1
    assert "✗ gelu, float32: off by" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--activation", "gleu"], "unknown activation 'gleu'; the nearest is 'glu'"),
        (["--rounds", "5"], "rounds must be at least 6"),
        (["--ckpt", "missing.pt"], "there is no checkpoint at missing.pt"),
        (["-o", "no/where.html"], "--output: there is no folder"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if "run the checkpoint" not in line]
    assert len(said) == 1
    assert said[0].startswith(f"tfm: {message}")


def test_a_missing_package_is_said_with_its_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "tfm.cli.screen", raising=False)  # which another test may have imported
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err == "tfm: activations need the package rich.console: pip install 'tfm-export[export]'\n"


@pytest.mark.parametrize("option", ["--study", "--runs", "--seeds", "--steps", "--jobs", "--quick"])
def test_the_study_says_where_it_is_now(run: Run, option: str) -> None:
    code, out, err = run(option, *([] if option == "--quick" else ["3"]))
    assert (code, out) == (2, "")
    assert f"{option} is of the study that trains with each activation" in err
    assert "python -m benchmarks.activation_study" in err
    assert option not in run("--help")[1]


def test_a_comparison_has_the_color_of_its_verdict_and_no_other_cell_has_one() -> None:
    below = Sqnr(own=None, beside_relu=Estimate(-2.0, -3.0, -1.0))
    above = Sqnr(own=None, beside_relu=Estimate(2.0, 1.0, 3.0))
    unlike = Sqnr(own=None, beside_relu=Estimate(0.0, -1.0, 1.0))
    row: Any = SimpleNamespace(name="below_relu", sqnr={"a": below, "b": above, "c": unlike})
    cells = activations._rounded(row)
    table = activations._grid([("", "left")] * len(cells), [cells])
    styles = [str(cell.style) for column in table.columns for cell in column.cells if isinstance(cell, Text)]
    assert styles == ["", "", "red", "", "green", "", ""]
