"""`quantize_bundle`: new graphs for a bundle that is there, all that speaks of them renewed, or nothing changed."""

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import tfm.quantize.existing as existing
from tests.support import toys
from tfm.bundle.json_files import describe_file
from tfm.bundle.manifest import check_digests, read_manifest
from tfm.bundle.scratch import LOCK
from tfm.errors import BundleError, ExportError, QuantizeError, TfmError, VerificationError
from tfm.latency import Latency
from tfm.quantize import quantize_bundle, read_calibration, read_recipe
from tfm.report import kept_pictures
from tfm.runtime import check_golden, load

pytestmark = pytest.mark.usefixtures("steady")
HELD_OUT = 12
ABSENT = ("torch", "onnxscript", "safetensors", "gguf", "transformers")


def timed(milliseconds: float) -> Callable[..., list[Latency]]:
    def time_engines(jobs: Mapping[str, Any], workloads: Sequence[Any]) -> list[Latency]:
        return [
            Latency(work=work.name, rounds={name: [2.0 if name == "fp32" else milliseconds] * 9 for name in jobs})
            for work in workloads
        ]

    return time_engines


OLD: dict[str, Any] = {
    "work": "model 1×5",
    "milliseconds": {"eager": 4.0, "fp32": 2.0, "int8": 1.0, "int4": 1.0},
    "baseline": "eager",
    "ratios": {"int8": {"said": "faster 4.0× (3.9–4.1)"}, "int4": {"said": "faster 4.0× (3.8–4.2)"}},
}
OLD_SPEEDS = [
    {"precision": precision, "baseline": baseline} for precision in ("int8", "int4") for baseline in ("eager", "fp32")
]


