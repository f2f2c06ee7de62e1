"""`tfm parity` without a checkpoint: a table, a verdict, an exit code, and nothing but the base install."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfm.cli import main
from tfm.cli.parity import _print
from tfm.runtime import ErrorStats, GoldenReport
from tfm.runtime.golden import GoldenGraph, GoldenOutput

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(toys: Any, tmp_path: Path) -> Path:
    folder: Path = toys.add_golden(toys.write_bundle(tmp_path / "toy.tfm", "encoder"))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tfm parity` on the CPU; gives exit code, stdout and stderr."""

    def invoke(*arguments: Any, provider: str = "cpu") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["parity", "--provider", provider, *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


@pytest.fixture
def spoil(bundle: Path, toys: Any) -> Callable[[str], None]:
    """Add 1 to the weights of a graph, and make its digest anew."""

    def change(file: str) -> None:
        path = bundle / "onnx" / file
        model = onnx.load(path)
        (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "table"]
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) + np.float32(1), "table"))
        onnx.save(model, path)
        toys.write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))

    return change


def test_the_same(bundle: Path, run: Run) -> None:
    code, out, err = run(bundle, "--threads", 1)
    assert (code, err) == (0, "")
    head, *rows, empty, verdict = out.splitlines()
    assert head.split() == ["output", "precision", "on", "off", "by", "limit"]
    assert [row.split()[:4] for row in rows] == [
        ["✓", name, precision, "cpu"]
        for precision in ("fp32", "int8")
        for name in ("last_hidden_state", "sentence_embedding")
    ]
    assert rows[0].split()[4] == "0.0e+00"
    assert abs(float(rows[2].split()[4])) == 0.0  # dB, of twice what it should be
    assert rows[2].split()[5:] == ["dB", "≥", "-3", "dB"]
    assert empty == ""
    assert verdict == "✓ same as when it was exported: fp32 and int8, 2 outputs on 2 golden inputs"


def test_a_zip(bundle: Path, run: Run) -> None:
    code, out, err = run(shutil.make_archive(str(bundle), "zip", bundle))
    assert (code, err) == (0, "")
    assert "✓ same as when it was exported" in out


