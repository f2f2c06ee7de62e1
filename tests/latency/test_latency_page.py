"""latency.html: bars where the figures say, nothing from elsewhere, and names that are no markup."""

import copy
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tfm.errors import BundleError
from tfm.latency import write_latency
from tfm.latency.latency_page import chart, octaves


def timing(**changes: Any) -> dict[str, Any]:
    times = {"runs": 50, "median_ms": 10.0, "p90_ms": 12.34, "p99_ms": None, "per_second": 100.4}
    return times | {"ratio": None, "low": None, "high": None, "verdict": None, "said": None} | changes


def entry(engines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    common = {"work": "1×16", "measure": "run", "threads": 1, "rows": 1, "baseline": "eager", "noise": 0.02}
    return common | {"engines": engines} | changes


FASTER = timing(ratio=4.0, low=2.0, high=8.0, verdict="faster", said="faster 4.0× (2.0–8.0)")
SLOWER = timing(ratio=0.5, low=0.25, high=0.7, verdict="slower", said="slower 2.0× (1.4–4.0)")
SAME = timing(ratio=1.1, low=0.9, high=1.2, verdict="no difference shown", said="no difference shown")
NOISY = timing(ratio=3.0, low=2.0, high=4.0, verdict="too noisy", said="too noisy")

CONTENT: dict[str, Any] = {
    "schema": 1,
    "bundle": "<b>x</b>.tfm",
    "kind": "decoder",
    "made": {"date": "2026-01-02", "machine": "a processor", "system": "a system", "load": 0.5, "versions": {"a": "1"}},
    "settings": {"rounds": 15, "seconds": 0.2},
    "corpus": "3 texts",
    "warnings": ["<i>busy</i>"],
    "left_out": {"torch.compile": "no <u>compiler</u>"},
    "lines": [
        entry({"eager": timing(), "fp32": SLOWER, "int8": FASTER}),
        entry({"eager": timing(), "int8": SAME}, measure="token"),
        entry({"eager": timing(), "int8": NOISY}, measure="first token", threads=2, noise=0.4),
    ],
    "starts": {"int8": {"starts": 5, "import_ms": 100.0, "open_ms": 50.0, "answer_ms": 60.0, "peak": 120_000_000}},
    "peaks": {"1": {"int8": 130_000_000, "eager": None}},
    "sizes": {"int8": 22_900_000, "fp32": 90_300_000},
}


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(folder: Path, content: dict[str, Any]) -> Page:
    write_latency(folder / "latency.html", content)
    return Page((folder / "latency.html").read_text(encoding="utf-8"))


def test_it_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, CONTENT)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "b" * 2, "i", "u")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value == "data:,", tag
    assert "http" not in (tmp_path / "latency.html").read_text(encoding="utf-8").replace("http-equiv", "")
    assert "<b>x</b>.tfm: latency" in page.text
    assert "no <u>compiler</u>" in page.text
    assert "<i>busy</i>" in page.text


def test_what_it_says(tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", written(tmp_path, CONTENT).text)
    for said in (
        "On 1 thread",
        "On 2 threads",
        "each token after 1×16",
        "first token of 1×16 too noisy: the quartiles of eager's rounds lie 40.0 % apart",
        "faster 4.0× (2.0–8.0)",
        "slower 2.0× (1.4–4.0)",
        "no difference shown",
        "12.3",
        "Throughput: 3 texts",
    ):
        assert said in text


def test_bars_lie_where_the_figures_say() -> None:
    """From 0.25 to 8 there are five octaves of 20 % each; 1 lies at 40 %."""
    drawn = chart(CONTENT["lines"][:1], 1)
    assert [(round(place, 1), label) for place, label in drawn.axis.ticks] == [
        (0.0, "0.25×"), (20.0, "0.5×"), (40.0, "1×"), (60.0, "2×"), (80.0, "4×"), (100.0, "8×")
    ]  # fmt: skip
    ((_, _, (eager, fp32, int8)),) = drawn.workloads
    assert not eager.bars
    (bar,), (slow,) = int8.bars, fp32.bars
    assert (bar.style, bar.start, bar.length, bar.low, bar.high) == ("own", 40.0, 40.0, 60.0, 100.0)
    assert (slow.style, slow.start, slow.length, slow.low) == ("broken", 20.0, 20.0, 0.0)
    assert slow.high == pytest.approx(40 + 20 * math.log2(0.7), abs=0.06)


def test_what_shows_nothing_is_pale() -> None:
    for line in CONTENT["lines"][1:]:
        (bar,) = [bar for row in chart([line], 1).workloads[0][2] for bar in row.bars]
        assert bar.style == "quiet"


def test_the_axis_always_holds_one() -> None:
    assert [label for _, label in octaves([]).ticks] == ["1×", "2×"]
    assert [label for _, label in octaves([3.0, 5.0]).ticks] == ["1×", "2×", "4×", "8×"]
    assert [label for _, label in octaves([0.3]).ticks] == ["0.25×", "0.5×", "1×", "2×"]
    wide = octaves([0.9, 500.0])
    assert [label for _, label in wide.ticks] == ["1×", "4×", "16×", "64×", "256×"]
    assert octaves([None, float("inf"), float("nan"), 2.0]).ticks == octaves([2.0]).ticks


def test_engines_alone_have_no_bars(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["lines"] = [entry({"int8": timing()}, baseline=None, noise=None)]
    content["starts"], content["peaks"], content["warnings"], content["left_out"] = {}, {}, [], {}
    page = written(tmp_path, content)
    assert not [tag for tag, _ in page.tags if tag == "rect"]
    assert "beside nothing" in page.text


@pytest.mark.parametrize("schema", [0, 2, None])
def test_another_schema(tmp_path: Path, schema: int | None) -> None:
    with pytest.raises(BundleError, match=r"x\.html is written from figures of schema 1, and these are of schema"):
        write_latency(tmp_path / "x.html", CONTENT | {"schema": schema})
    assert not (tmp_path / "x.html").exists()