def renew(bundle: Path) -> None:
    """Have the manifest tell the digest of a certificate that was altered."""
    manifest = read(bundle, "manifest.json")
    manifest["files"]["parity.json"] = describe_file(bundle / "parity.json")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples, and a clock that is the same everywhere."""
    module = importlib.import_module("tfm.quantize.bundle")
    for name, value in (("_OBSERVED", 24), ("_HELD_OUT", HELD_OUT), ("_SEARCHED", {"encoder": 8})):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(existing, "time_engines", timed(1.0))
    monkeypatch.setattr(existing, "try_engines", lambda *_: None)


@pytest.fixture(scope="module")
def exported(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle in fp32 alone, with its certificate, report and golden outputs."""
    import tfm.export.bundle as bundle
    from tfm.model import save_checkpoint

    folder = tmp_path_factory.mktemp("exported")
    save_checkpoint(
        make_model(kind="encoder", activation="gelu", d_model=64, nhead=4, dim_feedforward=128), folder / "m.pt"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
        report = bundle.export_checkpoint(folder / "m.pt", folder / "x.tfm", precisions=["fp32"])
    assert report.passed, report.faults()
    return folder / "x.tfm"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "in" / "x.tfm")
    return tmp_path / "in" / "x.tfm"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, name: str = "parity.json") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / name).read_text())
    return values


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of a bundle, and its digest in the manifest."""
    from tfm.bundle.json_files import write_json

    values = read(folder, name)
    change(values)
    write_json(folder / name, values)
    manifest = read(folder, "manifest.json")
    manifest["files"][name] = describe_file(folder / name)
    write_json(folder / "manifest.json", manifest)


# ------------------------------------------------ what is renewed


def test_in_place(bundle: Path) -> None:
    before = files_of(bundle)
    report = quantize_bundle(bundle)
    assert (report.passed, report.shipped, report.faults()) == (True, True, [])
    after = files_of(bundle)
    new = {"onnx/model_int8.onnx", "recipe_int8.json"}
    assert set(after) == set(before) | new
    renewed = {"manifest.json", "parity.json", "report.html", "golden.json"}
    assert {name for name in before if before[name] != after[name]} == renewed
    assert [path.name for path in bundle.parent.iterdir()] == ["x.tfm"]  # no journal, no temporary folder
    manifest = read_manifest(bundle)
    check_digests(manifest, manifest.files)
    assert set(manifest.files) == set(after) - {"manifest.json"}
    assert manifest.graphs["int8"] == {"model": "onnx/model_int8.onnx"}
    rotations = 4 * (64 * 64 + 32 * 32 + 16 * 16)  # matrices that all ops share: of a real model they are nothing
    assert len(after["onnx/model_int8.onnx"]) - rotations < 0.45 * len(after["onnx/model.onnx"])


def test_the_certificate_and_the_gates(bundle: Path, exported: Path) -> None:
    report = quantize_bundle(bundle)
    old, new = read(exported), read(bundle)
    assert new["passed"] is True
    assert new["graphs"] == old["graphs"]
    assert new["quantization"] == {"int8": report.quantized.report | {"forced": False}}
    twice = {"ratio": 2.0, "low": 2.0, "high": 2.0, "verdict": "faster", "said": "faster 2.0× (2.0–2.0)"}
    times = {"milliseconds": {"fp32": 2.0, "int8": 1.0}, "baseline": "fp32", "ratios": {"int8": twice}}
    assert new["latency"] == [{"work": line.work, **times} for line in report.latency]
    assert new["speed"] == [{"precision": "int8", "baseline": "fp32", **twice}]
    assert new["sizes"] == {name: (bundle / "onnx" / file).stat().st_size for name, file in FILES.items()}
    assert new["files"]["onnx/model_int8.onnx"]["size"] == new["sizes"]["int8"]
    gates = read(bundle, "manifest.json")["gates"]
    assert [(gate["name"], gate["stage"], gate["precision"], gate["passed"]) for gate in gates[-2:]] == [
        ("int8 budget", "budget", "int8", True),
        ("int8 not slower than fp32", "speed", "int8", True),
    ]
    assert gates[-2]["figure"] == report.quantized.report["held_out"]["drop"] <= gates[-2]["limit"]
    assert gates[:-2] == read(exported, "manifest.json")["gates"]
    text = json.dumps(new, allow_nan=False)  # JSON has no NaN
    assert "held_out" in text


FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


def test_the_report_keeps_its_pictures_and_tells_of_the_new_graphs(bundle: Path, exported: Path) -> None:
    quantize_bundle(bundle)
    pages = [(folder / "report.html").read_text() for folder in (exported, bundle)]
    pictures = [kept_pictures(page) for page in pages]
    assert pictures[0] == pictures[1] != ""
    assert "<svg" in pictures[0] or "<img" in pictures[0]
    assert "linear2" in pages[1].replace(pictures[1], "")


def test_golden_outputs_hold_and_only_for_these_graphs(bundle: Path, exported: Path) -> None:
    quantize_bundle(bundle)
    report = check_golden(bundle, provider="cpu")
    assert report.passed, report.faults()
    assert [graph.precision for graph in report.graphs] == ["fp32", "int8"]
    assert read(bundle, "golden.json")["precisions"]["fp32"] == read(exported, "golden.json")["precisions"]["fp32"]
    model = ir.load(bundle / "onnx" / "model_int8.onnx")
    node = next(node for node in model.graph if node.op_type == "Attention")
    key, value = node.inputs[1:3]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)
    ir.save(model, bundle / "onnx" / "model_int8.onnx")
    edit(bundle, "parity.json", lambda _: None)
    from tfm.bundle.json_files import write_json

    manifest = read(bundle, "manifest.json")
    manifest["files"]["onnx/model_int8.onnx"] = describe_file(bundle / "onnx" / "model_int8.onnx")
    write_json(bundle / "manifest.json", manifest)
    assert not check_golden(bundle, provider="cpu").passed


def test_held_out_figures_are_those_of_held_out_samples(bundle: Path) -> None:
    """By the formula, on the half that nothing was quantized by or searched on."""
    report = quantize_bundle(bundle).quantized.report
    manifest, gaps = read_manifest(bundle), []
    sessions = [ort.InferenceSession(bundle / "onnx" / name) for name in FILES.values()]
    samples = read_calibration(None, manifest, count=HELD_OUT, split="held-out")
    for feeds in samples.batches("model", 1):
        e, q = (session.run(["last_hidden_state"], feeds)[0][0].astype(float) for session in sessions)
        gaps += list(1 - (e * q).sum(-1) / np.linalg.norm(e, axis=-1) / np.linalg.norm(q, axis=-1))
    assert report["held_out"]["samples"] == samples.description
    assert report["held_out"]["drop"] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert report["held_out"]["least_cosine"] == pytest.approx(1 - max(gaps), abs=1e-6)
    assert report["held_out"]["drop"] != report["drop"]


def test_a_new_folder_and_the_old_one_stays(bundle: Path, tmp_path: Path) -> None:
    before = files_of(bundle)
    quantize_bundle(bundle, tmp_path / "out" / "y.tfm")
    assert files_of(bundle) == before
    assert load(tmp_path / "out" / "y.tfm", precision="int8", provider="cpu").precision == "int8"
    with pytest.raises(TfmError, match=r"y\.tfm exists already"):
        quantize_bundle(bundle, tmp_path / "out" / "y.tfm")
    assert quantize_bundle(bundle, tmp_path / "out" / "y.tfm", overwrite=True).shipped
    assert not [path.name for path in tmp_path.rglob(".*")]


def test_files_that_are_linked_elsewhere(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As installers of packages link them; onnx-ir reads no weights that have another name too."""
    model = ir.load(bundle / "onnx" / "model.onnx")
    ir.external_data.load_to_model(model)
    ir.save(model, bundle / "onnx" / "model.onnx", external_data="model.onnx_data", size_threshold_bytes=256)
    toys.write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))
    for number, path in enumerate(sorted((bundle / "onnx").iterdir())):
        os.link(path, tmp_path / f"{number}.link")
    assert quantize_bundle(bundle, tmp_path / "linked.tfm").shipped


