"""What the doctor says of machines that are well, and of some that are not."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tfm.errors import BundleError
from tfm.runtime.doctor import doctor
from tfm.runtime.doctor.canaries import canaries


@pytest.fixture
def only_the_cpu(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("only_the_cpu")
def test_a_machine_that_is_well(make_bundle):
    bundle = make_bundle("encoder")
    diagnosis = doctor.diagnose(bundle)
    assert diagnosis.passed
    assert [(one.name, one.runs) for one in diagnosis.providers] == [("cpu", True), ("cuda", False)]
    assert "was built without CUDAExecutionProvider" in diagnosis.providers[1].why
    assert {one.verdict for one in diagnosis.canaries} == {"right"}
    assert len(diagnosis.canaries) == len(canaries())
    assert diagnosis.onnxruntime == onnxruntime.__version__
    assert 1 <= diagnosis.threads <= diagnosis.usable <= diagnosis.cores
    found = diagnosis.bundle
    assert (found.kind, found.provider, found.device, found.precision) == ("encoder", "cpu", "cpu", "int8")
    assert (found.threads, found.skipped, found.why) == (diagnosis.threads, {}, None)
    assert json.loads(json.dumps(diagnosis.to_dict()))["bundle"]["path"] == str(bundle)


@pytest.mark.usefixtures("only_the_cpu")
def test_a_bundle_that_does_not_open(tmp_path):
    diagnosis = doctor.diagnose(tmp_path)
    assert diagnosis.faults() == [f"{tmp_path} does not open: {diagnosis.bundle.why}"]
    assert "is not a bundle" in diagnosis.bundle.why
    assert not diagnosis.passed


def test_nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise BundleError("no kernels at all")

    monkeypatch.setattr(doctor, "open_session", refuse)
    diagnosis = doctor.diagnose()
    assert diagnosis.faults() == ["no provider runs here: install onnxruntime again"]
    assert (diagnosis.canaries, diagnosis.saturates) == ((), None)
    assert [one.why for one in diagnosis.providers] == ["no kernels at all"] * 2


def stand_in(result):
    """A session that gives `result`, on a provider of which it says nothing."""
    return SimpleNamespace(run=lambda names, feeds: [result])


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(
    ("value", "why"),
    [(1.0, r"off by .*, more than"), (np.nan, "what is not a finite number"), (np.inf, "what is not a finite number")],
)
def test_one_wrong_number_is_wrong(monkeypatch, place, value, why):
    canary = canaries()[0]
    result = canary.expected.astype(np.float32)
    result.flat[place] += np.float32(value)
    monkeypatch.setattr(doctor, "open_session", lambda *_: stand_in(result))
    state = doctor._try_canary(canary, "cpu")
    assert (state.verdict, state.on) == ("wrong", ())
    diagnosis = dataclasses.replace(healthy(), canaries=(state,))
    (fault,) = diagnosis.faults()
    assert fault.startswith("MatMul, Gemm on cpu is wrong: ")
    assert re.search(why, fault)


def test_another_shape_is_wrong(monkeypatch):
    canary = canaries()[0]
    result = canary.expected[:1].astype(np.float32)  # would broadcast
    monkeypatch.setattr(doctor, "open_session", lambda *_: stand_in(result))
    state = doctor._try_canary(canary, "cuda")
    assert (state.verdict, state.max_abs) == ("wrong", None)
    (fault,) = dataclasses.replace(healthy(), canaries=(state,)).faults()
    assert fault == (
        "MatMul, Gemm on cuda is wrong: its result has shape (1, 40), not (3, 40); try another onnxruntime, or "
        "provider='cpu'"
    )


def test_what_must_hold_is_a_list_of_gates():
    state = doctor.CanaryState(
        family="Gelu", provider="cuda", verdict="wrong", max_abs=0.5, limit=2e-5, on=(), why="off by 0.5"
    )
    missing = dataclasses.replace(state, verdict="missing", max_abs=None)
    bundle = doctor.BundleState(path="m.tfm", why="it is gone")
    sick = dataclasses.replace(healthy(), onnxruntime="1.0", providers=(), canaries=(state, missing), bundle=bundle)
    gates = sick.gates()
    assert [(gate.name, gate.passed) for gate in gates] == [
        ("onnxruntime", False),
        ("a provider", False),
        ("Gelu on cuda", False),
        ("m.tfm", False),
    ]
    assert {gate.stage for gate in gates} == {"machine"}
    assert (gates[2].op, gates[2].figure, gates[2].limit) == ("Gelu", 0.5, 2e-5)
    assert [gate.reason for gate in gates] == sick.faults()
    well = dataclasses.replace(
        healthy(), onnxruntime="1.99", canaries=(dataclasses.replace(state, verdict="right"),),
        bundle=dataclasses.replace(bundle, why=None),
    )  # fmt: skip
    assert [gate.passed for gate in well.gates()] == [True] * 4
    assert well.faults() == []


def test_what_is_not_there_is_no_fault():
    canary = dataclasses.replace(canaries()[0], model=b"junk")
    state = doctor._try_canary(canary, "cpu")
    assert (state.verdict, state.max_abs) == ("missing", None)
    assert "could not load a graph in memory" in state.why
    assert dataclasses.replace(healthy(), canaries=(state,)).passed


def healthy():
    return doctor.Diagnosis(
        system="", python="", onnxruntime="", build="", available=(), processor="", features={}, saturates=False,
        cores=1, usable=1, quota=None, threads=1, canaries=(), bundle=None,
        providers=(doctor.ProviderState(name="cpu", runs=True, why=None),),
    )  # fmt: skip
