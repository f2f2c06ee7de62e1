"""The board reaches every model, tells a refusal from a fault, and its table says what was found."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.board import board
from tests.board.board import Row
from tests.board.models import Entry, entries
from tfm.errors import ExportError

ROWS = [
    Row("a", "BertModel", "bert", "native", exported=True, task=True),
    Row("b", "BertForX", "bert", "transformers", exported=True, task=True),
    Row("c", "GPT", "gpt2", "native", exported=True, task=True, generates=True),
    Row("d", "Odd", "odd", refusal="it has no ONNX form"),
]


def test_parts_are_all_of_it_and_overlap_nowhere() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names)) > 150
    parts = [entry.name for part in range(1, 8) for entry in board.chosen(f"{part}/7")]
    assert sorted(parts) == sorted(names)
    for odd in ("0/7", "8/7"):
        with pytest.raises(SystemExit, match="write one from 1/7 to 7/7"):
            board.chosen(odd)


def test_every_day_begins_elsewhere_and_all_are_reached() -> None:
    names = [entry.name for entry in entries()]
    days = [[entry.name for entry in board.chosen(None, day)] for day in range(730_000, 730_000 + len(names))]
    assert all(sorted(day) == sorted(names) for day in days)
    assert days[0][board.STRIDE] == days[1][0]
    assert {name for day in days for name in day[: board.STRIDE]} == set(names)


@pytest.mark.parametrize(
    ("error", "untyped"), [(ExportError("it is too short"), False), (KeyError("hidden_size"), True)]
)
def test_a_refusal_is_told_from_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception, untyped: bool) -> None:
    def judge(*_: Any) -> None:
        raise error

    monkeypatch.setattr(board, "make", lambda *_: type("M", (), {"config": type("C", (), {"model_type": "bert"})})())
    monkeypatch.setattr(board, "judge", judge)
    row = board.examine(Entry("x", "BertModel", {}))
    assert (row.family, row.untyped, row.wrong, row.exported) == ("bert", untyped, untyped, False)
    assert ("too short" in row.refusal) != untyped


def test_what_is_exported_and_computes_something_else_is_wrong() -> None:
    assert not any(row.wrong for row in ROWS)
    assert dataclasses.replace(ROWS[0], task=False).wrong
    assert dataclasses.replace(ROWS[2], generates=False).wrong


def test_the_table_has_every_family_and_every_refusal() -> None:
    text = board.table([dataclasses.asdict(row) for row in ROWS])
    assert "| `bert` | native, transformers | 2 | 2 of 2 | 2 of 2 | – |" in text
    assert "| `gpt2` | native | 1 | 1 of 1 | 1 of 1 | 1 of 1 |" in text
    assert "| `odd` | – | 1 | 0 of 1 | – | – |" in text
    assert "In all: 3 of 4 exported and verified; the task of 3 of 3, and the generation of 1 of 1, as" in text
    assert text.endswith("Not exported:\n\n- `Odd` (d): it has no ONNX form")


def test_a_run_keeps_what_it_found_and_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "examine", lambda entry: dataclasses.replace(ROWS[0], name=entry.name))
    kept, page = tmp_path / "build" / "board.json", tmp_path / "page.md"
    assert board.main(["--part", "1/50", "--kept", str(kept)]) == 0
    first = json.loads(kept.read_text())
    assert list(first) == [entry.name for entry in entries()[::50]]
    assert capsys.readouterr().out.count("ok ") == len(first)
    assert board.main(["--seconds", "-1", "--kept", str(kept)]) == 0
    assert json.loads(kept.read_text()) == first
    page.write_text(f"before\n{board.START}\nold\n{board.END}\nafter\n")
    with pytest.raises(SystemExit, match=r"lacks \d+ of \d+ models; run the other parts first"):
        board.main(["--write", str(page), "--kept", str(kept)])
    assert board.main(["--kept", str(kept)]) == 0
    assert board.main(["--write", str(page), "--kept", str(kept)]) == 0
    assert page.read_text().startswith(f"before\n{board.START}\n\n| Family |")
    assert page.read_text().endswith(f"{board.END}\nafter\n")
    monkeypatch.setattr(board, "examine", lambda entry: dataclasses.replace(ROWS[0], name=entry.name, task=False))
    assert board.main(["--part", "1/50", "--kept", str(kept)]) == 1
