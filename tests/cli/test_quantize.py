"""`tfm quantize`, and what quantizes in `tfm-export`: what is printed, exit codes, one sentence for bad input."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfm.quantize.existing as existing
from tfm.bundle.manifest import read_manifest
from tfm.cli import export, main
from tfm.export.manifest import write_manifest
from tfm.latency import Latency
from tfm.model import save_checkpoint

Run = Callable[..., tuple[int, str, str]]
OPTIONS = {"kind": "encoder", "activation": "gelu", "d_model": 64, "nhead": 4, "dim_feedforward": 64}
RECIPE = {"schema": 1, "precision": "int8"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples, and int8 that takes half the time of fp32."""
    module = importlib.import_module("tfm.quantize.bundle")
    for name, value in (("_OBSERVED", 16), ("_HELD_OUT", 8), ("_SEARCHED", {"encoder": 4})):
        monkeypatch.setattr(module, name, value)
    slow_down(monkeypatch, 0.5)


def slow_down(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def time_engines(jobs: Any, workloads: Any) -> list[Latency]:
        return [Latency(work=w.name, rounds={n: [1.0 if n == "fp32" else factor] * 9 for n in jobs}) for w in workloads]

    monkeypatch.setattr(existing, "time_engines", time_engines)
    monkeypatch.setattr(existing, "try_engines", lambda *_: None)


@pytest.fixture
def bundle(export_tiny: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "x.tfm"
    (folder / "onnx").mkdir(parents=True)
    one = export_tiny(**OPTIONS)["model"]
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(one.path.read_bytes())
    write_manifest(folder, one.graph.model.config, "own", [one.graph], {"fp32": {"model": path}}, 23, [])
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments: Any, command: Any = main) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_bundle_is_quantized(run: Run, bundle: Path) -> None:
    code, out, err = run("quantize", bundle)
    assert code == 0, err
    assert f"✓ quantized to int8 → {bundle}" in out
    assert "of the 3.0e-03 allowed (1 - mean cosine)" in out
    assert "all 6 ops are quantized" in out or "ops stay in float32" in out
    assert "quantize to int8" in err
    assert read_manifest(bundle).graphs["int8"] == {"model": "onnx/model_int8.onnx"}


def test_as_json(run: Run, bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "quantize", bundle, "-o", tmp_path / "y.tfm", "--precision", "int4", "--max-drop", "0.3", "--json"
    )
    assert code == 0
    values = json.loads(out)
    assert (values["passed"], values["faults"], values["precision"]) == (True, [], "int4")
    assert values["quantization"]["int4"]["max_drop"] == 0.3
    assert values["sizes"]["int4"] < values["sizes"]["fp32"]
    assert values["output"] == str(tmp_path / "y.tfm")
    assert set(read_manifest(tmp_path / "y.tfm").graphs) == {"fp32", "int4"}
    assert set(read_manifest(bundle).graphs) == {"fp32"}


def test_a_recipe_and_samples_of_ones_own(run: Run, bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(19, size=5).tolist() for _ in range(40)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    assert run("quantize", bundle, "--calib", tmp_path / "c.jsonl")[0] == 0
    recipe, graph = (bundle / "recipe_int8.json").read_bytes(), (bundle / "onnx" / "model_int8.onnx").read_bytes()
    (tmp_path / "r.json").write_bytes(recipe)
    code, out, err = run("quantize", bundle, "--calib", tmp_path / "c.jsonl", "--recipe", tmp_path / "r.json")
    assert code == 0, err
    assert (bundle / "onnx" / "model_int8.onnx").read_bytes() == graph
    assert (bundle / "recipe_int8.json").read_bytes() == recipe
    assert "costs most" not in out  # nothing was searched: effects are not known


def test_slow_int8_ends_with_1_and_changes_nothing(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, 1.5)
    before = content(bundle)
    code, out, _ = run("quantize", bundle)
    assert code == 1
    assert "✗ refused, nothing was changed:" in out
    assert "int8 is slower than fp32 here: 1.50×" in out
    assert "--force ships it all the same" in out
    assert content(bundle) == before
    code, out, _ = run("quantize", bundle, "--force", "-o", bundle.with_name("y.tfm"))
    assert code == 1  # a gate failed, though the bundle is there
    assert "✗ forced, and marked so" in out
    assert "int8" in read_manifest(bundle.with_name("y.tfm")).graphs
    code, out, _ = run("quantize", bundle, "--force", "--json")
    values = json.loads(out)
    assert (code, values["passed"]) == (1, False)
    (failed,) = [gate for gate in values["gates"] if not gate["passed"]]
    assert (failed["stage"], failed["precision"], failed["reason"]) == ("speed", "int8", values["faults"][0])
    assert "int8" in read_manifest(bundle).graphs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "0"], "--max-drop"),
        (["--max-drop", "nan"], "max_drop must be a number of at least 0, but is nan"),
        (["--precision", "int3"], "int3"),
        (["--recipe", "none.json"], "there is no recipe to read at none.json"),
        (["--recipe", "bad.json"], "bad.json is not JSON"),
        (["--recipe", "other.json"], "the recipe is for another model: the model has no op 'a'; the nearest is"),
        (["--recipe", "int4.json"], "the recipe is for int4, not for int8; ask for int4 with --precision"),
        (["--calib", "none.txt"], "none.txt"),
        (["-o", "file"], "file exists already"),
    ],
)
def test_bad_input_gets_one_sentence(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps(RECIPE | {"graphs": {"model": {"a": {"form": "float32"}}}}))
    (tmp_path / "int4.json").write_text(json.dumps(RECIPE | {"precision": "int4", "graphs": {"model": {}}}))
    (tmp_path / "file").write_text("")
    before = content(tmp_path)
    code, out, err = run("quantize", bundle, *arguments)
    assert code == 2, out
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "code", "said"), [("size", 0, "→"), ("time", 2, "'time' is not one of 'size', 'speed'")]
)
def test_an_options_old_name_means_the_new_one(
    run: Run, bundle: Path, capsys: pytest.CaptureFixture[str], value: str, code: int, said: str
) -> None:
    assert "--favour" not in run("quantize", "--help")[1]
    done = run("quantize", bundle, "--favour", value)
    assert done[0] == code
    assert "--favour is called --optimize-for now" in done[2]
    assert said in done[1] + done[2]


