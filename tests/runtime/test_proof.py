"""Nothing that a manifest does not prove ever runs, and nothing that was proved changes under a model that is open."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfm.errors import BundleError
from tfm.runtime import check_golden, load

WEIGHTS = "weights.bin"


def move_weights(bundle: Path, location: str = WEIGHTS, scale: float = 1.0) -> Path:
    """Put the weights of a bundle's fp32 graph, times `scale`, into a file of that name beside it."""
    graph = bundle / "onnx/model.onnx"
    model = onnx.load(graph)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(scale), "table"))
    file = graph.parent / location
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(file.stat().st_size))):
        table.external_data.add(key=key, value=value)
    graph.write_bytes(model.SerializeToString())
    return bundle


@pytest.fixture
def apart(make_bundle, remake_digests):
    """The toy encoder, its fp32 weights in a file of their own."""
    bundle = move_weights(make_bundle("encoder"))
    remake_digests(bundle)
    return bundle


def embedding(bundle, **options):
    return load(bundle, provider="cpu", precision="fp32", threads=1, **options).embed("a b").tolist()


def reverse(file: Path, array: np.ndarray) -> None:
    """Turn a file's weights around, which keeps its size."""
    content, old = file.read_bytes(), array.tobytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, array.ravel()[::-1].tobytes()))


def test_weights_that_were_refused_never_run(make_bundle, table, tmp_path):
    """Not even while the error of their loading is handled, which holds on to all that was opened."""
    good, copy = make_bundle("encoder"), tmp_path / "copy"
    shutil.copytree(good, copy)
    expected = embedding(good)
    reverse(copy / "onnx/model.onnx", table)
    try:
        embedding(copy)
    except BundleError as error:
        assert "onnx/model.onnx was altered: its SHA-256 is not the manifest's" in str(error)  # noqa: PT017
        shutil.rmtree(copy)
        shutil.copytree(good, copy)
        assert embedding(copy) == expected
    else:
        pytest.fail("altered weights were opened")


def test_weights_that_are_being_refused_in_another_thread_never_run(make_bundle, table, tmp_path):
    good, copy = make_bundle("encoder"), tmp_path / "copy"
    shutil.copytree(good, copy)
    expected = embedding(good)
    reverse(copy / "onnx/model.onnx", table)
    ended, refused = threading.Event(), []

    def keep_trying():
        while not ended.is_set():
            with pytest.raises(BundleError, match="was altered"):
                embedding(copy)
            refused.append(True)

    thread = threading.Thread(target=keep_trying)
    thread.start()
    try:
        found = [embedding(good) for _ in range(100)]
    finally:
        ended.set()
        thread.join()
    assert refused
    assert found == [expected] * 100


def test_weights_of_any_name_are_proved(apart, table):
    assert embedding(apart) == embedding(apart, mapped=False)
    reverse(apart / "onnx" / WEIGHTS, table)
    for mapped in (True, False):
        with pytest.raises(BundleError, match=r"onnx/weights.bin was altered: its SHA-256 is not the manifest's"):
            embedding(apart, mapped=mapped)


def test_weights_that_the_manifest_does_not_list(apart, edit_manifest):
    edit_manifest(apart, lambda manifest: manifest["files"].pop(f"onnx/{WEIGHTS}"))
    with pytest.raises(BundleError, match=r"model.onnx has weights in 'weights.bin', which the manifest does not list"):
        load(apart, provider="cpu", precision="fp32")


