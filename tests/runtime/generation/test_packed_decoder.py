"""Packs for other readers, whose decoder is in their form: they generate what transformers does, and are proved."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import tfm.quantize.existing as existing
from tfm.bundle import MERGED_ROLE, pack_bundle, read_manifest
from tfm.errors import BundleError, QuantizeError
from tfm.export.golden import write_golden
from tfm.export.graphs import graphs_of
from tfm.export.manifest import write_manifest
from tfm.export.merged_graph import MergedGraph
from tfm.model import load_checkpoint
from tfm.quantize import quantize_bundle, save_in_one_file, write_merged
from tfm.runtime import check_golden, load

SOURCES = [[1, 5, 9, 17, 3, 30], [7, 11], [4, 21, 8, 35], [38]]
"""Ragged."""

KINDS = ("t5", "marian")


@pytest.fixture(scope="module", params=KINDS)
def whole(request, generation_bundle, tmp_path_factory) -> tuple[Path, Any]:
    """A bundle with both forms of its decoder, and transformers' model."""
    made, model = generation_bundle(request.param)
    folder = tmp_path_factory.mktemp("whole") / "x.tfm"
    shutil.copytree(made, folder)
    transformer = load_checkpoint(made.parent / "checkpoint").float()
    files = {role: folder / path for role, path in read_manifest(folder).graphs["fp32"].items()}
    merged, graphs = MergedGraph(transformer), graphs_of(transformer)
    path = write_merged(files["encoder"], files["decoder"])
    write_golden(folder, [*graphs, merged], {"fp32": {**files, MERGED_ROLE: path}})
    of = merged, {"fp32": path}
    write_manifest(folder, transformer.config, request.param, graphs, {"fp32": files}, 23, [], of)
    return folder, model


@pytest.fixture(scope="module")
def packed(whole, tmp_path_factory) -> tuple[Path, Any]:
    """What is packed of it for transformers.js, and transformers' model."""
    folder = tmp_path_factory.mktemp("packed") / "x.tfm"
    pack_bundle(whole[0], folder, precisions=["fp32"], target="node", rewrite=save_in_one_file)
    return folder, whole[1]


def expected(model, **options) -> list[list[int]]:
    """What transformers generates of a batch padded on the right, without what starts and ends a target."""
    longest = max(map(len, SOURCES))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in SOURCES])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in SOURCES])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **options)[:, 1:].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in found]


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.5}])
def test_ragged_sources_become_what_transformers_makes_of_them(whole, packed, options) -> None:
    wanted = expected(whole[1], **options)
    assert len({token for row in wanted for token in row}) > 3
    for bundle, _ in (whole, packed):
        with load(bundle, provider="cpu") as ours:
            assert ours.generate(SOURCES, 12, do_sample=False, **options) == wanted


def test_both_forms_give_the_same_logits(whole, packed) -> None:
    ids = np.array([[5, 9, 17], [7, 11, 0]])
    feeds = {"input_ids": ids, "decoder_input_ids": np.array([[0, 4, 9], [0, 8, 3]]), "attention_mask": (ids > 0) * 1}
    found = [load(bundle, provider="cpu").run(**feeds) for bundle in (whole[0], packed[0])]
    np.testing.assert_allclose(found[0]["logits"], found[1]["logits"], atol=1e-5)
    np.testing.assert_array_equal(found[0]["last_hidden_state"], found[1]["last_hidden_state"])


def test_what_is_packed_for_whom(whole, packed, tmp_path) -> None:
    pack_bundle(whole[0], tmp_path / "app.tfm", precisions=["fp32"])
    ours, theirs = read_manifest(tmp_path / "app.tfm"), read_manifest(packed[0])
    assert dict(ours.graphs["fp32"]) == {"encoder": "onnx/encoder_model.onnx", "decoder": "onnx/decoder.onnx"}
    assert dict(theirs.graphs["fp32"]) == {
        "encoder": "onnx/encoder_model.onnx",
        "decoder": "onnx/decoder_model_merged.onnx",
    }
    for manifest in (ours, theirs):
        assert manifest.merged is None
        assert {path for path in manifest.files if path.endswith(".onnx")} == {*manifest.graphs["fp32"].values()}
    assert any(spec.name == "use_cache_branch" for spec in theirs.signature["decoder"].inputs)
    assert ours.signature == read_manifest(whole[0]).signature


