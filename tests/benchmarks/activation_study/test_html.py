"""The page of a study: from raw results to marks that lie where the figures say, no verdict without its interval."""

import copy
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from activation_study.html import (
    against_chart,
    answer,
    drop_chart,
    error_chart,
    int8_chart,
    time_charts,
    unit_chart,
    write_study,
)
from activation_study.page import page_content
from activation_study.plots import gradient_plots, loss_plots, path, round_log

from tests.benchmarks.activation_study.study_samples import WORKS, results
from tfm.errors import BundleError
from tfm.report import Row

RESULTS: dict[str, Any] = results()
CONTENT = page_content(RESULTS)
NAMES = RESULTS["activations"]


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


def texts(row: Row) -> tuple[str, ...]:
    return tuple(cell.text for cell in row.cells)


def written(folder: Path, content: dict[str, Any]) -> Page:
    write_study(folder / "study.html", content)
    return Page((folder / "study.html").read_text(encoding="utf-8"))


def with_errors(*rows: tuple[str, list[float]]) -> dict[str, Any]:
    """A study whose activations have these error rates, one for each seed."""
    names = tuple(name for name, _ in rows)
    made: dict[str, Any] = results(names=names, seeds=len(rows[0][1]), steps=25)
    for run in made["runs"]:
        run["deployed"]["errors"]["fp32"]["phoneme_error"] = dict(rows)[run["activation"]][run["seed"]]
    return page_content(made)


def test_content_is_json_and_matches_the_raw_results() -> None:
    assert json.loads(json.dumps(CONTENT, allow_nan=False)) == CONTENT
    assert [one["activation"] for one in CONTENT["activations"]] == NAMES
    for one in CONTENT["activations"]:
        runs = [run for run in RESULTS["runs"] if run["activation"] == one["activation"]]
        rates = [run["deployed"]["errors"]["fp32"]["phoneme_error"] for run in runs]
        value = one["errors"]["phoneme_error"]
        assert value["mean"] == pytest.approx(statistics.mean(rates), rel=1e-12)
        half = 4.302652729911275 * statistics.stdev(rates) / math.sqrt(3)  # t(0.975, 2), from printed tables
        assert value["high"] - value["mean"] == pytest.approx(half, rel=1e-6)
        assert [step for step, _ in one["loss"]] == list(range(25, 1201, 25))
        last = statistics.mean(run["trained"]["loss"][-1] for run in runs)
        assert one["loss"][-1][1] == pytest.approx(last, rel=1e-12)
    ratios = CONTENT["activations"][3]["ratios"]
    assert [(r["work"], r["precision"], r["value"]) for r in ratios] == [
        (line["work"], line["precision"], line["ratio"]["gelu"]["value"]) for line in RESULTS["speed"]
    ]
    assert CONTENT["activations"][0]["against"] is None


def test_a_short_training_has_its_last_step() -> None:
    content = page_content(results(names=("relu", "silu"), steps=4))
    assert [step for step, _ in content["activations"][0]["loss"]] == [4]


def test_who_may_be_the_best() -> None:
    """Two seeds that differ by 0.02 in every run alike leave nothing to chance: any difference is one."""
    exact = with_errors(("relu", [0.1, 0.12]), ("tanh", [0.2, 0.22]), ("silu", [0.1, 0.12]))
    assert exact["candidates"] == ["relu", "silu"]
    wide = with_errors(("relu", [0.1, 0.14]), ("tanh", [0.13, 0.12]), ("silu", [0.11, 0.13]))
    assert wide["candidates"] == ["relu", "tanh", "silu"]
    # tanh is known to be bad; relu's lowest mean is within the noise of silu's
    mixed = with_errors(("silu", [0.10, 0.11, 0.10]), ("relu", [0.11, 0.10, 0.09]), ("tanh", [0.5, 0.5, 0.5]))
    assert mixed["candidates"] == ["silu", "relu"]


@pytest.mark.parametrize(
    ("candidates", "verdicts", "said"),
    [
        (
            ["c"],
            "bww",
            "In an error, c is shown to be better than all others; c and d are shown to be worse than a; b is",
        ),
        (
            ["a", "b"],
            "sss",
            "In an error, a and b are not shown to differ from the best; none is shown to differ from a.",
        ),
        (
            ["a", "b", "c"],
            "ssw",
            "In an error, all but d are not shown to differ from the best; d is shown to be worse",
        ),
        (list("abcd"), "sss", "In an error, none of the 4 activations is shown to differ from the best; none is shown"),
    ],
)
def test_the_answer(candidates: list[str], verdicts: str, said: str) -> None:
    words = {"b": "better", "w": "worse", "s": "no difference shown"}
    content = {
        "baseline": "a",
        "seeds": 3,
        "candidates": candidates,
        "activations": [{"activation": "a", "against": None, "errors": {"an_error": {}}}]
        + [
            {"activation": name, "against": {"verdict": words[v]}} for name, v in zip("bcd", verdicts, strict=True)
        ],
    }  # fmt: skip
    assert answer(content).startswith(said)
    assert answer(content).count(".") == 1
    alone = answer(content | {"seeds": 1})
    assert alone == "From one seed no difference in an error can be shown, neither from the best nor from a."


