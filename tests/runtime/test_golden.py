"""The golden check: what passes, what fails and how it is named, and what is no golden bundle at all."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfm.errors import BundleError, InputError, ProviderError
from tfm.runtime import GoldenReport, check_golden
from tfm.runtime.sessions.graph_files import GraphFiles

OUTPUTS = HIDDEN, EMBEDDING = "last_hidden_state", "sentence_embedding"


@pytest.fixture
def check(remake_digests: Callable[[Path], None]) -> Callable[..., GoldenReport]:
    """Check a bundle on the CPU, its digests made anew first."""

    def run(bundle: Path, **options: Any) -> GoldenReport:
        remake_digests(bundle)
        return check_golden(bundle, **{"provider": "cpu", "threads": 1, **options})

    return run


def edit_arrays(bundle: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez_compressed(bundle / "golden.npz", **arrays)


def edit_limits(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((bundle / "golden.json").read_text())
    change(values)
    (bundle / "golden.json").write_text(json.dumps(values))


def edit_table(bundle: Path, change: Callable[[np.ndarray], np.ndarray], file: str = "model.onnx") -> None:
    """Change the weights of a graph."""
    path = bundle / "onnx" / file
    model = onnx.load(path)
    (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "table"]
    table.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(table).copy()), "table"))
    onnx.save(model, path)


def test_the_same(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    report = check(make_golden())
    assert (report.passed, report.faults(), report.cases) == (True, [], 2)
    assert [(g.precision, g.role, g.provider) for g in report.graphs] == [
        ("fp32", "model", "cpu"),
        ("int8", "model", "cpu"),
    ]
    fp32, int8 = ({output.name: output for output in graph.outputs} for graph in report.graphs)
    # Two rows of three tokens and one of one, of four numbers; one embedding per row.
    assert {name: output.figures.count for name, output in fp32.items()} == {HIDDEN: 28, EMBEDDING: 12}
    assert (fp32[HIDDEN].measure, fp32[HIDDEN].figures.max_abs) == ("max_abs", 0.0)
    assert fp32[HIDDEN].limit == pytest.approx(1e-5 + 1e-5 * fp32[HIDDEN].figures.scale)
    assert (int8[HIDDEN].measure, int8[HIDDEN].limit) == ("nmse", 2.0 + 1e-9)
    assert int8[HIDDEN].figures.nmse == pytest.approx(1.0)


def test_the_report_is_json(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    edit_arrays(bundle, lambda a: a[f"model/0/outputs/{HIDDEN}"].__setitem__((0, 0, 0), np.nan))
    values = json.loads(json.dumps(check(bundle).to_dict(), allow_nan=False))
    assert (values["bundle"], values["passed"], values["cases"]) == (str(bundle), False, 2)
    output = values["graphs"][0]["outputs"][0]
    assert (output["name"], output["passed"], output["max_abs"]) == (HIDDEN, False, None)
    assert values["graphs"][0]["outputs"][1]["limit"] > 1e-5


def test_each_graph_is_a_gate(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    """Of the output that is off, or else is nearest to its limit."""
    bundle = make_golden()
    report = check(bundle)
    fp32, int8 = report.gates()
    exact = {output.name: output.figures.max_abs for output in report.graphs[0].outputs}
    assert (fp32.name, fp32.stage, fp32.precision, fp32.passed) == ("fp32 model", "golden", "fp32", True)
    assert (fp32.figure, fp32.reason) == (exact[fp32.op], "")
    assert (int8.limit, int8.passed) == (2.0 + 1e-9, True)
    edit_arrays(bundle, lambda a: a[f"model/0/outputs/{EMBEDDING}"].__setitem__((0, 0), 99.0))
    report = check(bundle)
    fp32 = report.gates()[0]
    assert fp32.op == EMBEDDING
    assert fp32.figure == report.graphs[0].outputs[1].figures.max_abs
    assert fp32.limit == report.graphs[0].outputs[1].limit
    assert [gate.reason for gate in report.gates() if not gate.passed] == report.faults()
    (bundle / "onnx/model.onnx").write_bytes(b"not a graph")
    fp32 = check(bundle).gates()[0]
    assert (fp32.passed, fp32.op, fp32.figure, fp32.limit) == (False, "", None, None)
    (nothing,) = check(bundle, precision=[]).gates()
    assert (nothing.passed, nothing.reason) == (False, "nothing was compared")


# ------------------------------------------------ what is off


@pytest.mark.parametrize(("times", "passed"), [(0.99, True), (1.01, False), (1000.0, False)])
def test_the_limit_of_fp32(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], times: float, passed: bool
) -> None:
    bundle = make_golden()
    limit = check(bundle).graphs[0].outputs[0].limit
    assert limit is not None
    # An element near zero, which stays so: the scale, and with it the limit, does not move, and its rounding is small.
    edit_arrays(bundle, lambda a: a[f"model/0/outputs/{HIDDEN}"].__setitem__((0, 1, 0), 0.0))
    edit_table(
        bundle, lambda table: np.concatenate([table[:5], [[times * limit, *table[5, 1:]]], table[6:]], dtype="f")
    )
    edit_arrays(bundle, lambda a: a.update({f"model/0/outputs/{EMBEDDING}": mean_of(a)}))
    report = check(bundle, precision="fp32")
    assert report.passed is passed
    if not passed:
        assert report.faults()[0].startswith(f"fp32 model: {HIDDEN} is off by ")
        assert report.faults()[0].count("more than") == 1


def mean_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    hidden, mask = arrays[f"model/0/outputs/{HIDDEN}"], arrays["model/0/inputs/attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).astype(np.float32)


@pytest.mark.parametrize(("measured", "passed"), [(0.51, True), (0.49, False)])
def test_the_limit_of_int8(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], measured: float, passed: bool
) -> None:
    """Its NMSE here is 1."""
    bundle = make_golden()
    edit_limits(bundle, lambda v: v["precisions"]["int8"]["nmse"]["model"].update({EMBEDDING: measured}))
    report = check(bundle)
    assert report.passed is passed
    if not passed:
        assert report.faults() == [
            f"int8 model: {EMBEDDING} has NMSE 1.0e+00, more than 9.8e-01; where it was exported, 4.9e-01"
        ]


def test_an_nmse_that_tells_nothing(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    edit_limits(bundle, lambda v: v["precisions"]["int8"]["nmse"]["model"].update({HIDDEN: None}))
    report = check(bundle)
    assert report.passed
    assert report.graphs[1].outputs[0].limit is None
    edit_table(bundle, lambda table: np.full_like(table, np.nan), "model_int8.onnx")
    assert check(bundle).faults()[0].startswith(f"int8 model: {HIDDEN} is NaN or infinity where eager PyTorch gave")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_equal_only_themselves(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], value: float
) -> None:
    bundle = make_golden()

    def spoil(table: np.ndarray) -> np.ndarray:
        table[11, 2] = value
        return table

    for file in ("model.onnx", "model_int8.onnx"):
        edit_table(bundle, spoil, file)
    report = check(bundle)  # the graphs give it, eager did not
    assert [graph.first_fault.split(" is ")[0] for graph in report.graphs] == [HIDDEN] * 2
    assert all("(and 1 more of its 2 outputs)" in fault for fault in report.faults())
    edit_arrays(bundle, lambda a: [a[f"model/1/outputs/{name}"].__setitem__((..., 2), value) for name in OUTPUTS])
    assert check(bundle).passed  # both do, at the same place
    edit_arrays(bundle, lambda a: [a[f"model/1/outputs/{name}"].__setitem__((..., 1), value) for name in OUTPUTS])
    assert not check(bundle).passed  # eager did at another place too


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
def test_weights_that_are_off(make_golden: Callable[[], Path], check: Callable[..., GoldenReport], file: str) -> None:
    """In the int8 graph, whose NMSE was 1 already, only what is far worse is told apart."""
    bundle = make_golden()
    edit_table(bundle, lambda table: table * (np.float32(1.1) if file == "model.onnx" else np.float32(2)), file)
    precision = "fp32" if file == "model.onnx" else "int8"
    assert [fault.split(":")[0] for fault in check(bundle).faults()] == [f"{precision} model"]


def test_another_file_in_its_place(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    (bundle / "onnx/model.onnx").write_bytes((bundle / "onnx/model_int8.onnx").read_bytes())
    assert check(bundle).faults()[0].startswith(f"fp32 model: {HIDDEN} is off by ")


def test_a_file_that_is_no_graph(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    (bundle / "onnx/model_int8.onnx").write_bytes(b"not a graph")
    report = check(bundle)
    assert [graph.passed for graph in report.graphs] == [True, False]
    assert (report.graphs[1].provider, report.graphs[1].outputs) == ("", ())
    (fault,) = report.faults()
    assert fault.startswith("int8 model: ")
    assert "is no ONNX file" in fault
    assert "\n" not in fault


def test_a_graph_that_fails_as_it_runs(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    edit_table(bundle, lambda table: table[:11])  # the id 11 of the second case is beyond it
    report = check(bundle)
    assert (report.passed, report.graphs[0].outputs, report.graphs[0].provider) == (False, (), "cpu")
    (fault,) = report.faults()
    assert fault.startswith("fp32 model: [ONNXRuntimeError]")
    assert "\n" not in fault


def test_an_input_that_the_graph_must_not_see(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport]
) -> None:
    bundle = make_golden()
    edit_arrays(bundle, lambda a: a["model/1/inputs/input_ids"].__setitem__((0, 0), 12))
    assert check(bundle).faults()[0] == "fp32 model: input_ids[0, 0] is 12; ids must be in [0, 12)"


def test_another_shape(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    edit_arrays(bundle, lambda a: a.update({f"model/1/outputs/{HIDDEN}": a[f"model/1/outputs/{HIDDEN}"][..., :1]}))
    assert check(bundle).faults()[0] == (
        f"fp32 model: {HIDDEN} of golden case 1: shapes differ: (1, 1, 4) was computed, (1, 1, 1) expected"
    )


def test_nothing_compared_is_no_pass(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    report = check(bundle, precision=[])
    assert (report.passed, report.faults()) == (False, ["nothing was compared"])
    good = check(bundle)
    empty = dataclasses.replace(good.graphs[0], outputs=())
    report = dataclasses.replace(good, graphs=(empty, good.graphs[1]))
    assert (report.passed, report.faults()) == (False, ["fp32 model: nothing was compared"])
    broken = dataclasses.replace(good.graphs[0], fault="it cannot be run")
    report = dataclasses.replace(good, graphs=(broken, good.graphs[1]))
    assert (report.passed, report.faults()) == (False, ["fp32 model: it cannot be run"])


def test_outputs_without_elements(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    """They agree, but prove nothing."""
    bundle = make_golden()
    edit_table(bundle, lambda table: table[:, :0])
    names = [f"model/{case}/outputs/{name}" for case in (0, 1) for name in OUTPUTS]
    edit_arrays(bundle, lambda a: a.update({name: a[name][..., :0] for name in names}))
    report = check(bundle, precision="fp32")
    assert report.faults() == [f"fp32 model: {HIDDEN} was compared with nothing (and 1 more of its 2 outputs)"]


# ------------------------------------------------ what is asked


def test_precisions(make_golden: Callable[[], Path], check: Callable[..., GoldenReport]) -> None:
    bundle = make_golden()
    edit_table(bundle, lambda table: table + 1, "model_int8.onnx")
    assert [graph.precision for graph in check(bundle, precision="fp32").graphs] == ["fp32"]
    assert check(bundle, precision=["fp32", "fp32"]).passed
    assert not check(bundle, precision=["int8"]).passed
    with pytest.raises(BundleError, match=r"encoder has no 'int4' graph; it has: fp32, int8"):
        check(bundle, precision=["fp32", "int4"])


def test_the_provider_that_ran_is_named(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA is built in and does not start."""

    opened = GraphFiles.open

    def open_on_the_cpu(files: GraphFiles, provider: str, threads: int) -> Any:
        if provider == "cuda":
            raise ProviderError("no CUDA here")
        return opened(files, provider, threads)

    monkeypatch.setattr(GraphFiles, "open", open_on_the_cpu)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    report = check(make_golden(), provider="auto")
    assert (report.passed, {graph.provider for graph in report.graphs}) == (True, {"cpu"})
    with pytest.raises(ProviderError, match="no CUDA here"):
        check_golden(report.bundle, provider="cuda")