def test_each_is_proved_by_goldens_of_its_own(whole, packed, tmp_path) -> None:
    pack_bundle(whole[0], tmp_path / "app.tfm", precisions=["fp32"])
    roles = {}
    for bundle in (whole[0], packed[0], tmp_path / "app.tfm"):
        report = check_golden(bundle, provider="cpu")
        assert report.passed, report.faults()
        roles[bundle] = [graph.role for graph in report.graphs]
    assert list(roles.values()) == [["encoder", "decoder", "merged"], ["encoder", "decoder"], ["encoder", "decoder"]]


def test_goldens_show_what_is_wrong_with_it(whole, tmp_path, toys) -> None:
    """Keys and values of the source change places where they are made; the decoder of our own is as it was."""
    folder = tmp_path / "x.tfm"
    shutil.copytree(whole[0], folder)
    path = folder / "onnx/decoder_model_merged.onnx"
    model = ir.load(path)
    choice = next(node for node in model.graph if node.op_type == "If")
    branch = choice.attributes["else_branch"].as_graph()
    branch.outputs[0], branch.outputs[1] = branch.outputs[1], branch.outputs[0]
    ir.save(model, path)
    toys.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    report = check_golden(folder, provider="cpu")
    assert [graph.role for graph in report.graphs if not graph.passed] == ["merged"]
    (fault,) = report.faults()
    assert fault.startswith("fp32 merged: logits is off by")


def test_quantizing_makes_one_of_the_new_graphs(whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(existing, "time_engines", lambda *_: [])
    monkeypatch.setattr(existing, "try_engines", lambda *_: None)
    made = quantize_bundle(whole[0], tmp_path / "x.tfm", search="none", force=True)
    assert made.shipped
    manifest = read_manifest(tmp_path / "x.tfm")
    assert manifest.merged is not None
    assert manifest.merged.graphs["int8"] == "onnx/decoder_model_merged_int8.onnx"
    report = check_golden(tmp_path / "x.tfm", provider="cpu")
    assert report.passed, report.faults()
    assert [(graph.precision, graph.role) for graph in report.graphs] == [
        (precision, role) for precision in ("fp32", "int8") for role in ("encoder", "decoder", "merged")
    ]
    again = quantize_bundle(tmp_path / "x.tfm", search="none", force=True)  # in its place
    assert again.shipped
    assert check_golden(tmp_path / "x.tfm", provider="cpu").passed


# ------------------------------------------------ what is refused


def test_a_pack_is_not_quantized(packed, tmp_path) -> None:
    with pytest.raises(
        QuantizeError, match="a pack whose decoder is in the form of other readers; quantize the bundle that"
    ):
        quantize_bundle(packed[0], tmp_path / "x.tfm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda merged: merged["graphs"].update(int8="onnx/decoder.onnx"), "of every precision one of the paths in"),
        (lambda merged: merged["graphs"].update(fp32="onnx/none.onnx"), "of every precision one of the paths in files"),
        (lambda merged: merged["graphs"].clear(), "of every precision one of the paths in files"),
        (lambda merged: merged.pop("signature"), "signature"),
    ],
)
def test_a_manifest_that_is_malformed(whole, tmp_path, change, message) -> None:
    folder = tmp_path / "x.tfm"
    shutil.copytree(whole[0], folder)
    values = json.loads((folder / "manifest.json").read_text())
    change(values["merged"])
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=message):
        read_manifest(folder)


def test_a_bundle_without_it_says_so_when_it_is_packed_for_the_web(whole, tmp_path, toys) -> None:
    folder = tmp_path / "x.tfm"
    shutil.copytree(whole[0], folder)
    for name in ("golden.npz", "golden.json"):
        (folder / name).unlink()
    values = json.loads((folder / "manifest.json").read_text())
    del values["merged"]
    toys.write_manifest(folder, values)
    made = pack_bundle(folder, tmp_path / "web.tfm", target="web", rewrite=save_in_one_file)
    assert any("another form of the decoder, which this bundle has none of; export it again" in n for n in made.notes)
