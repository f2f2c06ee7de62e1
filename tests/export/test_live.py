"""A bundle against live eager PyTorch: `tfm parity --ckpt`, `assert_parity`, and the smallest part that differs."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import tfm.export.bundle as bundle_module
from tfm.errors import BundleError, ExportError, ProviderError, TfmError, VerificationError
from tfm.export import export_checkpoint, graphs_of
from tfm.export.passes import OP_KEY
from tfm.export.testing import assert_parity
from tfm.export.verify.against_checkpoint import compare_with_checkpoint
from tfm.export.verify.bisect import SCRIPT, bisect
from tfm.export.verify.samples import all_padding, cases, every_id
from tfm.model import load_checkpoint, save_checkpoint
from tfm.ops import ATTENTION

GELU = "activation encoder.layers.0.feed_forward.activation"
OPTIONS = {"activation": "gelu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def made(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt and the bundle model.tfm made of it."""
    folder = tmp_path_factory.mktemp("live")
    save_checkpoint(make_model(**OPTIONS), folder / "model.pt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle_module, "measure_latency", lambda *_: [])
        assert export_checkpoint(folder / "model.pt", folder / "model.tfm").passed
    return folder


@pytest.fixture
def broken(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of the bundle with one graph edited, and the manifest's digest made to fit."""

    def edit(change: Callable[[ir.Model], None], name: str = "onnx/encoder_model.onnx") -> Path:
        copy = tmp_path / "model.tfm"
        shutil.copytree(made / "model.tfm", copy)
        model = ir.load(copy / name)
        change(model)
        ir.save(model, copy / name)
        manifest = json.loads((copy / "manifest.json").read_text())
        content = (copy / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        return copy

    return edit


def gelu_by_tanh(model: ir.Model) -> None:
    (node,) = (node for node in model.graph if node.metadata_props.get(OP_KEY) == GELU)
    node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def swap_keys_and_values(model: ir.Model) -> None:
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    key, value = node.inputs[1:3]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)


def nudge_one_weight(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.metadata_props.get(OP_KEY, "").endswith("feed_forward.linear1"))
    array = node.inputs[1].const_value.numpy().copy()
    array[3, 5] = np.nextafter(array[3, 5], np.float32(np.inf))
    node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)


# ------------------------------------------------ what is compared


def test_a_good_bundle_is_the_same(made: Path) -> None:
    report = compare_with_checkpoint(made / "model.tfm", made / "model.pt", cases=3, seed=7)
    assert report.passed
    assert report.faults() == []
    assert [(graph.precision, graph.role) for graph in report.graphs] == [
        (precision, role) for precision in ("fp32", "int8") for role in ("encoder", "decoder", "merged")
    ]
    for graph in report.graphs:
        every = [output for output in graph.outputs if "every id" in output.level]
        assert {output.name for output in every} == {output.name for output in graph.outputs}
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


@pytest.mark.parametrize("change", [gelu_by_tanh, swap_keys_and_values, nudge_one_weight])
def test_a_broken_bundle_is_named(made: Path, broken: Any, change: Callable[[ir.Model], None]) -> None:
    name = {gelu_by_tanh: GELU, swap_keys_and_values: "attention encoder.layers.0.self_attn: fed a wrong"}.get(
        change, "linear encoder.layers.0.feed_forward.linear1: its weights are not eager's: 1 of 384 numbers differ"
    )
    report = compare_with_checkpoint(broken(change), made / "model.pt", cases=1, precisions=["fp32"])
    assert not report.passed
    assert report.faults()[0].startswith(f"fp32 encoder: {name}")
    assert "called at tfm/model/" in report.faults()[0]


def test_one_wrong_row_of_an_embedding_is_found(made: Path, broken: Any) -> None:
    """The id is one that the random cases may never draw: every id is compared, and so is every weight."""

    def change(model: ir.Model) -> None:
        table = next(v for v in model.graph.initializers.values() if "embedding" in v.name and v.shape[0] == 19)
        array = table.const_value.numpy().copy()
        array[17] += 1.0
        table.const_value = ir.tensor(array, name=table.name)

    report = compare_with_checkpoint(broken(change), made / "model.pt", cases=1, precisions=["fp32"])
    assert report.faults()[0].startswith("fp32 encoder: embedding encoder.embedding")
    wrong = {output.name for output in report.graphs[0].outputs if output.fault and "every id" in output.level}
    assert "last_hidden_state" in wrong


def test_inputs(make_model: Any) -> None:
    for graph in graphs_of(make_model()):
        names = [value.name for value in graph.inputs]
        ids = [case[0] for case in every_id(graph, length=8)]
        assert torch.cat([x.flatten() for x in ids]).unique().tolist() == list(range(19))
        padding = all_padding(graph)
        mask = padding[names.index("attention_mask" if graph.role == "encoder" else "encoder_attention_mask")]
        assert mask[1].tolist() == [0] * mask.size(1)
        assert [len(cases(graph, count=count)) for count in (1, 5, 9)] == [1, 5, 9]
        one, same, other = ([x for case in cases(graph, seed, 9) for x in case] for seed in (3, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_another_model_is_refused(made: Path, make_model: Any, tmp_path: Path) -> None:
    save_checkpoint(make_model(kind="encoder"), tmp_path / "encoder.pt")
    with pytest.raises(BundleError, match="the checkpoint makes model: they are not of the same model"):
        compare_with_checkpoint(made / "model.tfm", tmp_path / "encoder.pt")
    save_checkpoint(make_model(**OPTIONS, d_model=32), tmp_path / "wide.pt")
    with pytest.raises(BundleError, match=r"gives 'last_hidden_state' of shape .*16.*32.*not of the same model"):
        compare_with_checkpoint(made / "model.tfm", tmp_path / "wide.pt")


def test_other_weights_are_not_the_same(made: Path, make_model: Any, tmp_path: Path) -> None:
    save_checkpoint(make_model(seed=1, **OPTIONS), tmp_path / "other.pt")
    report = compare_with_checkpoint(made / "model.tfm", tmp_path / "other.pt", cases=1, precisions=["fp32"])
    assert "its weights are not eager's" in report.faults()[0]


def test_what_is_not_there_is_said(made: Path) -> None:
    with pytest.raises(BundleError, match="the bundle has no 'int4'; it has fp32, int8"):
        compare_with_checkpoint(made / "model.tfm", made / "model.pt", precisions=["int4"])
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(ProviderError, match="this onnxruntime has no CUDAExecutionProvider; it has "):
            compare_with_checkpoint(made / "model.tfm", made / "model.pt", provider="cuda")
    (made / "empty").mkdir()
    with pytest.raises(TfmError, match=r"manifest\.json"):
        compare_with_checkpoint(made / "empty", made / "model.pt")


def test_a_changed_file_is_refused(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.tfm"
    shutil.copytree(made / "model.tfm", copy)
    with open(copy / "onnx" / "encoder_model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"encoder_model\.onnx"):
        compare_with_checkpoint(copy, made / "model.pt")


# ------------------------------------------------ the smallest part that differs


@pytest.mark.parametrize(
    ("change", "what", "nodes"),
    [
        (gelu_by_tanh, f"{GELU} by itself", ("Gelu",)),
        (swap_keys_and_values, "what makes the key of attention encoder.layers.0.self_attn", ("Split",)),
        (nudge_one_weight, "linear encoder.layers.0.feed_forward.linear1 by itself", ("MatMul", "Add")),
    ],
)
def test_bisecting(made: Path, broken: Any, tmp_path: Path, change: Any, what: str, nodes: tuple[str, ...]) -> None:
    folder = tmp_path / "smallest"
    report = compare_with_checkpoint(
        broken(change), made / "model.pt", cases=2, precisions=["fp32"], bisect_into=folder
    )
    found = report.reproduction
    assert found is not None
    assert (found.what, found.nodes) == (what, nodes)
    assert all(shape[0] == 1 for shape in found.shapes.values())  # one row is enough
    arrays = np.load(folder / "differs.npz")
    session = ort.InferenceSession(folder / "differs.onnx", providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(arrays.files) - {"expected"}
    done = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(found.max_abs)
    if change is not nudge_one_weight:  # which may well round to the same result
        assert found.max_abs > 1e-5


def test_what_nothing_smaller_shows_is_the_whole_graph(made: Path, tmp_path: Path) -> None:
    source, _ = graphs_of(load_checkpoint(made / "model.pt"))
    model = ir.load(made / "model.tfm" / "onnx" / "encoder_model.onnx")
    output = next(value for value in model.graph.outputs if value.name == "last_hidden_state")
    node = ir.node("Mul", [output, output])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "wrong", output.type, output.shape
    model.graph.append(node)
    model.graph.outputs[0] = node.outputs[0]
    output.name, node.outputs[0].name = "before", "last_hidden_state"
    ir.save(model, tmp_path / "encoder_model.onnx")
    found = bisect(source, tmp_path / "encoder_model.onnx", cases(source), tmp_path / "smallest")
    assert found.what == "output last_hidden_state of the whole encoder graph"
    assert set(found.shapes.values()) == {(1, 1)}  # one row of one token
    assert found.max_abs > 0.01


def test_a_float16_graph_is_cut_in_the_form_that_was_compared(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, rounded where it was float16: eager's numbers fit, and the cut runs by itself."""

    def relu(model: ir.Model) -> None:
        (node,) = (node for node in model.graph if node.metadata_props.get(OP_KEY) == GELU)
        node.op_type = "Relu"
        node.attributes.clear()

    def half(model: ir.Model) -> None:
        to_fp16(model)
        relu(model)

    to_fp16 = bundle_module.to_fp16
    monkeypatch.setattr(bundle_module, "measure_latency", lambda *_: [])
    save_checkpoint(make_model(kind="encoder", activation="gelu"), tmp_path / "model.pt")
    good, bad = tmp_path / "good.tfm", tmp_path / "bad.tfm"
    assert export_checkpoint(tmp_path / "model.pt", good, precisions=["fp16"]).passed
    assert compare_with_checkpoint(good, tmp_path / "model.pt", cases=2).passed
    monkeypatch.setattr(bundle_module, "to_fp16", half)
    monkeypatch.setattr(bundle_module.ExportReport, "shipped", True)
    export_checkpoint(tmp_path / "model.pt", bad, precisions=["fp16"])
    report = compare_with_checkpoint(bad, tmp_path / "model.pt", cases=2, bisect_into=tmp_path / "smallest")
    assert report.faults()[0].startswith(f"fp16 model: {GELU}: off by itself")
    assert report.reproduction is not None
    assert (report.reproduction.what, report.reproduction.nodes[0]) == (f"{GELU} by itself", "Relu")
    assert 0.1 < report.reproduction.max_abs < 1  # relu is up to 0.17 from gelu
    done = subprocess.run([sys.executable, tmp_path / "smallest" / SCRIPT], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) == report.reproduction.max_abs


def test_there_must_be_something_to_bisect(made: Path, tmp_path: Path) -> None:
    source, _ = graphs_of(load_checkpoint(made / "model.pt"))
    with pytest.raises(VerificationError, match="no input of 2 fails by itself"):
        bisect(source, made / "model.tfm/onnx/encoder_model.onnx", cases(source, count=2), tmp_path / "smallest")
    assert not (tmp_path / "smallest").exists()


# ------------------------------------------------ assert_parity


def test_assert_parity(made: Path) -> None:
    assert assert_parity(made / "model.pt", made / "model.tfm", cases=1).passed
    assert assert_parity(load_checkpoint(made / "model.pt"), made / "model.tfm", cases=1, precisions=["fp32"]).passed


def test_assert_parity_fails_with_the_op(made: Path, broken: Any) -> None:
    with pytest.raises(
        AssertionError, match=f"is not what eager PyTorch computes: fp32 encoder: {GELU}: off by itself"
    ):
        assert_parity(made / "model.pt", broken(gelu_by_tanh), cases=1)
    with pytest.raises(AssertionError, match=r"off by .*, more than 0\.0e"):
        assert_parity(made / "model.pt", made / "model.tfm", cases=1, atol=0.0, rtol=0.0)


def test_assert_parity_of_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    monkeypatch.setattr(bundle_module, "measure_latency", lambda *_: [])
    report = export_checkpoint(
        None, tmp_path / "m.tfm", model="tests.support.generic_models:attends", precisions=["fp32"]
    )
    assert report.passed
    from tests.support import generic_models

    module = generic_models.attends()[0]
    assert assert_parity(module, tmp_path / "m.tfm", cases=2).passed
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)
    with pytest.raises(AssertionError, match="its weights are not eager's"):
        assert_parity(module, tmp_path / "m.tfm", cases=2)
    with pytest.raises(ExportError, match="holds a native encoder-decoder, whose ops have other names in a Linear"):
        assert_parity(nn.Linear(2, 2), made / "model.tfm")


# ------------------------------------------------ attention maps


def test_attention_maps_are_what_softmax_gives(made: Path) -> None:
    from tfm.export.attention_maps import attention_maps

    folder = made / "model.tfm"
    for graph in graphs_of(load_checkpoint(made / "model.pt")):
        file = json.loads((folder / "manifest.json").read_text())["graphs"]["fp32"][graph.role]
        maps = attention_maps(graph, folder / file, folder)
        assert [m.op.split(" ")[0] for m in maps] == [ATTENTION] * (1 if graph.role == "encoder" else 2)
        for m in maps:
            np.testing.assert_allclose(m.eager.sum(-1), 1.0, atol=1e-6)  # every row is a distribution
            assert m.max_abs < 1e-6
            assert m.eager.std() > 1e-3  # and not the same everywhere
