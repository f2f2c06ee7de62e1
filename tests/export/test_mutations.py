"""Deliberate defects in exported graphs: how many are caught, and whether the op that is wrong is the one named."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from defects import DEFECTS, plant

from tfm.export import GraphReport

Verdict = Callable[..., GraphReport]

EXCUSED: dict[str, str] = {}
"""Defects that are not caught, or not named by their op, each with the reason."""

CAUGHT_IN_INT8 = 0


@pytest.fixture(scope="module")
def verdict(export_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """The verdict on a planted defect; each is planted once per precision."""
    folder: Path = tmp_path_factory.mktemp("planted")
    return cache(lambda name, precision="fp32": plant(export_tiny, *DEFECTS[name][:2], folder, precision=precision))


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_caught_and_named(verdict: Verdict, name: str) -> None:
    report = verdict(name)
    caught_and_named = not report.passed and report.first_fault.startswith(DEFECTS[name].named)
    if name in EXCUSED:
        assert not caught_and_named, "it needs no excuse any more"
    else:
        assert caught_and_named, report.first_fault
    assert report.to_dict()["passed"] is report.passed