def test_marks_lie_where_the_figures_say() -> None:
    activations = copy.deepcopy(CONTENT["activations"][:3])
    for one, mean in zip(activations, (0.10, 0.12, 0.14), strict=True):
        one["errors"]["phoneme_error"] = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
    drawn = error_chart(activations, "phoneme error")
    # from 9 % to 15 % in steps of 2 %: an axis from 8 to 16
    assert [label for _, label in drawn.axis.ticks] == ["8 %", "10 %", "12 %", "14 %", "16 %"]
    assert [(m.low, m.length, m.high) for row in drawn.rows for m in row.bars] == [
        (12.5, 25.0, 37.5), (37.5, 50.0, 62.5), (62.5, 75.0, 87.5)
    ]  # fmt: skip
    assert [row.cells[0].text for row in drawn.rows] == ["10.00 ± 1.00", "12.00 ± 1.00", "14.00 ± 1.00"]
    assert [row.said for row in drawn.rows] == ["the baseline", "worse", "worse"]
    activations[1]["against"] = {"mean": 0.01, "low": -0.01, "high": 0.03, "verdict": "no difference shown"}
    activations[2]["against"] = {"mean": -0.01, "low": -0.015, "high": -0.005, "verdict": "better"}
    less = against_chart(activations, "relu")
    assert [label for _, label in less.axis.ticks] == ["−2", "0", "2", "4"]
    assert less.one == pytest.approx(100 / 3, abs=0.06)
    assert [(row.said, row.style, row.bars[0].style) for row in less.rows] == [
        ("no difference shown", "", "quiet"), ("better", "good", "good")
    ]  # fmt: skip
    assert less.rows[0].bars[0].low == pytest.approx(100 / 6, abs=0.06)
    assert less.rows[0].cells[0].text == "+1.00 (−1.00 to +3.00)"


def test_what_int8_costs() -> None:
    activations = copy.deepcopy(CONTENT["activations"][:2])
    activations[0]["int8_loss"] = {"mean": 0.01, "low": 0.005, "high": 0.015, "verdict": "worse"}
    activations[1]["int8_loss"] = {"mean": None, "low": None, "high": None, "verdict": "no difference shown"}
    assert [(row.said, row.style) for row in int8_chart(activations).rows] == [
        ("int8 is worse", "bad"), ("not finite", "")
    ]  # fmt: skip
    activations[0]["drop"] = {"mean": 1e-3, "low": -1e-3, "high": 3e-3}
    activations[1]["drop"] = {"mean": 1e-4, "low": 5e-5, "high": 1.5e-4}
    drawn = drop_chart(activations)
    assert [label for _, label in drawn.axis.ticks] == ["1e−5", "1e−4", "1e−3", "1e−2"]
    assert drawn.rows[0].bars[0].length == pytest.approx(100 * 2 / 3, abs=0.06)
    assert drawn.rows[0].bars[0].low == 0.0
    assert texts(drawn.rows[0]) == ("1.0e−3 (−1.0e−3 to 3.0e−3)", "2.0 MB")


def test_times_in_words() -> None:
    activations = copy.deepcopy(CONTENT["activations"][:2])
    ratios = [(1.5, 1.2, 1.8, False), (1.1, 0.9, 1.2, False), (1.5, 1.2, 1.8, True), (1.02, 1.003, 1.04, False)]
    for entry, ratio in zip(activations[1]["ratios"], ratios, strict=False):
        entry |= dict(zip(("value", "low", "high", "noisy"), ratio, strict=True))
    charts = time_charts(activations)
    assert [chart.title for chart in charts] == list(WORKS)
    assert [row.name for row in charts[0].rows] == ["sigmoid"]
    assert texts(charts[0].rows[0]) == ("1.50× (1.20 to 1.80)", "no difference shown (0.90 to 1.20)")
    assert texts(charts[1].rows[0]) == ("too noisy", "1.02× (1.003 to 1.04)")
    assert [mark.style for mark in charts[1].rows[0].bars] == ["own noisy", "hollow"]
    assert len({chart.axis for chart in charts}) == 1
    assert charts[0].one == charts[0].axis.at(1.0)


