from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tfm.errors import BundleError, InputError
from tfm.runtime import Session
from tfm.runtime.manifest import read_manifest


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