def test_no_bundle(run: Run, tmp_path: Path) -> None:
    code, _, err = run("quantize", tmp_path / "x.tfm")
    assert code == 2
    assert "x.tfm" in err.strip().splitlines()[-1]


# ------------------------------------------------ tfm-export


def test_export_takes_budgets_recipes_and_int4(
    run: Run, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = importlib.import_module("tfm.export.bundle")
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
    save_checkpoint(make_model(**OPTIONS), tmp_path / "m.pt")
    both = ["--ckpt", tmp_path / "m.pt", "--precision", "fp32,int4", "--max-drop", "0.4"]
    code, out, err = run(*both, "-o", tmp_path / "a.tfm", command=export)
    assert code == 0, out + err
    assert set(read_manifest(tmp_path / "a.tfm").graphs) == {"fp32", "int4"}
    recipe = tmp_path / "a.tfm" / "recipe_int4.json"
    code, out, err = run(*both, "--recipe", recipe, "-o", tmp_path / "b.tfm", command=export)
    assert code == 0, out + err
    graphs = [tmp_path / name / "onnx" / "model_q4.onnx" for name in ("a.tfm", "b.tfm")]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    wrong = ["--ckpt", tmp_path / "m.pt", "--recipe", recipe, "-o", tmp_path / "c.tfm"]
    code, _, err = run(*wrong, command=export)
    assert code == 2
    assert "the recipe is for int4, not for int8" in err
    code, out, _ = run("--ckpt", tmp_path / "m.pt", "--max-drop", "1e-9", "-o", tmp_path / "c.tfm", command=export)
    assert not (tmp_path / "c.tfm").exists() or "stay in float32" in out
    assert not list(tmp_path.glob(".*"))
