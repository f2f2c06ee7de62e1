"""Timing engines without torch: what they are run on, that the works are those of export, and what breaks them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.support import toys
from tfm.bundle.manifest import Manifest, Signature, TensorSpec, read_manifest
from tfm.errors import InputError, VerificationError
from tfm.export import latency
from tfm.latency import Job, Latency, graphs, onnx_job, time_engines
from tfm.latency.rounds import Turns
from tfm.quantize.calibration.read import read_calibration
from tfm.quantize.workloads import bundle_workloads


@pytest.fixture
def toy(tmp_path: Path) -> Manifest:
    """The manifest of an encoder's bundle that takes at most 8 tokens."""
    return read_manifest(toys.write_bundle(tmp_path / "toy", "encoder"))


def described(manifest: Manifest, kind: str, graphs: list[Any]) -> Manifest:
    """A manifest of these graphs, as it would be read from their bundle."""
    signature = {}
    for graph in graphs:
        sides = [tuple(TensorSpec(**dataclasses.asdict(v)) for v in side) for side in (graph.inputs, graph.outputs)]
        signature[graph.role] = Signature(inputs=sides[0], outputs=sides[1], max_length=graph.max_length)
    return dataclasses.replace(manifest, kind=kind, signature=signature)


MODELS = {
    "encoder": {"kind": "encoder", "activation": "gelu", "type_vocab_size": 2, "max_positions": 200},
    "image": {
        "kind": "encoder", "activation": "gelu", "image_size": 8, "patch_size": 4, "num_channels": 3, "vocab_size": 1,
        "positions": "learned",
    },
    "decoder": {"kind": "decoder", "activation": "gelu", "num_encoder_layers": 0, "max_positions": 200},
    "short decoder": {"kind": "decoder", "activation": "gelu", "num_encoder_layers": 0},
    "encoder-decoder": {"kind": "encoder-decoder", "activation": "gelu", "max_positions": 140},
}  # fmt: skip
NAMES = {
    "encoder": ["model 1×16", "model 1×128"],
    "image": ["model 1×16", "model 1×128"],
    "decoder": ["model step after 16", "model step after 128", "model prompt of 128"],
    "short decoder": ["model step after 15", "model prompt of 15"],
    "encoder-decoder": ["encoder 1×16", "encoder 1×128", "decoder step after 16", "decoder step after 128"],
}


