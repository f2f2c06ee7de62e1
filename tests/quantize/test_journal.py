"""What a search remembers of itself: all of it after any interruption, and nothing of another."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm.quantize.figures import is_drop, numbers
from tfm.quantize.journal import Journal

FIGURES: dict[str, Any] = {
    "noise model a": [0.0, 1e-17, 0.1 + 0.2, math.inf],
    "drop 0 1": {"value": 1 / 3, "flips": None, "least": 0.5},
    'time "ä" ×\n': [1.5e-5],
}


def recall_all(journal: Journal, found: list[str]) -> dict[str, Any]:
    """Every figure; those that had to be found are added to `found`."""

    def finder(key: str) -> Callable[[], Any]:
        def find() -> Any:
            found.append(key)
            return FIGURES[key]

        return find

    return {key: journal.recall(key, finder(key)) for key in FIGURES}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    assert recall_all(Journal(tmp_path / "j", "subject"), []) == FIGURES
    return tmp_path / "j"


def test_figures_are_found_once_and_are_the_same_again(written: Path) -> None:
    journal, found = Journal(written, "subject"), []
    assert journal.recalled == len(FIGURES)
    assert recall_all(journal, found) == recall_all(journal, found) == FIGURES
    assert found == []


def test_each_is_written_before_the_next_is_looked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "subject")
    journal.recall("a", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        journal.recall("b", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert Journal(tmp_path / "j", "subject").recall("a", lambda: 2) == 1


def test_cut_off_anywhere_it_goes_on(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        whole, found = content[:length].count(b"\n"), []
        journal = Journal(tmp_path / "cut", "subject")
        assert recall_all(journal, found) == FIGURES
        assert len(found) in (len(FIGURES) - max(whole - 1, 0), len(FIGURES) - whole)  # or all but its newline is there
        assert (tmp_path / "cut").read_bytes() == content  # mended: no line is glued to half of one


@pytest.mark.parametrize("other", ["subject 2", "", "subjec"])
def test_another_subject_starts_anew(written: Path, other: str) -> None:
    journal, found = Journal(written, other), []
    assert journal.recalled == 0
    recall_all(journal, found)
    assert found == list(FIGURES)
    assert Journal(written, "subject").recalled == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_garbage_is_passed_over(tmp_path: Path, garbage: bytes, place: int) -> None:
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    recall_all(Journal(path, "subject"), [])
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(1 + place % len(lines), garbage.replace(b"[", b"") + b"\n")
    path.write_bytes(b"".join(lines))
    found: list[str] = []
    assert recall_all(Journal(path, "subject"), found) == FIGURES
    assert found == []


@pytest.mark.parametrize("first", [b"\xff\xfe", b"{}", b"null", b'["subject"]', b'[["subject"], 1]', b""])
def test_what_is_no_journal_is_written_over(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "j").write_bytes(first + b"\n" + b'["drop 0 1", 99]\n')
    found: list[str] = []
    assert recall_all(Journal(tmp_path / "j", "subject"), found) == FIGURES
    assert found == list(FIGURES)


def test_it_is_removed_when_all_is_done(written: Path) -> None:
    journal = Journal(written, "subject")
    journal.forget()
    assert not written.exists()
    journal.forget()


def test_without_a_file_nothing_is_kept() -> None:
    found: list[str] = []
    journal = Journal(None, "subject")
    recall_all(journal, found)
    recall_all(journal, found)
    assert found == list(FIGURES)
    journal.forget()
    recall_all(Journal(None, "subject"), found)
    assert found == [*FIGURES, *FIGURES]


def test_lines_are_json(written: Path) -> None:
    assert [json.loads(line)[0] for line in written.read_text().splitlines()] == ["subject", *FIGURES]


ODD = [None, "abc", True, -1, [], {}, [1], [1, "2"], [1, None], [1, True], [1, -1], [[1], [2]], [1, 10**400], [1, 2, 3]]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_what_are_no_figures_is_found_anew(tmp_path: Path, value: Any) -> None:
    lines = [["subject", "s"], ["times", value], ["drop", value]]
    (tmp_path / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(tmp_path / "j", "s")
    assert journal.recall("times", lambda: [1.5, 2.5], numbers(2, positive=True)) == [1.5, 2.5]
    drop = {"value": 0.5, "flips": None, "least": 0.25}
    assert journal.recall("drop", lambda: drop, is_drop) == drop
    again = Journal(tmp_path / "j", "s")  # and what was found is what counts
    assert again.recall("times", lambda: None, numbers(2, positive=True)) == [1.5, 2.5]
    assert again.recall("drop", lambda: None, is_drop) == drop


def test_figures_that_fit_are_kept() -> None:
    for value in ([0, 1.5], [1e300, math.inf]):
        assert numbers(2)(value)
    assert not any(numbers(2, positive=True)(value) for value in ([0, 1.5], [1, math.inf], [math.nan, 1]))
    assert not numbers(2)([math.nan, 1])
    assert is_drop({"value": 0.5, "flips": None, "least": None})
    for odd in ({"value": None}, {"value": "0"}, {"flips": []}, {"least": True}, {"more": 1.0}):
        assert not is_drop({"value": 0.5, "flips": None, "least": None} | odd)


def test_lines_that_are_nested_too_deeply_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('["subject", "s"]\n["a", ' + "[" * 100_000 + '\n["b", 1]\n')
    assert Journal(tmp_path / "j", "s").recall("b", lambda: 2) == 1