def test_anew_and_in_another_precision(bundle: Path) -> None:
    first = quantize_bundle(bundle)
    one = files_of(bundle)
    again = quantize_bundle(bundle, recipe=read_recipe(bundle / "recipe_int8.json"))
    two = files_of(bundle)
    assert two["onnx/model_int8.onnx"] == one["onnx/model_int8.onnx"]
    assert two["recipe_int8.json"] == one["recipe_int8.json"]
    assert read(bundle)["quantization"]["int8"]["searched"] is False
    assert again.quantized.report["held_out"] == first.quantized.report["held_out"]
    report = quantize_bundle(bundle, precision="int4", max_drop=0.1)
    assert report.shipped
    three = files_of(bundle)
    assert set(three) == set(two) | {"onnx/model_q4.onnx", "recipe_int4.json"}
    assert three["onnx/model_int8.onnx"] == two["onnx/model_int8.onnx"]
    assert set(read_manifest(bundle).graphs) == {"fp32", "int8", "int4"}
    assert set(read(bundle)["quantization"]) == {"int8", "int4"}
    assert check_golden(bundle, provider="cpu").passed
    names = [gate["name"] for gate in read(bundle, "manifest.json")["gates"]]
    assert len(set(names)) == len(names)


def test_onnxruntime_genai_is_told_of_the_new_graph(bundle: Path) -> None:
    """Its file, which decoders have, names a graph; here it is beside another model, of which nothing else matters."""
    path = bundle / "genai_config.json"
    path.write_text(json.dumps({"model": {"decoder": {"filename": "onnx/model.onnx"}}}))
    manifest = read(bundle, "manifest.json")
    manifest["files"][path.name] = describe_file(path)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert quantize_bundle(bundle, precision="int4", max_drop=0.1).shipped
    assert json.loads(path.read_text())["model"]["decoder"]["filename"] == "onnx/model.onnx"  # int4 is nobody's default
    assert quantize_bundle(bundle).shipped
    assert json.loads(path.read_text())["model"]["decoder"]["filename"] == "onnx/model_int8.onnx"
    check_digests(read_manifest(bundle), [path.name])


def test_a_certificate_of_schema_2(bundle: Path) -> None:
    def older(values: dict[str, Any]) -> None:
        values["schema"] = 2
        del values["quantization"]

    edit(bundle, "parity.json", older)
    assert quantize_bundle(bundle).shipped
    assert read(bundle)["schema"] == 3
    assert list(read(bundle)["quantization"]) == ["int8"]


