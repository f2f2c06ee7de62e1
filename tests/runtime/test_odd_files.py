"""Bundles whose files are no files, or say what no bundle says: typed errors, at once, in little memory."""

import io
import json
import os
import zipfile

import numpy as np
import onnx
import pytest

from tfm.errors import BundleError
from tfm.runtime import check_golden, load

fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")


@fifos
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "onnx/model.onnx", "onnx/model_int8.onnx"])
def test_a_fifo_is_not_waited_for(make_bundle, name):
    bundle = make_bundle("encoder")
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=r"no plain file"):
        load(bundle, provider="cpu")


@fifos
def test_a_fifo_that_the_manifest_says_is_empty(make_bundle, edit_manifest):
    """Its size is what the manifest says."""
    bundle = make_bundle("encoder")
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    edit_manifest(bundle, lambda manifest: manifest["files"]["tokenizer.json"].update(size=0))
    with pytest.raises(BundleError, match=r"tokenizer.json is a folder, or no plain file"):
        load(bundle, provider="cpu")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no /dev/zero")
def test_a_device(make_bundle):
    bundle = make_bundle("encoder")
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"manifest.json cannot be read: it is no plain file"):
        load(bundle, provider="cpu")


def test_a_folder_in_place_of_a_file(make_bundle):
    bundle = make_bundle("encoder")
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match=r"tokenizer.json is a folder, or no plain file"):
        load(bundle, provider="cpu")


def test_a_manifest_of_a_hundred_mb(make_bundle):
    bundle = make_bundle("encoder")
    with open(bundle / "manifest.json", "r+b") as stream:
        stream.truncate(100 << 20)
    with pytest.raises(BundleError, match=r"it has 104857600 bytes, more than 67108864"):
        load(bundle, provider="cpu")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_values_deep_in_each_other(make_bundle, text):
    bundle = make_bundle("encoder")
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest.json cannot be read as JSON"):
        load(bundle, provider="cpu")


def test_a_value_too_deep_to_be_shown(make_bundle, edit_manifest):
    """Reading goes deeper than writing."""
    bundle = make_bundle("encoder")
    path = bundle / "manifest.json"
    deep = "[" * 900 + "]" * 900
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "HERE"}).replace('"HERE"', deep))
    with pytest.raises(BundleError, match=r"kind must be one of|cannot be read as JSON"):
        load(bundle, provider="cpu")


@pytest.mark.parametrize(
    ("axis", "size"),
    [(axis, size) for axis in (0, 1, 2, 3) for size in (3, 1 << 40, 1 << 63, 10**30, "gelu")],
)
def test_a_size_that_the_graph_does_not_have(make_bundle, edit_manifest, size, axis):
    """Of a cache, (batch, 1, length, 1)."""
    bundle = make_bundle("counter")

    def change(manifest):
        manifest["signature"]["model"]["inputs"][3]["shape"][axis] = size

    edit_manifest(bundle, change)
    with pytest.raises(
        BundleError, match=r"past_key_values.0.key|inputs\[3\].shape must be of sizes, batch and past_sequence"
    ):
        load(bundle, provider="cpu", threads=1)


def test_a_vocabulary_of_no_size(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["signature"]["model"]["outputs"][0]["shape"].__setitem__(-1, "logits_length"))
    with pytest.raises(BundleError, match=r"outputs\[0\].shape must be of a fixed size at its end"):
        load(bundle, provider="cpu", threads=1)


def test_another_rank(make_bundle, edit_manifest):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m["signature"]["model"]["outputs"][0]["shape"].append(1))
    with pytest.raises(BundleError, match=r"last_hidden_state has shape \(batch, sequence, 4\), but the manifest says"):
        load(bundle, provider="cpu", threads=1)


def test_least_inputs_that_no_memory_holds(make_bundle, remake_digests, edit_manifest):
    """Where the graph itself says no size."""
    bundle = make_bundle("tower")
    path = bundle / "onnx/model.onnx"
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    remake_digests(bundle)
    edit_manifest(bundle, lambda m: m["signature"]["model"]["inputs"][0].update(shape=[1 << 40, 128]))
    with pytest.raises(BundleError, match=r"the least x would have 562949953421312 bytes"):
        load(bundle, provider="cpu", threads=1)


def bomb(member: str, size: int) -> bytes:
    """An .npz of a few KB that unpacks to `size` zeros."""
    content, array = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as stream:
        stream.write(array.getvalue())
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return content.getvalue()


def test_goldens_that_unpack_to_more_than_memory_holds(make_golden, remake_digests, monkeypatch):
    monkeypatch.setattr("tfm.bundle.golden_files._MOST", 8 << 20)
    bundle = make_golden()
    (bundle / "golden.npz").write_bytes(bomb("model/0/inputs/input_ids.npy", 16 << 20))
    remake_digests(bundle)
    with pytest.raises(BundleError, match=r"golden.npz cannot be read: its arrays have \d+ bytes, more than"):
        check_golden(bundle)


def test_a_file_of_a_bundle(make_bundle):
    bundle = make_bundle("encoder")
    why = r"model.onnx is a file of the bundle .*encoder, which is what load\(\) takes, with precision= to choose"
    with pytest.raises(BundleError, match=why):
        load(bundle / "onnx/model.onnx")
    (bundle.parent / "other.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"other.onnx cannot be read as a zip of a bundle"):
        load(bundle.parent / "other.onnx")


def test_a_name_of_a_size_that_is_no_text(make_bundle, remake_digests):
    bundle = make_bundle("encoder")
    path = bundle / "onnx/model_int8.onnx"
    content = path.read_bytes()
    assert content.count(b"batch") >= 1
    path.write_bytes(content.replace(b"batch", b"\xff\xfe\xfdch"))
    remake_digests(bundle)
    with pytest.raises(BundleError, match=r"has names that are no text|is no ONNX file|could not load"):
        load(bundle, provider="cpu", threads=1)
