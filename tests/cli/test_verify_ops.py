"""`tfm verify-ops` as a user meets it: tables, JSON, exit codes, a clear sentence for bad input."""

import json
import sys
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from tfm.cli import main
from tfm.export import to_onnx

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `tfm verify-ops`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["verify-ops", *arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def test_a_table_and_a_verdict(run: Run) -> None:
    code, out, err = run("silu", "rms_norm", "--level", "disabled,all")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    (silu,) = (cells for cells in lines if cells[1:3] == ["silu", "float32"])
    assert silu[0] == "✓"
    assert silu[3] == "108,052"  # the grid and its ends at two levels
    assert float(silu[4]) < float(silu[5])
    assert [cells[1:4] for cells in lines if cells[1:2] == ["rms_norm,"]] == [
        ["rms_norm,", "mean", mean] for mean in ("0", "1", "100", "10000")
    ]
    assert "silu: gives nan, as eager PyTorch does, at x = -inf, where the limit is 0" in out
    assert "✓ verified 6 forms of ops, 20 comparisons at each of disabled, all" in out


def test_json(run: Run) -> None:
    code, out, err = run("relu", "--dtype", "fp16", "--level", "all", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert (values["passed"], values["levels"], values["faults"]) == (True, ["all"], [])
    assert [(op["op"], op["dtype"], op["passed"]) for op in values["ops"]] == [("relu", "float16", True)]


def test_a_wrong_op_exits_with_1_and_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(graph: Any) -> ir.Model:
        model = to_onnx(graph)
        for node in model.graph:
            if node.op_type == "Gelu":
                node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
        return model

    monkeypatch.setattr(sys.modules["tfm.export.sweeps.run"], "to_onnx", export)
    code, out, _ = run("gelu", "relu", "--dtype", "fp32", "--level", "all")
    assert code == 1
    assert "✗ failed\n  gelu, float32: off by 4.6e-04, more than" in out
    assert [line.split()[:2] for line in out.splitlines() if line[:1] in "✓✗" and line[:1]] == [
        ["✗", "gelu"],
        ["✓", "relu"],
        ["✗", "failed"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gleu"], "unknown op 'gleu'; the nearest is 'glu'"),
        (["relu", "--dtype", "fp8"], "unknown dtype 'fp8'; the nearest is 'float"),
        (["relu", "--dtype", ","], "no dtype is asked for; there are float32, float16"),
        (["relu", "--level", "most"], "unknown optimization level 'most'; the nearest is"),
        (["alibi", "--dtype", "fp16"], "alibi: only activations are swept in float16; add float32"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"tfm: {message}")
    assert len(err.splitlines()) == 1


def test_a_missing_package_is_said_with_its_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    code, out, err = run("relu")
    assert (code, out) == (2, "")
    assert err == "tfm: verifying ops needs the package rich.progress: pip install 'tfm-export[export]'\n"


def test_progress_is_shown_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, _, err = run("relu", "--level", "all", "--json")
    assert code == 0
    assert "1/1" in err