def test_the_lowest_onnxruntime_of_every_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those too that an older tfm-export made, and said nothing of."""
    graphs = {"onnxruntime": {"fp32": {"model": "1.23.0"}, "int8": {"model": "1.23.0"}}}
    manifest = read(bundle, "manifest.json")
    assert manifest.pop("requires") == {"onnxruntime": {"fp32": {"model": "1.23.0"}}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert quantize_bundle(bundle).shipped
    assert read(bundle, "manifest.json")["requires"] == graphs
    monkeypatch.setattr(ort, "__version__", "1.22.1")
    with pytest.raises(BundleError, match=r"model.onnx needs onnxruntime >= 1.23.0, and this is 1.22.1: pip install"):
        quantize_bundle(bundle)


def test_without_certificate_report_and_golden_outputs(bundle: Path) -> None:
    manifest = read(bundle, "manifest.json")
    for name in ("parity.json", "report.html", "golden.json", "golden.npz"):
        (bundle / name).unlink()
        del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert quantize_bundle(bundle).shipped
    assert set(files_of(bundle)) == {
        "config.json", "manifest.json", "onnx/model.onnx", "onnx/model_int8.onnx", "recipe_int8.json",
    }  # fmt: skip


# ------------------------------------------------ gates and failures


def test_slow_int8_is_refused_with_both_numbers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(bundle)
    monkeypatch.setattr(existing, "time_engines", timed(2.5))
    report = quantize_bundle(bundle)
    assert (report.passed, report.shipped) == (False, False)
    (fault,) = report.faults()
    assert fault.startswith(
        "int8 is slower than fp32 here: 1.25× its time (1.25–1.25) over all work, at worst 2.50 ms against 2.00 ms"
    )
    assert files_of(bundle) == before
    assert {path.name for path in bundle.parent.iterdir()} == {"x.tfm", ".x.tfm.int8.search"}
    found = len(files_of(bundle.parent))
    assert quantize_bundle(bundle, force=True).shipped  # without another search
    assert len(files_of(bundle.parent)) == found + len({"onnx/model_int8.onnx", "recipe_int8.json"}) - 1


def test_over_budget_on_held_out_samples_is_refused_with_both_numbers(
    bundle: Path, planted: Any, tmp_path: Path
) -> None:
    shutil.copytree(planted.folder, tmp_path / "p.tfm")
    folder, before = tmp_path / "p.tfm", files_of(tmp_path / "p.tfm")
    plain = {"form": "dynamic"}
    names = list(quantize_bundle(folder, tmp_path / "q.tfm").quantized.report["ops"])
    recipe = {"schema": 1, "precision": "int8", "graphs": {"model": {op["weight"]: plain for op in names}}}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    report = quantize_bundle(folder, recipe=read_recipe(tmp_path / "r.json"))
    assert (report.passed, report.shipped) == (False, False)
    (fault,) = report.faults()
    drop = report.quantized.report["held_out"]["drop"]
    assert drop > 0.003
    assert fault.startswith(f"int8 is {drop:.2g} from fp32 (1 - mean cosine) over {HELD_OUT} rows of random ids")
    assert "more than the budget of 0.003; allow more with --max-drop" in fault
    assert files_of(folder) == before
    assert quantize_bundle(folder, recipe=read_recipe(tmp_path / "r.json"), max_drop=0.02).passed


def test_what_is_forced_is_marked_and_no_longer_once_it_passes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(existing, "time_engines", timed(2.5))
    report = quantize_bundle(bundle, force=True)
    assert (report.passed, report.shipped) == (False, True)
    certificate = read(bundle)
    assert (certificate["passed"], certificate["quantization"]["int8"]["forced"]) == (False, True)
    gates = {gate["name"]: gate["passed"] for gate in read(bundle, "manifest.json")["gates"]}
    assert (gates["int8 not slower than fp32"], gates["int8 budget"], gates["fp32 model"]) == (False, True, True)
    monkeypatch.setattr(existing, "time_engines", timed(1.0))
    assert quantize_bundle(bundle).passed
    certificate = read(bundle)
    assert (certificate["passed"], certificate["quantization"]["int8"]["forced"]) == (True, False)


def test_what_was_compared_before_and_is_still_there_is_kept(bundle: Path) -> None:
    """Of int4, in works that were not timed anew; but not of eager, whose times are gone."""
    quantize_bundle(bundle)
    (bundle / "parity.json").write_text(json.dumps(read(bundle) | {"latency": [OLD], "speed": OLD_SPEEDS}))
    renew(bundle)
    quantize_bundle(bundle)
    new = read(bundle)
    assert new["latency"][-1] == OLD | {
        "milliseconds": {"eager": 4.0, "fp32": 2.0, "int4": 1.0},
        "ratios": {"int4": OLD["ratios"]["int4"]},
    }
    assert [(speed["precision"], speed["baseline"]) for speed in new["speed"]] == [("int8", "fp32")]


def test_a_certificate_from_before_ratios_were_told(bundle: Path) -> None:
    content = read(bundle)
    content["latency"] = [{"work": "model 1×5", "milliseconds": {"eager": 4.0, "fp32": 2.0, "int8": 1.0}}]
    del content["speed"]
    (bundle / "parity.json").write_text(json.dumps(content))
    renew(bundle)
    quantize_bundle(bundle)
    new = read(bundle)
    assert new["latency"][-1] == {"work": "model 1×5", "milliseconds": {"eager": 4.0, "fp32": 2.0}}
    assert [speed["precision"] for speed in new["speed"]] == ["int8"]


def test_engines_are_tried_before_the_search(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(bundle)

    def fail(jobs: Mapping[str, Any], workloads: Sequence[Any]) -> None:
        assert (list(jobs), bool(workloads)) == (["fp32"], True)
        raise VerificationError("no process can be started")

    monkeypatch.setattr(existing, "try_engines", fail)
    monkeypatch.setattr(existing, "quantize", lambda *_, **__: pytest.fail("the search began"))
    with pytest.raises(VerificationError, match="no process can be started"):
        quantize_bundle(bundle)
    assert files_of(bundle) == before


@pytest.mark.parametrize("place", ["time_engines", "renew_golden", "write_report", "quantize"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: BaseException
) -> None:
    before = files_of(bundle)

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(existing, place, fail)
    with pytest.raises((KeyboardInterrupt, TfmError)) as caught:
        quantize_bundle(bundle)
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert files_of(bundle) == before
    figures = set() if place == "quantize" else {".x.tfm.int8.search"}  # of a search that is done, for the next run
    assert {path.name for path in bundle.parent.iterdir()} == {"x.tfm", *figures}


def test_a_bundle_that_another_replaces_meanwhile_stays(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that quantize one bundle, the second would take the first one's graphs away."""
    quick = timed(1.0)

    def replace(jobs: Mapping[str, Any], workloads: Sequence[Any]) -> list[Latency]:
        shutil.move(bundle, bundle.with_name("moved"))
        shutil.copytree(bundle.with_name("moved"), bundle)
        edit(bundle, "config.json", lambda values: values.update(note="another's"))
        return quick(jobs, workloads)

    monkeypatch.setattr(existing, "time_engines", replace)
    with pytest.raises(ExportError, match=r"x\.tfm was changed while this ran.*the finished bundle is .*x-2\.tfm"):
        quantize_bundle(bundle)
    assert set(read_manifest(bundle).graphs) == {"fp32"}
    assert set(read_manifest(bundle.with_name("x-2.tfm")).graphs) == {"fp32", "int8"}


