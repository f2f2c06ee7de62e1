"""docs/activations.md against the raw results that it was drawn from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from activation_study.summary import markdown, summarize

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "activations.json").read_text(encoding="utf-8"))
    return found


def test_the_table_is_that_of_the_raw_results(raw: dict[str, Any]) -> None:
    page = (DOCS / "activations.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- table:.*?-->\n(.*?)<!-- /table -->", page, re.DOTALL)
    assert table is not None
    assert table.group(1) == markdown(summarize(raw))


def test_the_answer_has_no_figure_that_the_table_lacks() -> None:
    page = (DOCS / "activations.md").read_text(encoding="utf-8")
    answer, table = (
        re.search(f"<!-- {part}.*?-->(.*?)<!-- /{part} -->", page, re.DOTALL) for part in ("answer", "table")
    )
    assert answer is not None
    assert table is not None
    figures = set(re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", answer.group(1).replace("int8", "").replace("10⁻²", "")))
    assert len(figures) >= 12
    assert figures <= set(re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", table.group(1)))


def test_what_the_page_says_of_the_study(raw: dict[str, Any]) -> None:
    assert len(raw["runs"]) == 33 == len(raw["activations"]) * raw["seeds"]
    assert (raw["schedule"]["steps"], raw["schedule"]["batch_size"], raw["schedule"]["lr"]) == (1200, 128, 2e-3)
    assert raw["questions"] is None
    assert all(run["deployed"]["passed"] for run in raw["runs"])
    parameters = {run["trained"]["parameters"] for run in raw["runs"]}
    assert max(parameters) / min(parameters) < 1.001


def test_a_changed_figure_changes_the_table(raw: dict[str, Any]) -> None:
    before = markdown(summarize(raw))
    raw["runs"][0]["deployed"]["errors"]["fp32"]["phoneme_error"] += 0.001
    assert markdown(summarize(raw)) != before
    raw["runs"][0]["deployed"]["errors"]["fp32"]["phoneme_error"] -= 0.001
