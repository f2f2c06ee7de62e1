"""What a search remembers of itself: all of it after any interruption, and nothing of another."""

import json
import math
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm.quantize.search.figures import is_loss, numbers
from tfm.quantize.search.journal import Journal, drop_journal

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
    with Journal(tmp_path / "j", "subject") as journal:
        assert recall_all(journal, []) == FIGURES
    return tmp_path / "j"


def again(path: Path, subject: str = "subject") -> tuple[int, list[str]]:
    """How many figures a journal recalls, and which have to be found anew."""
    found: list[str] = []
    with Journal(path, subject) as journal:
        recalled = journal.recalled
        assert recall_all(journal, found) == recall_all(journal, found) == FIGURES
    return recalled, found


def test_figures_are_found_once_and_are_the_same_again(written: Path) -> None:
    assert again(written) == (len(FIGURES), [])


def test_each_is_written_before_the_next_is_looked_for(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "subject") as journal:
        journal.recall("a", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            journal.recall("b", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        killed = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(killed)
    with Journal(tmp_path / "j", "subject") as journal:
        assert journal.recall("a", lambda: 2) == 1


def test_no_file_before_a_figure(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "subject"):
        assert list(tmp_path.iterdir()) == []


def test_cut_off_anywhere_it_goes_on(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        _, found = again(tmp_path / "cut")
        assert len(found) in (len(FIGURES) - max(whole - 1, 0), len(FIGURES) - whole)  # or all but its newline is there
        assert (tmp_path / "cut").read_bytes() == content  # mended: no line is glued to half of one


@pytest.mark.parametrize("other", ["subject 2", "", "subjec"])
def test_another_subject_starts_anew(written: Path, other: str) -> None:
    assert again(written, other) == (0, list(FIGURES))
    assert again(written) == (0, list(FIGURES))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_garbage_is_passed_over(tmp_path: Path, garbage: bytes, place: int) -> None:
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    again(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(1 + place % len(lines), garbage.replace(b"[", b"") + b"\n")
    path.write_bytes(b"".join(lines))
    assert again(path)[1] == []


@pytest.mark.parametrize("first", [b"\xff\xfe", b"{}", b"null", b'["subject"]', b'[["subject"], 1]', b"", b"[" * 9999])
def test_what_is_no_journal_is_written_over(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "j").write_bytes(first + b"\n" + b'["drop 0 1", 99]\n')
    assert again(tmp_path / "j") == (0, list(FIGURES))
    assert again(tmp_path / "j") == (len(FIGURES), [])


@pytest.mark.skipif(os.name == "nt", reason="Windows lets only administrators make links")
@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "socket"])
def test_another_file_is_never_written_to(tmp_path: Path, kind: str) -> None:
    theirs, path = tmp_path / "theirs", tmp_path / "room" / "j"
    path.parent.mkdir()
    held = socket.socket(socket.AF_UNIX)
    with held:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            held.bind(str(path))
        elif kind == "dangling link":
            path.symlink_to(theirs)
        else:
            theirs.write_bytes(b"precious")
            path.symlink_to(theirs) if kind == "link" else os.link(theirs, path)
        assert again(path) == (0, list(FIGURES))
    assert [file.read_bytes() for file in tmp_path.iterdir() if file.is_file()] in ([b"precious"], [])
    assert stat.S_ISREG(path.lstat().st_mode)  # in its place: a journal that serves the next time
    assert again(path) == (len(FIGURES), [])


def test_figures_planted_through_a_link_are_not_recalled(written: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written)
    assert again(tmp_path / "link") == (0, list(FIGURES))


def test_where_no_file_can_be_it_goes_on_without(tmp_path: Path) -> None:
    (tmp_path / "j" / "full").mkdir(parents=True)
    assert again(tmp_path / "j") == (0, list(FIGURES))
    assert [path.name for path in tmp_path.rglob("*")] == ["j", "full"]
    drop_journal(tmp_path / "j")
    assert (tmp_path / "j" / "full").is_dir()


def test_of_two_at_once_the_second_goes_on_without(tmp_path: Path) -> None:
    """Else each would cut off what the other wrote of another subject."""
    with Journal(tmp_path / "j", "subject") as first, Journal(tmp_path / "j", "subject 2") as second:
        first.recall("a", lambda: 1)
        assert second.recall("a", lambda: 2) == 2
        first.recall("b", lambda: 3)
        drop_journal(tmp_path / "j")  # by a process that ends now: it is another's
    with Journal(tmp_path / "j", "subject") as journal:
        assert journal.recalled == 2
        assert again(tmp_path / "j") == (0, list(FIGURES))
        assert journal.recall("b", lambda: 4) == 3


def test_it_is_removed_when_all_is_done(written: Path) -> None:
    drop_journal(written)
    assert not written.exists()
    drop_journal(written)


def test_without_a_file_nothing_is_kept() -> None:
    found: list[str] = []
    journal = Journal(None, "subject")
    recall_all(journal, found)
    recall_all(journal, found)
    assert found == list(FIGURES)
    recall_all(Journal(None, "subject"), found)
    assert found == [*FIGURES, *FIGURES]


def test_lines_are_json(written: Path) -> None:
    assert [json.loads(line)[0] for line in written.read_text().splitlines()] == ["subject", *FIGURES]


ODD = [None, "abc", True, -1, [], {}, [1], [1, "2"], [1, None], [1, True], [1, -1], [[1], [2]], [1, 10**400], [1, 2, 3]]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_what_are_no_figures_is_found_anew(tmp_path: Path, value: Any) -> None:
    lines = [["subject", "s"], ["times", value], ["drop", value]]
    (tmp_path / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drop = {"value": 0.5, "flips": None, "least": 0.25}
    with Journal(tmp_path / "j", "s") as journal:
        assert journal.recall("times", lambda: [1.5, 2.5], numbers(2, positive=True)) == [1.5, 2.5]
        assert journal.recall("drop", lambda: drop, is_loss) == drop
    with Journal(tmp_path / "j", "s") as again:  # and what was found is what counts
        assert again.recall("times", lambda: None, numbers(2, positive=True)) == [1.5, 2.5]
        assert again.recall("drop", lambda: None, is_loss) == drop


def test_figures_that_fit_are_kept() -> None:
    for value in ([0, 1.5], [1e300, math.inf]):
        assert numbers(2)(value)
    assert not any(numbers(2, positive=True)(value) for value in ([0, 1.5], [1, math.inf], [math.nan, 1]))
    assert not numbers(2)([math.nan, 1])
    assert is_loss({"value": 0.5, "flips": None, "least": None})
    for odd in ({"value": None}, {"value": "0"}, {"flips": []}, {"least": True}, {"more": 1.0}):
        assert not is_loss({"value": 0.5, "flips": None, "least": None} | odd)


def test_lines_that_are_nested_too_deeply_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('["subject", "s"]\n["a", ' + "[" * 100_000 + '\n["b", 1]\n')
    with Journal(tmp_path / "j", "s") as journal:
        assert journal.recall("b", lambda: 2) == 1
