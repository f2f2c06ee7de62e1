"""A changed byte, a removed file, a foreign signature: refused by Python and JavaScript in one sentence."""

from pathlib import Path

import pytest

from tests.support.javascript import run_node
from tests.support.refusals import CASES, KEYS, Case, check_refusals, damaged, tasks_of_refusals
from tfm.errors import BundleError
from tfm.runtime import check_golden, load


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_refuses(case: Case, tmp_path: Path) -> None:
    damaged(case, tmp_path / "app")
    key = None if case.key is None else KEYS[case.key].encode()

    def open_all() -> None:
        # What `load` has no use for, such as goldens, is proved by the golden check.
        load(tmp_path / "app", precision=case.precision, provider="cpu", public_key=key).tokenize("a")
        check_golden(tmp_path / "app", provider="cpu")

    with pytest.raises(BundleError) as caught:
        open_all()
    assert str(caught.value) == case.sentence.format(place=tmp_path / "app")


def test_node_refuses_in_the_same_words(node: Path, tmp_path: Path) -> None:
    for case in CASES:
        damaged(case, tmp_path / case.name)
    check_refusals(run_node(node, {"tasks": tasks_of_refusals(str(tmp_path))}), str(tmp_path))


def test_what_is_whole_opens_by_its_own_key(node: Path, tmp_path: Path) -> None:
    whole = Case("whole", lambda folder: None, "", key="own")
    damaged(whole, tmp_path / "whole")
    tasks = [
        {"bundle": str(tmp_path / "whole"), "options": options, "calls": [["about"], ["embed", ["a b"]]]}
        for options in ({}, {"publicKey": KEYS["own"]})
    ]
    with load(tmp_path / "whole", public_key=KEYS["own"].encode()) as model:
        expected = model.embed(["a b"]).tolist()
    for one in run_node(node, {"tasks": tasks}):
        about, vectors = one["results"]
        assert about["precision"] == "int8"
        assert vectors == expected
