"""What quantization costs, in the page: the story, the front, every op, and nothing over the budget hidden."""

import html.parser
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.planted_quantization import decoder_weights, encoder_weights, planted
from tfm.report import write_report
from tfm.report.front import front
from tfm.report.quantization import describe


class Text(html.parser.HTMLParser):
    """The text of a page's section on quantization, and its rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(re.sub(r"(?s)<style>.*?</style>", "", page))
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def labels(self) -> list[str]:
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if tag == "svg" and "aria-label" in attrs]


@pytest.fixture
def page(tmp_path: Path, samples: SimpleNamespace) -> Any:
    def write(quantization: dict[str, Any] | None) -> Text:
        certificate = samples.encoder() | {"quantization": quantization}
        if quantization is None:
            del certificate["quantization"]
        write_report(tmp_path / "report.html", certificate)
        return Text((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def story(entry: dict[str, Any]) -> str:
    return describe("int8", entry, "q0").story


@pytest.mark.parametrize("quantization", [None, {}])
def test_without_quantization_there_is_no_section(page: Any, quantization: Any) -> None:
    assert "Quantization" not in page(quantization).text
    assert "Quantization" in page({"int8": planted(encoder_weights())}).text


def test_schema_2_is_drawn_as_before(tmp_path: Path, samples: SimpleNamespace) -> None:
    older = samples.encoder() | {"schema": 2}
    del older["quantization"]
    write_report(tmp_path / "older.html", older)
    write_report(tmp_path / "newer.html", samples.encoder() | {"quantization": {}})
    assert (tmp_path / "older.html").read_bytes() == (tmp_path / "newer.html").read_bytes()


def small(**change: Any) -> dict[str, Any]:
    """Three ops of known figures: b costs most, c is left in float32."""
    entry = planted([("a", (3, 4)), ("b", (3, 4)), ("c", (3, 4))])
    entry |= {"drop": 0.0016, "relative_time": 0.31}
    for op, alone, method in zip(entry["ops"], (1e-5, 8e-4, 0.2), ("dynamic", "dynamic", "float32"), strict=True):
        op |= {"alone": alone, "method": method}
    return entry | change


def test_the_story_says_what_was_found() -> None:
    assert story(small()) == (
        "On 32 English sentences, the mix that was found takes 0.31× the time of fp32 and loses 1.6e−3 of the mean "
        "cosine, of the 3.0e−3 allowed; 1 of 3 ops stays in float32 (c); of the quantized ops, by itself, "
        "b (8.0e−4) costs most, and a (1.0e−5) least."
    )
    replayed = story(small(searched=False, measure="kl", relative_time=None))
    assert replayed.startswith(
        "On 32 English sentences, the mix moves the model's distributions by a KL divergence of "
        "1.6e−3 nats, of the 3.0e−3 allowed; 1 of 3"
    )
    assert "; no op could be quantized." in story(small(ops=[]))
    assert "loses ∞ of the mean cosine, more than the 3.0e−3 allowed" in story(small(drop=None))


def test_the_story_names_a_planted_layer_that_cannot_be_quantized() -> None:
    weights = encoder_weights()
    entry = planted(weights, float32=(14,))
    assert f"1 of 24 ops stays in float32 ({weights[14][0]})" in story(entry)


def test_the_story_names_only_a_few() -> None:
    kept = tuple(range(7))
    weights = encoder_weights()
    names = ", ".join(name for name, _ in weights[:3])
    assert f"7 of 24 ops stay in float32 ({names} and 4 more)" in story(planted(weights, float32=kept))


def test_effects_that_were_not_measured_are_not_ranked() -> None:
    entry = small()
    for op in entry["ops"]:
        op |= {"alone": None, "all_but": None, "own_snr_db": None, "time": None, "time_float32": None}
    found = describe("int8", entry, "q0")
    assert "costs most" not in found.story
    rows = [row for _, group in found.layers for row in group]
    assert [[cell.text for cell in row.cells] for row in rows] == [["—"] * 3] * 3
    assert [(row.bars, row.times, row.time) for row in rows] == [((), (), "—")] * 3


def test_every_op_is_there_with_its_figures_in_the_order_of_the_graph(page: Any) -> None:
    entry = planted(encoder_weights(), "kl", float32=(3,))
    op = entry["ops"][5]
    op |= {"own_snr_db": 31.2, "alone": 1.2e-4, "all_but": 1.434e-3, "flips_alone": 0.002, "method": "static, 8 bits"}
    op |= {"time": 0.021, "time_float32": 0.08}
    found = page({"int8": entry})
    labels = [label for label in found.labels() if ": own SNR " in label]
    assert [label.split(":")[0] for label in labels] == [op["weight"] for op in entry["ops"]]
    assert labels[5] == f"{op['weight']}: own SNR 31 dB, alone 1.2e−4, all but it 1.43e−3, flips 0.2 %"
    assert "static, 8 bits own SNR 31 dB alone 1.2e−4 all but it 1.43e−3 flips 0.2 % time 8.0 % → 2.1 %" in found.text
    assert sum(attrs.get("class") == "kept" for tag, attrs in found.tags if tag == "tr") == 1
    assert found.text.count("stays in float32") == 2  # in the story and in its row


def test_flips_are_of_distributions_only(page: Any) -> None:
    text = page({"int8": planted(encoder_weights())}).text.split("Quantization: what")[1].split("Attention maps")[0]
    assert "flips" not in text.split("Fusion:")[0]


def test_a_long_table_shows_the_ten_costliest_first_and_folds_the_rest(page: Any) -> None:
    entry = planted(decoder_weights(), "kl", float32=(4, 64))
    found = describe("int8", entry, "q0")
    ranked = sorted(entry["ops"], key=lambda op: op["alone"], reverse=True)
    assert [row.whole for row in found.costliest] == [op["weight"] for op in ranked[:10]]
    text = page({"int8": entry}).text
    assert "the 10 that cost most by themselves" in text
    assert "All 121 ops, in the order of the graph" in text
    assert describe("int8", planted(encoder_weights()), "q0").costliest == ()


def test_roles_are_told_apart() -> None:
    entry = planted([("layers.0.a", (2, 2)), ("layers.0.a", (2, 2))], roles=("encoder", "decoder"))
    found = describe("int8", entry, "q0")
    assert [layer for layer, _ in found.layers] == ["encoder · layers.0", "decoder · layers.0"]
    assert {row.whole for _, rows in found.layers for row in rows} == {"encoder layers.0.a", "decoder layers.0.a"}


def test_bars_are_as_long_as_the_effects() -> None:
    found = describe("int8", small(), "q0")
    (_, rows), *rest = found.layers
    assert not rest
    assert (found.axis.low, found.axis.high) == (0.0, 0.2)
    assert [row.bars[0].length for row in rows] == [0.0, 0.4, 100.0]  # 1e-5, 8e-4 and 0.2 of 0.2, in %
    assert [row.bars[0].style for row in rows] == ["own", "own", "kept"]
    entry = small()
    for op, alone, all_but in zip(entry["ops"], (1e-5, 8e-4, None), (0.0012, None, None), strict=True):
        op |= {"alone": alone, "all_but": all_but}
    (_, rows), *_ = describe("int8", entry, "q0").layers
    assert rows[0].bars[1].length == pytest.approx(100 * 0.0004 / 0.0008)  # of the drop of 0.0016, 0.0004 goes


def test_a_mix_over_the_budget_is_a_fault(page: Any) -> None:
    entry = planted(encoder_weights()) | {"drop": 0.0041, "forced": True}
    text = page({"fp16": planted(encoder_weights()), "int8": entry}).text
    assert "Not verified" in text
    assert "First fault quantization to int8 its drop is 4.1e−3, more than the 3.0e−3 allowed see it" in text
    assert "✗ failed int8 forced" in text
    assert "Forced: its drop is 4.1e−3" in text
    assert "✓ passed fp16" in text


@pytest.mark.parametrize("drop", [None, math.nan, math.inf])
def test_a_drop_that_is_no_number_is_a_fault(page: Any, drop: Any) -> None:
    text = page({"int8": planted(encoder_weights()) | {"drop": drop}}).text
    assert "First fault quantization to int8 its drop is NaN or infinity" in text


def test_a_drop_at_the_budget_is_within(page: Any) -> None:
    assert "Not verified" not in page({"int8": planted(encoder_weights()) | {"drop": 0.003}}).text


def portable(**found: Any) -> tuple[bool, str]:
    entry = small(portability={"vnni_only": False, "saturating": [], "extra_drop": 0.0} | found)
    described = describe("int8", entry, "q0")
    return described.portable, described.portability


def test_portability_is_said_in_a_line() -> None:
    assert portable() == (True, "It runs the same on x86 without VNNI.")
    ours = "tfm.runtime runs it the same on every x86. Opened by anything else where there is no VNNI, it loses "
    unless = "unless session.x64quantprecision is 1"
    assert portable(saturating=["a", "b"], extra_drop=1e-4) == (
        True,
        f"{ours}an estimated drop of 1.0e−4 more, {unless}: sums of 8-bit products saturate in a, b.",
    )
    assert portable(vnni_only=True, saturating=["a"], extra_drop=0.2) == (
        False,
        f"{ours}an estimated drop of 2.0e−1 more, which is over the budget, {unless}: sums of 8-bit products saturate "
        "in a.",
    )
    assert portable(saturating=["a"], extra_drop=None)[1].startswith(f"{ours}an unknown drop more, {unless}")


def assignment(time: float, drop: float | None, *, measured: bool = True, chosen: bool = False) -> dict[str, Any]:
    return {"relative_time": time, "drop": drop, "measured": measured, "chosen": chosen, "float32": 0}


def test_the_front_is_drawn_where_its_figures_lie() -> None:
    assignments = [assignment(0.2, 1e-2, measured=False), assignment(0.3, 1e-3, chosen=True), assignment(0.6, 1e-4)]
    found = front(assignments, 10**-2.5)
    assert found is not None
    # across: 0.2 to 0.6; up: whole decades from 1e-2 down to 1e-5, the lowest point not on the edge
    assert [(point.x, point.y) for point in found.points] == [(0, 0), (25, 33.3), (100, 66.7)]
    assert found.budget == pytest.approx(100 / 6, abs=0.05)
    assert [point.style for point in found.points] == ["predicted", "measured chosen", "measured"]
    assert found.chosen == found.points[1]
    assert found.lines == ((0, 0, 25, 33.3), (25, 33.3, 100, 66.7))
    assert [label for _, label in found.x_ticks] == ["0.2×", "0.3×", "0.4×", "0.5×", "0.6×"]
    assert [label for _, label in found.y_ticks] == ["1e−5", "1e−4", "1e−3", "1e−2"]
    assert found.predicted


def test_drops_of_one_size_are_drawn_on_an_even_axis() -> None:
    found = front([assignment(0.2, 0.004), assignment(0.3, 0.001)], 0.002)
    assert found is not None
    assert [point.y for point in found.points] == [0, 75]
    assert found.budget == 50
    assert found.chosen is None


@pytest.mark.parametrize("drop", [None, math.nan])
def test_a_mix_whose_drop_is_no_number_stands_at_the_top(drop: float | None) -> None:
    found = front([assignment(0.2, drop), assignment(0.3, 1e-3), assignment(0.5, 0.0), assignment(0.6, -1e-9)], 0.02)
    assert found is not None
    assert (found.points[0].y, found.points[0].style) == (0, "broken")
    assert [point.y for point in found.points][2:] == [100, 100]
    assert found.broken
    assert found.without


def test_no_front_is_no_chart(page: Any) -> None:
    assert front([], 0.003) is None
    assert "Filled: measured" not in page({"int8": planted(encoder_weights()) | {"front": []}}).text
    assert front([assignment(0.5, 0.0)], 0.0) is not None


def test_names_of_weights_stay_text(page: Any) -> None:
    evil = "<script>alert(1)</script>\"'><b onclick=x>"
    entry = planted([(evil, (2, 2))], roles=(evil,)) | {"measure": evil, "samples": evil}
    entry["ops"][0] |= {"method": evil, "uses": [evil]}
    entry["portability"]["saturating"] = [evil]
    found = page({evil: entry})
    assert not [tag for tag, attrs in found.tags if tag == "script" or "onclick" in attrs]
    # precision, story thrice, axis, method twice, role, weight, use, portability
    assert found.text.count(evil) >= 9