def test_wrong_options(make_golden: Callable[[], Path]) -> None:
    bundle = make_golden()
    with pytest.raises(ProviderError, match="unknown provider 'tpu'"):
        check_golden(bundle, provider="tpu")
    with pytest.raises(InputError, match="threads must be an integer of at least 1, but is 0"):
        check_golden(bundle, threads=0)


# ------------------------------------------------ what is no golden bundle


@pytest.mark.parametrize("name", ["onnx/model_int8.onnx", "tokenizer.json", "golden.npz", "golden.json"])
def test_an_altered_file(make_golden: Callable[[], Path], name: str) -> None:
    """Any file, also one that this check does not open."""
    bundle = make_golden()
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was altered: its SHA-256 is not the manifest's"):
        check_golden(bundle, provider="cpu", precision="fp32")


@pytest.mark.parametrize("name", ["golden.npz", "golden.json"])
def test_a_bundle_of_an_older_version(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], name: str
) -> None:
    bundle = make_golden()
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"encoder holds no {name}: an older tfm-export made it, .*export it again"):
        check(bundle)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: it holds no manifest"):
        check_golden(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=2), "its schema is 2, but this tfm-export reads 1"),
        (lambda v: v.update(schema=True), "its schema is true"),
        (lambda v: v.pop("cases"), "'cases' is missing"),
        (lambda v: v["cases"].update(model=0), "cases.model must be an integer of at least 1, but is 0"),
        (lambda v: v["precisions"].pop("int8"), "'int8' is missing in precisions"),
        (lambda v: v["precisions"]["fp32"].update(atol=-1), "fp32.atol must be a number of at least 0, but is -1"),
        (lambda v: v["precisions"]["fp32"].update(rtol=np.inf), "fp32.rtol must be a number of at least 0"),
        (lambda v: v["precisions"]["fp32"].update(rtol=np.nan), "fp32.rtol must be a number of at least 0"),
        (lambda v: v["precisions"]["fp32"].update(rtol=True), "fp32.rtol must be a number of at least 0"),
        (lambda v: v["precisions"]["int8"].update(nmse_factor=None), "nmse_factor must be a number of at least 0"),
        (lambda v: v["precisions"]["int8"]["nmse"].pop("model"), "'model' is missing in precisions.int8.nmse"),
        (lambda v: v["precisions"]["int8"]["nmse"]["model"].pop(HIDDEN), f"'{HIDDEN}' is missing in"),
        (lambda v: v["precisions"]["int8"]["nmse"]["model"].update({HIDDEN: "0"}), "must be a number of at least 0"),
    ],
)
def test_limits_that_are_wrong(
    make_golden: Callable[[], Path],
    check: Callable[..., GoldenReport],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    bundle = make_golden()
    edit_limits(bundle, change)
    with pytest.raises(BundleError, match=rf"golden\.json: .*{message.replace('.', '[.]')}"):
        check(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("model/1/inputs/input_ids"), "holds no 'model/1/inputs/input_ids'"),
        (lambda a: a.pop(f"model/0/outputs/{EMBEDDING}"), f"holds no 'model/0/outputs/{EMBEDDING}'"),
        (lambda a: a.update({"model/2/inputs/input_ids": np.zeros(1)}), "holds 'model/2/inputs/input_ids', which no"),
        (lambda a: a.update({"model/0/inputs/input_ids": np.array([None])}), "cannot be read: Object arrays cannot"),
    ],
)
def test_arrays_that_are_wrong(
    make_golden: Callable[[], Path],
    check: Callable[..., GoldenReport],
    change: Callable[[dict[str, np.ndarray]], object],
    message: str,
) -> None:
    bundle = make_golden()
    edit_arrays(bundle, change)
    with pytest.raises(BundleError, match=rf"golden\.npz {message}.*; export the bundle again"):
        check(bundle)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_arrays_that_cannot_be_read(
    make_golden: Callable[[], Path], check: Callable[..., GoldenReport], content: bytes
) -> None:
    bundle = make_golden()
    (bundle / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read: .*; export the bundle again"):
        check(bundle)