def test_what_a_killed_process_left_half_placed_is_found(bundle: Path) -> None:
    room = bundle.with_name(".x.tfm.12345678.tmp")
    room.mkdir()
    (room / LOCK).touch()
    shutil.copytree(bundle, room / "new")
    bundle.rename(room / "old")
    assert quantize_bundle(bundle).shipped
    assert [path.name for path in bundle.parent.iterdir()] == ["x.tfm"]


def test_what_cannot_be_quantized_is_refused(bundle: Path, tmp_path: Path) -> None:
    before = files_of(bundle)
    with pytest.raises(QuantizeError, match="unknown precision 'int3'"):
        quantize_bundle(bundle, precision="int3")
    (tmp_path / "c.txt").write_text("a text for a bundle without a tokenizer")
    with pytest.raises(TfmError, match=r"c\.txt, line 1: .*has no tokenizer\.json"):
        quantize_bundle(bundle, calib=tmp_path / "c.txt")
    assert files_of(bundle) == before
    with pytest.raises(BundleError):
        quantize_bundle(tmp_path / "nothing.tfm")
    content = bytearray((bundle / "onnx" / "model.onnx").read_bytes())
    content[-9] ^= 1
    (bundle / "onnx" / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        quantize_bundle(bundle)
    manifest = read(bundle, "manifest.json")
    manifest["graphs"] = {"int8": manifest["graphs"]["fp32"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(QuantizeError, match="has no fp32 graphs to quantize; export it again with fp32"):
        quantize_bundle(bundle)


# ------------------------------------------------ without torch

PROGRAM = """
import sys
from tfm.cli import main
try:
    main(["quantize", sys.argv[1], "--force"])
except SystemExit as stopped:
    print(stopped.code, [name for name in ("torch", "tfm.export", "tfm.model") if name in sys.modules])
"""


def test_it_works_where_torch_cannot_be_imported(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "absent").mkdir()
    for name in ABSENT:  # before the installed ones on the path, here and in the processes that are timed
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "absent")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(bundle)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("0 []", "1 []", "None []")  # 1: int8 of so small a graph may be slower
    assert "int8" in read_manifest(bundle).graphs