def test_shares_of_units() -> None:
    drawn = unit_chart(CONTENT["activations"])
    for row, one in zip(drawn.rows, CONTENT["activations"], strict=True):
        for mark, kind in zip(row.bars, ("dead", "saturated", "near_zero"), strict=True):
            assert mark.length == pytest.approx(100 * one["units"][kind]["mean"], abs=0.06)
    assert drawn.rows[1].cells[0].text == "0"
    assert drawn.rows[0].cells[0].text != "0"


def test_curves_lie_where_the_figures_say() -> None:
    one = {"activation": "a", "loss": [[25, 10.0], [50, None], [75, 1.0], [100, 1.0]]}
    drawn = loss_plots([one, one | {"activation": "b"}], "a")
    assert drawn.plots[0].lines == ("M25.0 0.0M75.0 100.0L100.0 100.0",)
    assert drawn.plots[0].behind == ()
    assert drawn.plots[1].behind == drawn.plots[0].lines
    assert [label for _, label in drawn.y_ticks] == ["1", "2", "5", "10"]
    assert [place for place, _ in drawn.y_ticks] == pytest.approx([100, 69.897, 30.103, 0], abs=1e-3)  # 1 - log10
    assert drawn.x_ticks == ((0.0, "0"), (50.0, "50"), (100.0, "100"))
    assert [plot.dots for plot in loss_plots([one | {"loss": [[4, 2.0]]}], "a").plots] == [((100.0, 100.0),)]
    gradients = {"encoder.layers.0": 1.0, "encoder.layers.1": 10.0, "decoder.layers.0": 1.0, "decoder.layers.1": 10.0}
    norms = gradient_plots([{"activation": "a", "gradients": gradients}], "a")
    assert norms.plots[0].dots == ((10.0, 100.0), (30.0, 0.0), (70.0, 100.0), (90.0, 0.0))
    assert norms.x_ticks == ((10.0, "1"), (30.0, "2"), (70.0, "1"), (90.0, "2"))
    assert norms.titles == ((20.0, "encoder"), (80.0, "decoder"))


def test_round_axes() -> None:
    assert [label for _, label in round_log([0.09, 0.32]).ticks] == ["0.05", "0.1", "0.2", "0.5"]
    assert [label for _, label in round_log([2.0, 2.0]).ticks] == ["2", "5"]
    assert [label for _, label in round_log([None, 0.0, float("nan")]).ticks] == ["1", "2", "5", "10"]
    assert [label for _, label in round_log([1e-6, 0.5]).ticks][-1] == "1e0"
    assert path([]) == ""


def test_it_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, CONTENT | {"title": "<b>x</b>", "facts": {"<i>": "<u>y</u>"}})
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "u")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value == "data:,", tag
    assert "http" not in (tmp_path / "study.html").read_text(encoding="utf-8").replace("http-equiv", "")
    assert "<b>x</b>" in page.text
    assert "<u>y</u>" in page.text


def test_what_it_says(tmp_path: Path) -> None:
    page = written(tmp_path, CONTENT)
    text = re.sub(r"\s+", " ", page.text)
    sections = ["Error", "What int8 costs", "Time, relu = 1", "Training", "Units", "All figures"]
    places = [text.index(f" {section} ") for section in sections]
    assert places == sorted(places)
    assert text.index(answer(CONTENT)) < places[0]
    heard = " ".join(attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg")
    for one in CONTENT["activations"]:
        mean = f"{100 * one['errors']['phoneme_error']['mean']:.2f}"
        assert f"{one['activation']}: {mean} ± " in heard
        assert text.count(one["activation"]) >= 8
    assert "below 0.01 on every token" in text


@pytest.mark.parametrize("names", [("relu",), ("relu", "silu")])
def test_one_seed_shows_nothing(tmp_path: Path, names: tuple[str, ...]) -> None:
    text = written(tmp_path, page_content(results(names=names, seeds=1))).text
    assert "From one seed no difference in phoneme error can be shown" in text
    assert "±" not in text.replace("± half", "")
    assert "inf" not in text.replace("info", "")


@pytest.mark.parametrize("schema", [0, 2, None])
def test_another_schema(tmp_path: Path, schema: int | None) -> None:
    with pytest.raises(BundleError, match=r"x\.html is written from a study of schema 1, and this is of schema"):
        write_study(tmp_path / "x.html", CONTENT | {"schema": schema})
    assert not (tmp_path / "x.html").exists()
