import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from tfm.bundle.manifest import read_manifest
from tfm.errors import BundleError, InputError
from tfm.runtime import Session, load
from tfm.runtime.sessions.binding import Binding


@pytest.fixture
def bundle(make_bundle):
    return make_bundle("encoder")


@pytest.fixture
def session(bundle):
    return Session(bundle / "onnx/model.onnx", read_manifest(bundle).signature["model"], "cpu", 1)


def feeds(ids):
    ids = np.asarray(ids)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def test_runs(session, table):
    result = session.run(**feeds([[4, 5]]))
    assert list(result) == ["last_hidden_state", "sentence_embedding"]
    np.testing.assert_array_equal(result["last_hidden_state"], table[[[4, 5]]])
    assert (session.provider, session.threads) == ("cpu", 1)


def test_chosen_outputs(session):
    assert list(session.run(outputs=["sentence_embedding"], **feeds([[4]]))) == ["sentence_embedding"]
    assert session.run(outputs=[], **feeds([[4]])) == {}
    with pytest.raises(
        InputError, match=r"there is no output 'embedding'; the nearest is 'sentence_embedding' \(known: l"
    ):
        session.run(outputs=["embedding"], **feeds([[4]]))


def test_inputs_are_checked(session):
    with pytest.raises(InputError, match=r"input_ids\[0, 1\] is -1; ids must be in \[0, 12\)"):
        session.run(**feeds([[1, -1]]))
    with pytest.raises(InputError, match=r"sequence is 9, but this model takes at most 8"):
        session.run(**feeds([[1] * 9]))


def test_strided_and_read_only_arrays_are_right(session, table):
    ids = np.arange(12).reshape(3, 4).T[::2]
    ids.flags.writeable = False
    np.testing.assert_array_equal(session.run(**feeds(ids))["last_hidden_state"], table[ids])


def test_another_graph_than_the_manifest_says(bundle):
    signature = read_manifest(bundle).signature["model"]
    path = bundle / "onnx/model.onnx"
    with pytest.raises(
        BundleError, match=r"model.onnx takes attention_mask tensor\(int64\), .*, but the manifest says "
    ):
        Session(path, replace(signature, inputs=signature.inputs[:2]), "cpu", 1)
    wrong = replace(signature.outputs[0], dtype="float64")
    with pytest.raises(
        BundleError, match=r"gives .*, but the manifest says last_hidden_state tensor\(double\), .*; export"
    ):
        Session(path, replace(signature, outputs=(wrong, signature.outputs[1])), "cpu", 1)


def test_many_threads_get_the_same(session):
    rows = [feeds(np.full((1, 1 + n % 8), n % 12)) for n in range(200)]
    alone = [session.run(**row)["sentence_embedding"] for row in rows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: session.run(**row)["sentence_embedding"], rows))
    np.testing.assert_array_equal(together, alone)


def test_arrays_in_a_mapping(session, bundle):
    arrays = feeds([[4, 5]])
    first, rest = {"input_ids": arrays.pop("input_ids")}, arrays
    for run in (session.run, load(bundle, provider="cpu", precision="fp32").run):
        expected = run(**first, **rest)
        for result in (run({**first, **rest}), run(first, **rest), run(MappingProxyType(first), **rest)):
            assert result.keys() == expected.keys()
            for name, array in result.items():
                np.testing.assert_array_equal(array, expected[name])


def test_inputs_with_the_names_of_parameters(make_bundle):
    model = load(make_bundle("clashing"), provider="cpu", threads=1)
    arrays = {spec.name: [2.0**n] for n, spec in enumerate(model.manifest.signature["model"].inputs)}
    assert model.run(arrays, timeout=60)["y"].tolist() == [127.0]
    assert asyncio.run(model.run_async(arrays))["y"].tolist() == [127.0]
    assert model._sessions["model"].run(arrays, outputs="y")["y"].tolist() == [127.0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (3, r"inputs are given by name, as run\(x=…\) or run\({'x': …}\), but what was given is an int"),
        ([[4]], r"inputs are given by name, .* is a list"),
        (np.array([[4]]), r"inputs are given by name, .* is an ndarray"),
        ({"attention_mask": [[1]]}, "the input 'attention_mask' is given twice, in the mapping and by its name"),
        ({}, "the input 'input_ids' is missing"),
        ({3: [[4]]}, "there is no input 3; the nearest is"),
        ({("a",): [[4]]}, r"there is no input \('a',\); the nearest is"),
        ({"x" * 10**6: [[4]]}, r"there is no input 'x{10,60}\.\.\.x{10,60}'; the nearest is"),
    ],
)
def test_wrong_mappings(session, arrays, message):
    with pytest.raises(InputError, match=message):
        session.run(arrays, attention_mask=[[1]], token_type_ids=[[0]])


def test_one_output(session):
    expected = session.run(feeds([[4]]))["sentence_embedding"]
    for outputs in ("sentence_embedding", ("sentence_embedding",), {"sentence_embedding": 0}):
        (name, array), *rest = session.run(feeds([[4]]), outputs=outputs).items()
        assert (name, rest) == ("sentence_embedding", [])
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (5, "outputs must be a list of names, but is an int"),
        (b"logits", "outputs must be a list of names, but is a bytes"),
        (iter(["logits"]), "outputs must be a list of names, but is a list_iterator"),
        ("logits", "there is no output 'logits'; the nearest is"),
        ([5], "there is no output 5; the nearest is"),
        ([["logits"]], r"there is no output \['logits'\]; the nearest is"),
        (["x" * 10**6], r"there is no output 'x{10,60}\.\.\.x{10,60}'; the nearest is"),
    ],
)
def test_wrong_outputs(session, outputs, message):
    with pytest.raises(InputError, match=message):
        session.run(feeds([[4]]), outputs=outputs)


def test_a_control_that_is_none(session):
    with pytest.raises(InputError, match="control must be a Control or None, but is an int"):
        session.run(feeds([[4]]), control=3)


def test_what_no_check_finds(make_bundle):
    """The graph's own failure is an InputError without onnxruntime's words, which are its cause."""
    model = load(make_bundle("fussy"), provider="cpu", threads=1)
    session, three = model._sessions["model"], np.ones(3, np.float32)
    for call in (
        lambda: model.run(x=three),
        Binding(session, {"x": three}, {"y": np.empty(2, np.float32)}).run,
    ):
        with pytest.raises(
            InputError, match=r"model\.onnx could not be run on these inputs, though .*; pass fewer"
        ) as e:
            call()
        assert "Reshape" not in str(e.value)
        assert "status code returned while running Reshape node" in str(e.value.__cause__)
        assert model.run(x=three[:2])["y"].tolist() == [1.0, 1.0]