@pytest.mark.parametrize("location", ["../../weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_elsewhere(make_bundle, remake_digests, location):
    """Outside the bundle; or at an address, as which onnxruntime reads one name."""
    bundle = move_weights(make_bundle("encoder"), location)
    remake_digests(bundle)
    with pytest.raises(BundleError, match=r"has weights in '.*', which the manifest does not list"):
        load(bundle, provider="cpu", precision="fp32")


def test_bundles_of_one_graph_and_other_weights(make_bundle, remake_digests, tmp_path):
    first = move_weights(make_bundle("encoder"))
    remake_digests(first)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    halves = np.fromfile(second / "onnx" / WEIGHTS, np.float32) / 2
    halves.tofile(second / "onnx" / WEIGHTS)
    remake_digests(second)
    with load(first, provider="cpu", precision="fp32", threads=1) as model:
        whole, half = model.embed("a b"), np.array(embedding(second))
    np.testing.assert_allclose(half, whole / 2)


def test_weights_that_were_read_do_not_change(apart, table):
    model = load(apart, provider="cpu", precision="fp32", threads=1, mapped=False)
    expected = model.embed("a b").tolist()
    (-table).tofile(apart / "onnx" / WEIGHTS)
    assert model.embed("a b").tolist() == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let others write to what is mapped")
def test_weights_that_were_written_to_are_not_shared(apart, table, tmp_path):
    """Who writes to a mapped file changes the model that is open; not one that is opened of a good copy later."""
    good = tmp_path / "good"
    shutil.copytree(apart, good)
    expected = embedding(good)
    model = load(apart, provider="cpu", precision="fp32", threads=1)
    with open(apart / "onnx" / WEIGHTS, "r+b") as stream:
        stream.write((-table).tobytes())
    assert embedding(good) == expected
    with pytest.raises(BundleError, match="was altered"):
        embedding(apart)
    model.close()


def test_weights_that_are_replaced_while_they_are_opened(apart, table, monkeypatch):
    """What was digested must be what was mapped."""
    from tfm.runtime.sessions import graph_files

    opened = graph_files.open_session

    def replace(*arguments, **named):
        file = apart / "onnx" / WEIGHTS
        file.rename(file.with_name("old"))
        (-table).tofile(file)
        return opened(*arguments, **named)

    monkeypatch.setattr(graph_files, "open_session", replace)
    with pytest.raises(BundleError, match=r"its weights were replaced while they were opened"):
        embedding(apart)


def test_goldens_of_a_graph_with_other_weights(make_golden, remake_digests, edit_manifest):
    bundle = move_weights(make_golden())
    remake_digests(bundle)
    assert check_golden(bundle, precision="fp32").passed
    edit_manifest(bundle, lambda manifest: manifest["files"].pop(f"onnx/{WEIGHTS}"))
    report = check_golden(bundle, precision="fp32")
    assert not report.passed
    assert "which the manifest does not list" in report.faults()[0]


# What load() leaves for later.


@pytest.fixture
def texts():
    return ["a b c"] * 40


def test_the_working_directory_changes(make_bundle, texts, monkeypatch, tmp_path):
    bundle = make_bundle("encoder")
    expected = load(bundle, provider="cpu", threads=1).embed(texts).tolist()
    monkeypatch.chdir(bundle.parent)
    model = load(bundle.name, provider="cpu", threads=2)
    monkeypatch.chdir(tmp_path.anchor)
    assert model.tokenize("a b") == [[1, 4, 5, 2]]
    assert model.embed(texts).tolist() == expected
    assert model.manifest.folder == bundle


@pytest.mark.parametrize("weights", ["within the graph", "beside it"])
def test_the_bundle_is_replaced(make_bundle, remake_digests, texts, weights):
    """Tokenizer, and a second session for one thread, are those of the bundle that was opened."""
    bundle = make_bundle("encoder")
    if weights == "beside it":
        move_weights(bundle)
        remake_digests(bundle)
    expected = load(bundle, provider="cpu", precision="fp32", threads=1).embed(texts, batch_tokens=1).tolist()
    model = load(bundle, provider="cpu", precision="fp32", threads=2)
    shutil.rmtree(bundle)
    assert model.embed(texts, batch_tokens=1).tolist() == expected
    assert "model on one thread" in model._sessions


def test_the_files_are_overwritten(make_bundle, texts):
    bundle = make_bundle("encoder")
    expected = load(bundle, provider="cpu", threads=1).embed(texts).tolist()
    model = load(bundle, provider="cpu", threads=2)
    (bundle / "onnx/model_int8.onnx").write_bytes(b"a new version")
    (bundle / "tokenizer.json").write_text("{}")
    assert model.embed(texts).tolist() == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let others write to what is mapped")
def test_weights_are_overwritten_before_they_are_opened_again(apart, table, texts):
    model = load(apart, provider="cpu", precision="fp32", threads=2)
    with open(apart / "onnx" / WEIGHTS, "r+b") as stream:
        stream.write((-table).tobytes())
    with pytest.raises(BundleError, match=r"weights.bin was altered"):
        model.embed(texts, batch_tokens=1)


def test_the_folder_of_a_zip_is_cleaned(make_bundle, texts, tmp_path):
    bundle = make_bundle("encoder")
    expected = load(bundle, provider="cpu", threads=1).embed(texts).tolist()
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle)
    model = load(archive, provider="cpu", threads=2)
    (model.manifest.folder / "tokenizer.json").unlink()  # what a cleaner has got to so far
    assert model.embed(texts).tolist() == expected
    again = load(archive, provider="cpu", threads=1)  # unpacked anew
    assert again.embed(texts).tolist() == expected


def test_labels_are_read_when_the_model_is_opened(make_bundle, remake_digests, tmp_path):
    """config.json says what makes scores of logits."""
    bundle = tmp_path / "labels"
    shutil.copytree(make_bundle("encoder"), bundle)
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("ReduceMax", ["states", "axis"], ["pooled"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["mask", "axis"], ["one"], keepdims=1),
        helper.make_node("Mul", ["pooled", "one"], ["logits"]),
    ]
    table = np.eye(12, 4, dtype=np.float32)
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    graph = helper.make_graph(nodes, "labels", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    (bundle / "onnx/model.onnx").write_bytes(model.SerializeToString())
    (bundle / "config.json").write_text('{"problem_type": "multi_label_classification"}')
    manifest = {
        "graphs": {"fp32": {"model": "onnx/model.onnx"}},
        "signature": {
            "model": {
                "inputs": [
                    {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
                    for name in ("input_ids", "attention_mask")
                ],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 4]}],
                "max_length": {},
            }
        },
    }
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    remake_digests(bundle)
    opened = load(bundle, provider="cpu", threads=1)
    (bundle / "config.json").write_text('{"problem_type": "regression"}')
    scores = opened.classify([[1, 2]], top_k=None)[0]
    assert sum(score["score"] for score in scores) > 1.5  # sigmoids, which do not add up to 1
