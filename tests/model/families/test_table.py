"""The table of families tells what was compared, refuses to leave one out, and replaces nothing but itself."""

from typing import Any

import pytest
import torch

from tfm.model import FAMILIES


class Theirs:
    """Stands for a module of transformers."""

    def __init__(self, model_type: str, **options: Any) -> None:
        self.config = type("Config", (), {"model_type": model_type, **options})


def compare_all(found: Any) -> None:
    for family in FAMILIES:
        for act in ("relu", "gelu"):
            options = {"act": act, "hidden_size": len(act)}
            found.compare(Theirs(family, **options), options, torch.tensor([1.5, -2.0]), torch.tensor([1.5, -2.000002]))


def test_rows_tell_what_was_seen(families: Any) -> None:
    found = type(families)()
    compare_all(found)
    found.note_verified(Theirs("t5", act="relu"), {"act": "relu", "hidden_size": 4})
    lines = found.table().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == sorted(FAMILIES)
    assert "| `t5` | `Theirs` | `act` (gelu, relu) | 2 | 2e-06, of values up to 2 | 1 of 2 |" in lines
    assert "| `vit` | `Theirs` | `act` (gelu, relu) | 2 | 2e-06, of values up to 2 | 0 of 2 |" in lines


def test_a_family_left_out_is_refused(families: Any) -> None:
    found = type(families)()
    compare_all(found)
    del found.seen["bart"]
    found.seen["t5"] = {}
    found.note_verified(Theirs("t5"), {})
    with pytest.raises(ValueError, match="no comparison with transformers was run for bart, t5"):
        found.table()


def test_a_difference_fails_and_is_not_noted(families: Any) -> None:
    found = type(families)()
    with pytest.raises(AssertionError):
        found.compare(Theirs("t5"), {}, torch.tensor([1.0]), torch.tensor([1.001]))
    with pytest.raises(AssertionError):
        found.compare(Theirs("t5"), {}, torch.tensor([1.0]), torch.tensor([[1.0], [1.0]]))
    assert not found.seen


def test_only_what_is_between_the_marks_is_replaced(families: Any) -> None:
    found = type(families)()
    compare_all(found)
    new = f"a\n<!-- families -->\n\n{found.table()}\n\n<!-- /families -->\nb\n"
    assert found.renew("a\n<!-- families -->\nold\n<!-- /families -->\nb\n") == found.renew(new) == new
    for lacking in ("", "<!-- families -->", "<!-- /families -->"):
        with pytest.raises(ValueError, match="no <!-- families -->"):
            found.renew(lacking)
