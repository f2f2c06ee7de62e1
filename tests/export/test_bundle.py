"""From checkpoint to bundle: what is in it, what is refused, and that a refusal leaves nothing."""

import contextlib
import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import tfm.export.bundle as bundle
import tfm.export.source as subject
from tfm.bundle import PARITY_SCHEMA
from tfm.errors import CheckpointError, ConfigError, ExportError, QuantizeError, VerificationError
from tfm.export import PRECISIONS, Tolerance, export_checkpoint
from tfm.export.verify.fidelity import FLOORS, Fidelity
from tfm.latency import Latency
from tfm.model import save_checkpoint
from tfm.quantize.search.evaluator import Evaluator
from tfm.runtime import check_golden, load

ENCODER = {"kind": "encoder", "activation": "gelu"}
MADE = ["fp32", "int8", "fp16"]


@pytest.fixture
def checkpoint(make_model: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(make_model(**ENCODER), folder / "model.pt")
    return folder / "model.pt"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "x.tfm"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, to_onnx_once: Any) -> None:
    """Latency and exporting have their own tests, and take longer than all the rest."""
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
    monkeypatch.setattr(bundle, "to_onnx", to_onnx_once)


@pytest.fixture(scope="module")
def made(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A bundle in the precisions of `MADE`, and its report."""
    folder = tmp_path_factory.mktemp("made")
    model = make_model(bos_token_id=1, eos_token_id=2, pad_token_id=0, activation="gelu", norm_first=True)
    save_checkpoint(model, folder / "model.pt")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 9}')
    (folder / "thesis.txt").write_text("private")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
        return folder / "x.tfm", export_checkpoint(folder / "model.pt", folder / "x.tfm", precisions=MADE)


def nothing_is_left(output: Path) -> None:
    assert not output.parent.exists()


def only_tried(args: tuple[Any, ...]) -> bool:
    """Whether `measure_latency` is asked to start the engines before the long work, and to time nothing."""
    return args[6:] == (0,)


def only_figures_are_left(output: Path) -> None:
    """Of a search that was finished, for the next run."""
    assert [path.name for path in output.parent.iterdir()] == [".x.tfm.int8.search"]


def test_the_files(made: tuple[Path, Any]) -> None:
    output, report = made
    assert report.passed
    assert report.faults() == []
    names, suffixes = ("decoder", "decoder_model_merged", "encoder_model"), ("", "_int8", "_fp16")
    graphs = [f"onnx/{name}{suffix}.onnx" for name in names for suffix in suffixes]
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    rest = ["config.json", "generation_config.json", "golden.json", "golden.npz", "manifest.json", "parity.json"]
    rest += ["report.html", "recipe_int8.json"]
    assert found == sorted([*graphs, *rest])


def test_the_manifest_lists_every_file_with_its_digest(made: tuple[Path, Any]) -> None:
    output, _ = made
    manifest = json.loads((output / "manifest.json").read_text())
    files = [path for path in output.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert manifest["files"] == {
        path.relative_to(output).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    assert {gate["name"] for gate in manifest["gates"]} == {
        *(f"{precision} {what}" for precision in MADE for what in ("encoder", "decoder", "merged", "top-1", "greedy")),
        "int8 budget",
    }
    assert all(gate["passed"] for gate in manifest["gates"])
    assert manifest["generation"]["max_new_tokens"] == 9


def test_the_certificate_is_the_report(made: tuple[Path, Any]) -> None:
    output, report = made
    values = json.loads((output / "parity.json").read_text())
    assert values == json.loads(json.dumps(report.certificate))
    assert (values["schema"], values["passed"]) == (PARITY_SCHEMA, True)
    assert [(graph["role"], graph["precision"]) for graph in values["graphs"]] == [
        (role, precision) for precision in ("fp32", "fp16", "int8") for role in ("encoder", "decoder", "merged")
    ]
    assert all(op["passed"] and op["form"] and op["own"]["count"] for graph in values["graphs"] for op in graph["ops"])
    assert values["sizes"]["fp32"] == sum(
        (output / "onnx" / name).stat().st_size for name in ("encoder_model.onnx", "decoder.onnx")
    )


@pytest.mark.parametrize("precision", MADE)
def test_the_runtime_runs_it(made: tuple[Path, Any], precision: str) -> None:
    output, _ = made
    model = load(output, provider="cpu", precision=precision)
    generated = model.generate([[3, 4, 5], [6]])
    assert all(len(row) <= 9 for row in generated)
    (alone,) = model.generate([[6]])
    if precision == "fp32":
        assert alone == generated[1]


def test_the_golden_outputs_are_reproduced(made: tuple[Path, Any]) -> None:
    report = check_golden(made[0], provider="cpu")
    assert report.passed, report.faults()
    assert [graph.precision for graph in report.graphs] == [name for name in MADE for _ in range(3)]


def test_the_golden_limits_are_those_asked_for(checkpoint: Path, output: Path) -> None:
    export_checkpoint(checkpoint, output, precisions=["fp32"], tolerance=Tolerance(1e-3, 1e-4))
    fp32 = json.loads((output / "golden.json").read_text())["precisions"]["fp32"]
    assert (fp32["atol"], fp32["rtol"]) == (1e-3, 1e-4)


def test_fp32_alone(checkpoint: Path, output: Path) -> None:
    stages: list[str] = []

    def stage(name: str) -> Any:
        stages.append(name)
        return contextlib.nullcontext()

    report = export_checkpoint(checkpoint, output, precisions=["fp32"], stage=stage)
    assert report.passed
    assert [path.name for path in (output / "onnx").iterdir()] == ["model.onnx"]
    assert stages == [
        "read checkpoint",
        "export encoder",
        "verify fp32 encoder",
        "compare fp32 bundle with eager",
        "time eager, fp32",
        "draw report.html",
        "store golden outputs",
    ]
    (fidelity,) = report.fidelity
    assert (fidelity.measure, fidelity.count) == ("cosine", 8 * (5 + 16 + 16))


def test_fp32_is_made_unasked(checkpoint: Path, output: Path) -> None:
    assert list(export_checkpoint(checkpoint, output, precisions=["int8"]).sizes) == ["fp32", "int8"]


def test_companions_come_along_and_nothing_else(checkpoint: Path, output: Path) -> None:
    (checkpoint.parent / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    (checkpoint.parent / "secrets.json").write_text("{}")
    export_checkpoint(checkpoint, output, precisions=["fp32"])
    assert (output / "sentence_bert_config.json").read_text() == '{"max_seq_length": 7}'
    assert not (output / "secrets.json").exists()
    assert load(output, provider="cpu").manifest.max_text_tokens == 7


def test_overwrite(checkpoint: Path, output: Path) -> None:
    export_checkpoint(checkpoint, output, precisions=["fp32"])
    before = (output / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="exists already"):
        export_checkpoint(checkpoint, output, precisions=["fp32"])
    assert (output / "manifest.json").read_bytes() == before
    export_checkpoint(checkpoint, output, overwrite=True)
    assert (output / "onnx" / "model_int8.onnx").is_file()


# ------------------------------------------------ refusals


@pytest.mark.parametrize("precisions", [["fp8"], ["fp32", "int2"], [""]])
def test_an_unknown_precision(checkpoint: Path, output: Path, precisions: list[str]) -> None:
    with pytest.raises(ExportError, match=r"unknown precision '.*'; known: fp32, int8, int4, fp16"):
        export_checkpoint(checkpoint, output, precisions=precisions)
    nothing_is_left(output)


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": 99}'])
def test_a_bad_generation_config(make_model: Any, tmp_path: Path, output: Path, text: str) -> None:
    save_checkpoint(make_model(kind="decoder"), tmp_path / "model.pt")
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        export_checkpoint(tmp_path / "model.pt", output, precisions=["fp32"])
    nothing_is_left(output)


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
def test_a_disk_that_fills(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    real = ir.save

    def save(model: ir.Model, path: Path, **options: Any) -> None:
        if path.name == file:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(model, path, **options)

    monkeypatch.setattr(ir, "save", save)
    with pytest.raises(ExportError, match="No space left on device"):
        export_checkpoint(checkpoint, output)
    (nothing_is_left if file == "model.onnx" else only_figures_are_left)(output)


@pytest.mark.parametrize("step", ["to_onnx", "verify", "quantize", "to_fp16", "measure_latency"])
def test_an_interruption_leaves_nothing(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        if not (step == "measure_latency" and only_tried(args)):
            raise KeyboardInterrupt

    monkeypatch.setattr(bundle, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, output, precisions=MADE)
    (only_figures_are_left if step == "measure_latency" else nothing_is_left)(output)


def test_a_finished_search_outlives_what_fails_after_it(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are dropped once they have become a bundle, not before."""
    for failure in (VerificationError("the engine eager broke down"), OSError(errno.ENOSPC, "No space left on device")):

        def fail(*args: Any, failure: Exception = failure) -> None:
            if not only_tried(args):
                raise failure

        with monkeypatch.context() as patched:
            patched.setattr(bundle, "measure_latency", fail)
            with pytest.raises((VerificationError, ExportError)):
                export_checkpoint(checkpoint, output)
        only_figures_are_left(output)
    with pytest.raises(QuantizeError, match="max_drop must be a number"):
        export_checkpoint(checkpoint, output, max_drop=-1.0)
    only_figures_are_left(output)
    found = []
    for name in ("drop", "stats"):
        real = getattr(Evaluator, name)

        def counted(*arguments: Any, name: str = name, real: Any = real) -> Any:
            found.append(name)
            return real(*arguments)

        monkeypatch.setattr(Evaluator, name, counted)
    assert export_checkpoint(checkpoint, output).shipped
    assert found == ["stats"]  # of the result, on samples that no search has seen
    assert [path.name for path in output.parent.iterdir()] == ["x.tfm"]


def test_what_appears_while_it_runs_stays_and_the_bundle_too(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> list[Latency]:
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
        return []

    monkeypatch.setattr(bundle, "measure_latency", measure)
    with pytest.raises(ExportError, match=r"x\.tfm has appeared while this ran.*the finished bundle is .*x-2\.tfm"):
        export_checkpoint(checkpoint, output, precisions=["fp32"])
    assert (output / "thesis.txt").read_text() == "precious"
    assert check_golden(output.with_name("x-2.tfm"), provider="cpu").passed


def test_a_model_of_nan_is_refused(
    make_model: Any, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager and ONNX agree on NaN everywhere, which is no reason to ship it."""
    model = make_model(**ENCODER)
    model.encoder.layers[0].feed_forward.linear1.bias.data[0] = float("nan")
    save_checkpoint(model, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in the weights encoder\.layers\.0\."):
        export_checkpoint(tmp_path / "model.pt", output)
    monkeypatch.setattr(subject, "_check_finite", lambda *_: None)  # finite weights can give NaN too
    report = export_checkpoint(tmp_path / "model.pt", output, precisions=["fp32"])
    assert not report.passed
    assert "eager PyTorch itself gives NaN: nothing is proved" in report.faults()[0]
    nothing_is_left(output)


def defect(edit: Callable[[ir.Node], None], op_type: str) -> Callable[[Any], None]:
    def apply(model: ir.Model) -> None:
        edit(next(node for node in model.graph if node.op_type == op_type))

    return apply


def swap_keys_and_values(node: ir.Node) -> None:
    key, value = node.inputs[1:3]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)


def drop_mask(node: ir.Node) -> None:
    node.replace_input_with(3, None)


@pytest.mark.parametrize("edit", [swap_keys_and_values, drop_mask])
def test_a_defect_that_only_the_int8_graph_has(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[ir.Node], None]
) -> None:
    """What an int8 op inherits is not judged by the op, so wrong wiring has to show in the bundle's fidelity."""
    real = bundle.quantize

    def quantize(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        model = ir.load(made.files["model"])
        defect(edit, "Attention")(model)
        ir.save(model, made.files["model"])
        return made

    monkeypatch.setattr(bundle, "quantize", quantize)
    report = export_checkpoint(checkpoint, output)
    assert not report.passed
    assert report.faults()[0].startswith(
        "int8 cosine: " if edit is swap_keys_and_values else "int8 model: attention encoder.layers.0.self_attn: off by"
    )
    only_figures_are_left(output)


@pytest.mark.parametrize("edit", [swap_keys_and_values, drop_mask])
def test_a_defect_that_only_the_fp16_graph_has(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[ir.Node], None]
) -> None:
    real = bundle.to_fp16

    def to_fp16(model: ir.Model) -> None:
        real(model)
        defect(edit, "Attention")(model)

    monkeypatch.setattr(bundle, "to_fp16", to_fp16)
    report = export_checkpoint(checkpoint, output, precisions=["fp16"])
    assert not report.shipped
    assert report.faults()[0].startswith(
        "fp16 cosine: " if edit is swap_keys_and_values else "fp16 model: attention encoder.layers.0.self_attn: off by"
    )
    nothing_is_left(output)


def test_sums_that_float16_cannot_hold_are_refused(make_model: Any, tmp_path: Path, output: Path) -> None:
    """The CPU, which adds up and goes on in float32, would not show them."""
    model = make_model(**ENCODER)
    model.encoder.layers[0].feed_forward.linear1.weight.data *= 5e4
    save_checkpoint(model, tmp_path / "model.pt")
    report = export_checkpoint(tmp_path / "model.pt", output, precisions=["fp16"])
    assert [graph.passed for graph in report.graphs] == [True, False]
    linear = "fp16 model: linear encoder.layers.0.feed_forward.linear1"
    assert report.faults()[0].startswith(f"{linear}: off by itself: NaN or infinity where eager has another value")
    nothing_is_left(output)


def test_a_weight_that_float16_cannot_hold_is_refused(make_model: Any, tmp_path: Path, output: Path) -> None:
    model = make_model(**ENCODER)
    model.encoder.layers[0].feed_forward.linear1.weight.data[0, 0] = 70_000
    save_checkpoint(model, tmp_path / "model.pt")
    with pytest.raises(QuantizeError, match=r"holds 70000, and float16 ends at ±65504; leave out fp16"):
        export_checkpoint(tmp_path / "model.pt", output, precisions=["fp16"])
    nothing_is_left(output)


def test_a_graph_that_cannot_run_is_a_verdict(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundle.to_onnx

    def export(graph: Any, **options: Any) -> ir.Model:
        model = real(graph, **options)
        defect(lambda node: node.attributes.__setitem__("q_num_heads", ir.AttrInt64("q_num_heads", 3)), "Attention")(
            model
        )
        return model

    monkeypatch.setattr(bundle, "to_onnx", export)
    report = export_checkpoint(checkpoint, output, precisions=["fp32"])
    assert not report.passed
    assert report.faults()[0].startswith("fp32 model: attention encoder.layers.0.self_attn: it cannot be run by itself")
    assert (report.fidelity, report.latency) == ((), ())
    nothing_is_left(output)


# ------------------------------------------------ verdicts on what a user would notice


def fidelity(**changes: Any) -> Fidelity:
    values = {"precision": "int8", "measure": "cosine", "value": 1.0, "floor": 0.99, "count": 3, "data": "texts"}
    return Fidelity(**(values | changes))


def test_fidelity_needs_a_value_and_something_compared() -> None:
    assert fidelity().passed
    assert fidelity(value=0.99).passed
    assert not fidelity(value=0.98).passed
    assert not fidelity(count=0).passed
    assert not fidelity(value=np.nan).passed
    assert not fidelity(value=np.nan, floor=0.0).passed


def test_every_measure_has_a_floor_in_every_precision() -> None:
    assert set(FLOORS) == {(m, p) for m in ("cosine", "top-1", "greedy") for p in PRECISIONS}


def test_a_report_without_graphs_or_fidelity_fails(made: tuple[Path, Any]) -> None:
    _, report = made
    assert report.passed
    for part in ("graphs", "fidelity"):
        assert not dataclasses.replace(report, **{part: ()}).passed


def test_low_fidelity_refuses_the_bundle(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "measure_fidelity", lambda *_: [fidelity(value=0.5)])
    report = export_checkpoint(checkpoint, output)
    assert not report.passed
    assert report.faults()[0] == "int8 cosine: 0.5000 over 3 texts, less than 0.99"
    only_figures_are_left(output)


def test_fp16_is_never_timed_here(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def measure(graphs: Any, files: dict[str, Any], *_: Any) -> list[Latency]:
        timed.extend(files)
        return [Latency(work="model 1×16", rounds={"eager": [2.0] * 9, **dict.fromkeys(files, [1.0] * 9)})]

    monkeypatch.setattr(bundle, "measure_latency", measure)
    report = export_checkpoint(checkpoint, output, precisions=["fp16"])
    assert report.passed, report.faults()
    assert timed == ["fp32"]
    assert [gate.name for gate in report.gates()] == ["fp32 model", "fp16 model", "fp32 cosine", "fp16 cosine"]
    (text,) = json.loads((output / "parity.json").read_text())["not_judged"]
    assert text.startswith("The speed of fp16 was not judged on this machine: ")
    assert text in (output / "report.html").read_text(encoding="utf-8")
    assert {"any op in fp16, by itself"} <= {row["what"] for row in report.certificate["tolerances"]}


def test_nothing_is_left_unjudged_without_fp16(checkpoint: Path, output: Path) -> None:
    certificate = export_checkpoint(checkpoint, output, precisions=["fp32"]).certificate
    assert certificate["not_judged"] == []
    assert not [row for row in certificate["tolerances"] if "fp16" in row["what"]]


def test_a_budget_is_not_for_fp16(checkpoint: Path, output: Path) -> None:
    report = export_checkpoint(checkpoint, output, precisions=["fp16"], max_drop=0.5)
    assert {part.precision: part.floor for part in report.fidelity} == {
        precision: FLOORS["cosine", precision] for precision in ("fp32", "fp16")
    }


def slow(*_: Any) -> list[Latency]:
    return [
        Latency(work=work, rounds={"eager": [20.0] * 9, "fp32": [fp32] * 9, "int8": [int8] * 9})
        for work, int8, fp32 in [("model 1×16", 2.0, 1.0), ("model 1×128", 9.0, 10.0)]
    ]


def test_int8_that_is_slower_is_refused(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "measure_latency", slow)
    report = export_checkpoint(checkpoint, output)
    assert not report.passed
    assert report.faults() == [
        "int8 is slower than fp32 here: 1.34× its time (1.34–1.34) over all work, at worst 2.00 ms against 1.00 ms "
        "(model 1×16)"
    ]
    only_figures_are_left(output)


def test_what_is_forced_is_marked(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "measure_latency", slow)
    report = export_checkpoint(checkpoint, output, force=True)
    assert (report.passed, report.shipped) == (False, True)
    assert json.loads((output / "parity.json").read_text())["passed"] is False
    gates = {gate["name"]: gate["passed"] for gate in json.loads((output / "manifest.json").read_text())["gates"]}
    assert gates["int8 not slower than fp32"] is False
    assert gates["fp32 model"] is True
    load(output, precision="int8")


def test_what_is_wrong_is_not_forced(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "measure_fidelity", lambda *_: [fidelity(precision="fp32", value=0.5)])
    report = export_checkpoint(checkpoint, output, force=True)
    assert not report.shipped
    only_figures_are_left(output)


def test_int8_that_is_not_shown_to_be_slower_is_shipped_and_not_said_to_be_faster(
    checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = {"eager": [2.0] * 9, "fp32": [1.0] * 9, "int8": [0.9, 1.1, 1.0] * 3}
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: [Latency(work="model 1×16", rounds=rounds)])
    report = export_checkpoint(checkpoint, output)
    assert report.passed, report.faults()
    certificate = json.loads((output / "parity.json").read_text())
    said = {(one["precision"], one["baseline"]): one["verdict"] for one in certificate["speed"]}
    assert said == {("fp32", "eager"): "faster", ("int8", "eager"): "faster", ("int8", "fp32"): "no difference shown"}
    gates = {gate.name: gate.passed for gate in report.gates()}
    assert gates["int8 not slower than fp32"] is True
    assert not [name for name in gates if "faster" in name]


def test_engines_are_tried_before_the_search(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graphs: Any, files: dict[str, Any], *rest: Any) -> list[Latency]:
        assert (list(files), rest[-1]) == (["fp32"], 0)
        raise VerificationError("the engine eager broke down")

    monkeypatch.setattr(bundle, "measure_latency", fail)
    monkeypatch.setattr(bundle, "quantize", lambda *_, **__: pytest.fail("the search began"))
    with pytest.raises(VerificationError, match="the engine eager broke down"):
        export_checkpoint(checkpoint, output)
    nothing_is_left(output)
