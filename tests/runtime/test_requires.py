"""The lowest onnxruntime of each graph: read strictly, compared before anything is opened, and told in one sentence."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tfm.bundle.manifest import read_manifest
from tfm.bundle.requires import OLDEST, is_older, lowest_needed, newest
from tfm.errors import BundleError
from tfm.runtime import check_golden, load
from tfm.runtime import open_bundle as opening
from tfm.runtime.doctor.doctor import diagnose
from tfm.runtime.sessions.providers import open_session
from tfm.runtime.sessions.requires import upgrade

SENTENCE = r"needs onnxruntime >= 1\.25\.0, and this is 1\.24\.4: pip install -U onnxruntime$"


def requires(fp32: str = "1.24.1", int8: str = "1.25.0") -> dict[str, Any]:
    return {"onnxruntime": {"fp32": {"model": fp32}, "int8": {"model": int8}}}


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_graph_that_needs_a_newer_one_is_not_opened(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    bundle = make_bundle("encoder", requires=requires())
    monkeypatch.setattr(opening, "GraphFiles", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(BundleError, match=SENTENCE) as caught:
        load(bundle, precision=precision)
    assert str(caught.value).startswith(str(bundle / "onnx/model_int8.onnx"))


@pytest.mark.usefixtures("older")
def test_a_graph_that_needs_no_newer_one_opens(make_bundle: Callable[..., Path]) -> None:
    assert load(make_bundle("encoder", requires=requires()), precision="fp32").precision == "fp32"


@pytest.mark.usefixtures("older")
def test_of_two_graphs_the_one_that_does_not_open_is_named(make_bundle: Callable[..., Path]) -> None:
    said = {"onnxruntime": {"fp32": {"encoder": "1.24.1", "decoder": "1.25.0"}}}
    bundle = make_bundle("copier", requires=said)
    with pytest.raises(BundleError, match=SENTENCE) as caught:
        load(bundle)
    assert str(caught.value).startswith(str(bundle / "onnx/decoder_model_merged.onnx"))


@pytest.mark.parametrize(
    "said", [{}, {"requires": {"onnxruntime": {}}}, {"requires": {"onnxruntime": {"fp32": {}, "int8": {}}}}]
)
def test_a_bundle_that_does_not_say_is_opened(make_bundle: Callable[..., Path], said: dict[str, Any]) -> None:
    bundle = make_bundle("encoder", **said)
    assert lowest_needed(read_manifest(bundle)) == {}
    assert load(bundle).precision == "int8"


@pytest.mark.usefixtures("older")
def test_a_graph_that_was_taken_out_is_not_asked_after(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle("encoder", requires=requires(), graphs={"fp32": {"model": "onnx/model.onnx"}})
    diagnosis = diagnose(bundle)
    assert diagnosis.passed
    assert diagnosis.bundle is not None
    assert diagnosis.bundle.needs == {"fp32": "1.24.1"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "requires must be an object"),
        ({}, "requires must be what is needed of onnxruntime alone"),
        ({"numpy": {}}, "requires must be what is needed of onnxruntime alone"),
        (requires() | {"numpy": "2"}, "requires must be what is needed of onnxruntime alone"),
        ({"onnxruntime": "1.25.0"}, "requires.onnxruntime must be an object"),
        ({"onnxruntime": {"fp32": [], "int8": {}}}, "requires.onnxruntime.fp32 must be an object"),
        (requires(int8=1.25), "requires.onnxruntime.int8.model must be a string"),
        (requires(int8="1"), 'int8.model must be a version, as "1.25.0"'),
        (requires(int8="1.25.0\n"), 'int8.model must be a version, as "1.25.0"'),
        (requires(int8="9" * 5000 + ".0"), 'int8.model must be a version, as "1.25.0"'),
        (requires(int8="1.25.0.0.1"), 'int8.model must be a version, as "1.25.0"'),
        (requires(int8="1.٣"), 'int8.model must be a version, as "1.25.0"'),
    ],
)
def test_what_is_said_in_another_form_is_refused(make_bundle: Callable[..., Path], value: Any, words: str) -> None:
    bundle = make_bundle("encoder", requires=value)
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    assert words in str(caught.value)


@pytest.mark.usefixtures("older")
def test_parity_says_which_graph_needs_a_newer_one_and_compares_the_others(
    make_golden: Callable[[], Path], edit_manifest: Callable[..., None]
) -> None:
    bundle = make_golden()
    edit_manifest(bundle, lambda values: values.update(requires=requires()))
    report = check_golden(bundle, provider="cpu")
    fp32, int8 = report.graphs
    assert fp32.passed
    assert not report.passed
    assert (int8.provider, int8.outputs) == ("", ())
    assert int8.fault.endswith("needs onnxruntime >= 1.25.0, and this is 1.24.4: pip install -U onnxruntime")


@pytest.mark.usefixtures("older")
def test_the_doctor_says_what_a_bundle_needs(make_bundle: Callable[..., Path]) -> None:
    diagnosis = diagnose(make_bundle("encoder", requires=requires()))
    assert diagnosis.bundle is not None
    assert diagnosis.bundle.needs == {"fp32": "1.24.1", "int8": "1.25.0"}
    (fault,) = diagnosis.faults()
    assert "does not open: " in fault
    assert fault.endswith("needs onnxruntime >= 1.25.0, and this is 1.24.4: pip install -U onnxruntime")
    assert json.loads(json.dumps(diagnosis.to_dict()))["bundle"]["needs"]["int8"] == "1.25.0"


def test_the_doctor_says_that_onnxruntime_is_older_than_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    assert diagnose().faults() == [
        f"onnxruntime 1.17.3 is older than {OLDEST}, the oldest tested: pip install -U onnxruntime"
    ]


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [
        ("1.24.4", "1.25.0", True),
        ("1.25.0", "1.25.0", False),
        ("1.25", "1.25.0", False),
        ("1.25.1", "1.25.0", False),
        ("1.9.0", "1.10.0", True),
        ("1.10.0", "1.9.0", False),
        ("2.0.0", "1.25.0", False),
        ("1.25.0.dev20260101", "1.25.0", False),
        ("1.24.0+cu130", "1.25.0", True),
        ("of our own making", "1.25.0", False),  # nobody can tell; onnxruntime will
        ("", "1.25.0", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) is older


def test_newest_of_versions() -> None:
    assert newest(["1.9.0", "1.25.0", "1.24.4", "1.25"]) == "1.25.0"


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_the_package_that_is_there_is_to_be_upgraded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def version(wanted: str) -> str:
        if wanted != name:
            raise importlib.metadata.PackageNotFoundError(wanted)
        return "1.24.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert upgrade() == f"pip install -U {name}"


def graph(op: str, domain: str = "", opset: int = 24, ir: int = 10, outputs: int = 1, **attributes: Any) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    node = helper.make_node(op, ["x"], ["y", "z"][:outputs], domain=domain, **attributes)
    opsets = [helper.make_opsetid(name, version) for name, version in (("", opset), ("com.microsoft", 1), ("mine", 1))]
    made: onnx.ModelProto = helper.make_model(
        helper.make_graph([node], "graph", [x], [y]), opset_imports=opsets, ir_version=ir
    )
    return made.SerializeToString()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        graph("Identity", ir=99),
        graph("Identity", opset=99),
        graph("NeverHeardOf"),
        graph("NeverHeardOf", "com.microsoft"),
        graph("QuickGelu", "com.microsoft", never_heard_of=1.0),
        graph("QuickGelu", "com.microsoft", outputs=2),
        graph("Softmax", outputs=2),
        graph("MaxUnpool"),
        graph("Not"),
    ],
    ids=["IR", "opset", "op", "op of its own", "attribute", "outputs of its own", "outputs", "inputs", "type"],
)
def test_what_onnxruntime_does_not_know_ends_in_what_to_do(model: bytes, tmp_path: Path, in_memory: bool) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    with pytest.raises(BundleError, match="but a newer one may: pip install -U onnxruntime; ") as caught:
        open_session(model if in_memory else tmp_path / "model.onnx", "cpu", 1)
    assert str(caught.value).startswith(f"onnxruntime {onnxruntime.__version__} could not load ")


def test_a_kernel_that_is_missing_ends_in_what_to_do() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"]) for name in "xy")
    made = helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    with pytest.raises(BundleError, match=r"but a newer one may: pip install -U onnxruntime; .*Could not find an impl"):
        open_session(model.SerializeToString(), "cpu", 1)


@pytest.mark.parametrize("model", [b"junk", graph("NeverHeardOf", "mine")], ids=["junk", "a library's op"])
def test_what_no_newer_one_knows_does_not(model: bytes) -> None:
    with pytest.raises(BundleError, match="could not load a graph in memory: ") as caught:
        open_session(model, "cpu", 1)
    assert "newer" not in str(caught.value)