def test_layers_share_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one nearest to its limit is shown; a failed one before all others."""

    def output(layer: int, error: float, limit: float) -> GoldenOutput:
        figures = ErrorStats()
        figures.add(np.array([1.0 + error]), np.array([1.0]))
        fault = "is off" if error > limit else ""
        return GoldenOutput(name=f"present.{layer}.key", figures=figures, measure="max_abs", limit=limit, fault=fault)

    def show(*outputs: GoldenOutput) -> list[str]:
        graph = GoldenGraph(role="model", precision="fp32", provider="cpu", outputs=outputs, fault="")
        _print(GoldenReport(bundle=tmp_path, cases=1, graphs=(graph,)))
        return capsys.readouterr().out.splitlines()[1].split()

    row = ["✓", "present.*.key", "fp32", "cpu", "3.0e-03", "4.0e-03"]
    assert show(output(0, 5e-3, 1e-2), output(1, 3e-3, 4e-3), output(2, 2e-3, 1e-2)) == row
    row = ["✗", "present.*.key", "fp32", "cpu", "1.0e-03", "0.0e+00"]
    assert show(output(0, 5e-3, 1e-2), output(1, 1e-3, 0.0)) == row


def test_only_int8_is_off(bundle: Path, run: Run, spoil: Callable[[str], None]) -> None:
    spoil("model_int8.onnx")
    code, out, _ = run(bundle)
    assert code == 1
    assert [line[0] for line in out.splitlines()[1:5]] == ["✓", "✓", "✗", "✗"]
    verdict, fault, advice = out.splitlines()[-3:]
    assert verdict == "✗ not the same as when it was exported:"
    assert fault.startswith("  int8 model: last_hidden_state has NMSE ")
    assert fault.endswith(" (and 1 more of its 2 outputs)")
    assert advice.startswith('  fp32 is right here: load(…, precision="fp32") is safe on this machine.')
    assert run(bundle, "--precision", "fp32")[0] == 0
    code, out, _ = run(bundle, "--precision", "int8")
    assert code == 1
    assert out.splitlines()[-1].startswith("  do not use it here.")


def test_fp32_is_off(bundle: Path, run: Run, spoil: Callable[[str], None]) -> None:
    spoil("model.onnx")
    code, out, _ = run(bundle)
    assert code == 1
    assert out.splitlines()[-2].startswith("  fp32 model: last_hidden_state is off by 1.0e+00, more than ")
    assert out.splitlines()[-1].startswith("  do not use it here. If tfm parity passes where it was exported, ")


def test_a_graph_that_cannot_run(bundle: Path, run: Run, toys: Any) -> None:
    (bundle / "onnx/model.onnx").write_bytes(b"not a graph")
    toys.write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    code, out, err = run(bundle)
    assert (code, err) == (1, "")
    assert out.splitlines()[1].split() == ["✗", "(model)", "fp32", "—", "—", "—"]
    assert "fp32 model: " in out
    assert "is no ONNX file" in out


def test_as_json(bundle: Path, run: Run, spoil: Callable[[str], None]) -> None:
    code, out, _ = run(bundle, "--json")
    values = json.loads(out)
    assert (code, values["passed"], values["faults"], values["cases"]) == (0, True, [], 2)
    assert [graph["provider"] for graph in values["graphs"]] == ["cpu", "cpu"]
    assert [(gate["name"], gate["passed"]) for gate in values["gates"]] == [("fp32 model", True), ("int8 model", True)]
    spoil("model.onnx")
    code, out, _ = run(bundle, "--json", "--precision", "fp32, int8")
    values = json.loads(out)
    assert (code, values["passed"], len(values["faults"])) == (1, False, 1)
    assert [gate["reason"] for gate in values["gates"] if not gate["passed"]] == values["faults"]
    assert [output["passed"] for output in values["graphs"][0]["outputs"]] == [False, False]


# ------------------------------------------------ bad input


def refused(done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_not_a_bundle(tmp_path: Path, run: Run) -> None:
    refused(run(tmp_path), "is not a bundle: it holds no manifest.json")
    refused(run(tmp_path / "nowhere"), "is not there")


def test_altered(bundle: Path, run: Run) -> None:
    content = bytearray((bundle / "onnx/model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "onnx/model.onnx").write_bytes(content)
    refused(run(bundle), "onnx/model.onnx was altered", "copy the bundle again")


def test_of_an_older_version(bundle: Path, run: Run, toys: Any) -> None:
    (bundle / "golden.npz").unlink()
    toys.write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    refused(run(bundle), "holds no golden.npz", "export it again")


def test_what_it_has_not(bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    refused(run(bundle, "--precision", "int4"), "has no 'int4' graph; it has: fp32, int8")
    refused(run(bundle, "--precision", " ,"), "--precision names nothing to compare")
    refused(run(bundle, provider="cuda"), "CUDAExecutionProvider")


@pytest.mark.parametrize("option", ["--cases 3", "--seed 0", "--bisect x", "--model a:b", "--config c", "--nhead 2"])
def test_what_needs_a_checkpoint(bundle: Path, run: Run, option: str) -> None:
    refused(run(bundle, *option.split()), f"{option.split()[0]} is for comparing with a checkpoint: give --ckpt too")


# ------------------------------------------------ the base install


def test_the_base_install_is_enough(bundle: Path) -> None:
    """As on a machine that has numpy, onnxruntime and click and nothing else."""
    heavy = {
        "torch",
        "onnx",
        "onnxscript",
        "onnx_ir",
        "tokenizers",
        "transformers",
        "safetensors",
        "rich",
        "tfm.export",
    }
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {heavy} or name.split(".")[0] in {heavy}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
from tfm.cli import main
main(["parity", {str(bundle)!r}, "--provider", "cpu"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("✓ same as when it was exported")


def test_help_does_not_wait_for_onnxruntime() -> None:
    code = "import sys, tfm.cli.parity; print({'onnxruntime', 'numpy', 'torch', 'onnx', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