@pytest.mark.parametrize("what", MODELS)
def test_the_works_are_those_of_export(
    toy: Manifest, export_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Made from the manifest alone, they have the names, shapes and dtypes of those that export makes of eager."""
    exported = export_tiny(**MODELS[what])
    graphs = [part.graph for part in exported.values()]
    workloads = bundle_workloads(described(toy, MODELS[what]["kind"], graphs))
    assert [work.name for work in workloads] == NAMES[what]
    handed: list[Any] = []
    monkeypatch.setattr(latency, "time_engines", lambda _, workloads, **__: handed.extend(workloads))
    latency.measure_latency(graphs, {}, None)
    for work, theirs in zip(workloads, handed, strict=True):
        assert (work.name, work.role) == (theirs.name, theirs.role)
        variants = [{n: (x.shape, x.dtype) for n, x in one.inputs.items()} for one in (work, theirs)]
        assert variants[0] == variants[1]
        for name in ("attention_mask", "encoder_attention_mask", "position_ids"):  # without padding there is one choice
            if name in work.inputs:
                np.testing.assert_array_equal(work.inputs[name], theirs.inputs[name])
        session = ort.InferenceSession(exported[work.role].path, providers=["CPUExecutionProvider"])
        assert all(np.isfinite(output).all() for output in session.run(None, dict(work.inputs)))


def test_the_works_are_the_same_each_time_and_not_all_alike(toy: Manifest) -> None:
    (first,), (second,) = bundle_workloads(toy), bundle_workloads(toy)
    assert first.name == "model 1×7"
    assert len(np.unique(first.inputs["input_ids"])) > 1
    for name, array in first.inputs.items():
        np.testing.assert_array_equal(array, second.inputs[name])


def test_a_limit_that_leaves_no_length(toy: Manifest) -> None:
    signature = dataclasses.replace(toy.signature["model"], max_length={"sequence": 1})
    with pytest.raises(InputError, match="sequence must be at least 1"):
        bundle_workloads(dataclasses.replace(toy, signature={"model": signature}))


def module(manifest: Manifest, *inputs: TensorSpec) -> Manifest:
    signature = {"model": Signature(inputs=inputs, outputs=(), max_length={})}
    return dataclasses.replace(manifest, kind="module", signature=signature)


def test_a_module_is_timed_on_its_calibration_data(toy: Manifest, tmp_path: Path) -> None:
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("rows", "tokens"), below=30)
    rows = [[4 + length] * length for length in range(1, 20)]
    (tmp_path / "ids.jsonl").write_text("".join(f'{{"input_ids": {row}}}\n' for row in rows))
    manifest = module(toy, ids)
    calibration = read_calibration(tmp_path / "ids.jsonl", manifest)
    kept = sorted(len(feeds["input_ids"][0]) for feeds in calibration.batches("model", 1))
    workloads = bundle_workloads(manifest, calibration)
    assert [work.name for work in workloads] == [f"model 1×{kept[len(kept) // 2]}", f"model 1×{kept[-1]}"]
    for work in workloads:
        (row,) = work.inputs["input_ids"].tolist()
        assert row in rows
        assert work.name == f"model 1×{len(row)}"


@pytest.mark.parametrize(
    ("shape", "name"), [(("batch", 3, 8), "model 1"), ((2, "time"), "model 32"), ((2, 3), "model")], ids=str
)
def test_a_module_of_arrays(toy: Manifest, shape: tuple[int | str, ...], name: str) -> None:
    """Built-in samples of arrays are all of one size, so that there is one work."""
    (work,) = bundle_workloads(module(toy, TensorSpec(name="x", dtype="float32", shape=shape)))
    assert work.name == name
    assert work.inputs["x"].dtype == np.float32
    assert work.inputs["x"].ndim == len(shape)


def test_every_engine_on_every_work(toy: Manifest) -> None:
    workloads = bundle_workloads(toy)
    file = toy.folder / toy.graphs["fp32"]["model"]
    lines = time_engines({"b": onnx_job({"model": file}), "a": onnx_job({"model": file})}, workloads * 2, rounds=1)
    assert [line.work for line in lines] == ["model 1×7"] * 2
    for line in lines:
        assert list(line.milliseconds) == ["b", "a"]
        assert all(0 < milliseconds < 1000 for milliseconds in line.milliseconds.values())


def test_the_median_of_the_fastest_runs_counts(monkeypatch: pytest.MonkeyPatch, toy: Manifest) -> None:
    handed: list[Any] = []

    def take_turns(engines: Any, workloads: Any, **options: Any) -> Turns:
        handed.append((list(engines), workloads, options["rounds"]))
        seconds = {"x": [[9.0, 1.0], [10.0, 11.0], [3.0]], "y": [[30.0], [8.0, 8.5], [80.0, 90.0]]}
        return Turns([{name: [{"run": turn} for turn in seconds[name]] for name in engines}], {}, {})

    monkeypatch.setattr(graphs, "take_turns", take_turns)
    engines = {name: Job(worker=name, options={}) for name in "xy"}
    (found,) = time_engines(engines, bundle_workloads(toy), rounds=3)
    assert found == Latency(work="model 1×7", rounds={"x": [1e3, 10e3, 3e3], "y": [30e3, 8e3, 80e3]})
    assert found.milliseconds == {"x": 3e3, "y": 30e3}
    ((names, (work,), rounds),) = handed
    assert (names, work["role"], rounds) == (["x", "y"], "model", 3)


def test_an_engine_that_cannot_run(toy: Manifest, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(VerificationError, match=r"the engine fp32 broke down while it was timed: (.|\n)*broken\.onnx"):
        time_engines({"fp32": onnx_job({"model": tmp_path / "broken.onnx"})}, bundle_workloads(toy))
