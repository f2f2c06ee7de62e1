"""The report in headless Chromium: quiet, within the window, readable in light and dark, and on paper."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import samples
from tests.support.pages import CONTRASTS, OVERFLOWING, SCHEMES, SIZES, open_all, opened

NAMES = ("encoder", "failing", "encoder_decoder", "null_everything", "long_names", "big")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_page_fits_and_is_quiet(
    chromium: Any, reports: dict[str, Path], screenshots: Path, name: str, size: str, scheme: str
) -> None:
    with opened(chromium, reports[name], size, scheme) as page:
        page.screenshot(path=screenshots / f"{name}-{size}-{scheme}.png", full_page=True)
        for everything in (False, True):
            if everything:
                open_all(page)
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), page.evaluate(OVERFLOWING)
            assert page.evaluate(OVERFLOWING) == []
        verdict = page.locator("h1").bounding_box()
        assert verdict["y"] + verdict["height"] < SIZES[size][1] / 2
        assert page.locator("h1").inner_text() == (
            "Verified" if name.startswith("enc") or name == "big" else "Not verified"
        )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["encoder", "failing", "encoder_decoder"])
def test_all_text_can_be_read(chromium: Any, reports: dict[str, Path], name: str, scheme: str) -> None:
    with opened(chromium, reports[name], "phone", scheme) as page:
        open_all(page)
        found = page.evaluate(CONTRASTS)
        assert len(found) > 500
        assert [entry for entry in found if entry[0] < 4.5] == []
        page.evaluate("location.hash = 'g0-8'")  # a row that was jumped to is tinted
        assert [entry for entry in page.evaluate(CONTRASTS) if entry[0] < 4.5] == []


def test_the_contrast_is_really_computed(chromium: Any, reports: dict[str, Path]) -> None:
    with opened(chromium, reports["encoder"]) as page:
        page.add_style_tag(content="h1{color:#777!important;background:#fff}")
        ratio = next(entry[0] for entry in page.evaluate(CONTRASTS) if entry[2].startswith("H1"))
        assert ratio == pytest.approx(4.478, abs=1e-3)  # grey #777 on white, as published widely


def test_dark_is_dark_and_light_is_light(chromium: Any, reports: dict[str, Path]) -> None:
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b)"
    seen = {}
    for scheme in SCHEMES:
        with opened(chromium, reports["encoder"], scheme=scheme) as page:
            seen[scheme] = page.evaluate(brightness)
    assert seen["light"] > 700
    assert seen["dark"] < 80


def test_every_op_is_seen_on_a_phone(chromium: Any, reports: dict[str, Path]) -> None:
    certificate = samples.encoder_decoder()
    with opened(chromium, reports["encoder_decoder"], "phone") as page:
        open_all(page)
        for index, graph in enumerate(certificate["graphs"]):
            for number, op in enumerate(graph["ops"]):
                row = page.locator(f"#g{index}-{number}")
                text = row.inner_text()
                assert re.sub(r"^.*?\d+\.", "", op["path"]) in text
                assert op["source"] in text
                assert row.locator("svg").bounding_box()["width"] > 250


def test_the_first_fault_is_seen_at_once_and_leads_to_its_row(chromium: Any, reports: dict[str, Path]) -> None:
    with opened(chromium, reports["failing"], "phone") as page:
        box = page.locator(".first")
        assert box.bounding_box()["y"] + box.bounding_box()["height"] < SIZES["phone"][1]
        for part in ("activation encoder.layers.2.feed_forward.activation", "4.7e−4", "tfm/model/transformer.py:61"):
            assert part in box.inner_text()
        red = page.evaluate("getComputedStyle(document.querySelector('.first .what')).color.match(/\\d+/g).map(Number)")
        assert red[0] > 2 * max(red[1:])
        box.locator("a").click()
        row = page.locator("tr:target")
        assert "feed_forward.activation" in row.inner_text()
        assert 0 <= row.bounding_box()["y"] < SIZES["phone"][1]


def test_bars_are_as_long_as_their_errors(chromium: Any, reports: dict[str, Path]) -> None:
    graph = samples.encoder()["graphs"][0]
    with opened(chromium, reports["encoder"]) as page:
        ticks = page.evaluate("""[...document.querySelector('#g0 .axis').querySelectorAll('span:not(.heard)')].map(
            e => { const box = e.getBoundingClientRect(); return [e.textContent, box.left + box.width / 2] })""")
        (low, left), (high, right) = ticks[0], ticks[-1]
        low, high = (float(label.replace("−", "-")) for label in (low, high))
        for number, op in enumerate(graph["ops"]):
            if op["kind"] not in ("attention", "activation"):
                continue
            row = page.locator(f"#g0-{number}")
            for style, key in (("own", "own"), ("inherited", "inherited"), ("free", "free")):
                share = np.log(op[key]["max_abs"] / low) / np.log(high / low)
                box = row.locator(f"rect.{style}").bounding_box()
                assert box["x"] + box["width"] == pytest.approx(left + share * (right - left), abs=1)
            share = np.log(op["own"]["limit"] / low) / np.log(high / low)
            tick = row.locator("rect.tick").first.bounding_box()
            assert tick["x"] == pytest.approx(left + share * (right - left), abs=1)


def test_the_front_lies_where_its_figures_say(chromium: Any, reports: dict[str, Path]) -> None:
    entry = samples.encoder()["quantization"]["int8"]
    with opened(chromium, reports["encoder"]) as page:
        labels = page.evaluate("""[...document.querySelectorAll('.front text:not(.said)')].map(e => {
            const box = e.getBoundingClientRect();
            return [e.textContent, box.left + box.width / 2, box.top + box.height / 2] })""")
        ticks = [(float(label.replace("−", "-").rstrip("×")), "×" in label, x, y) for label, x, y in labels]
        (low_x, _, left, _), *_, (high_x, _, right, _) = [tick for tick in ticks if tick[1]]
        (low_y, _, _, bottom), *_, (high_y, _, _, top) = [tick for tick in ticks if not tick[1]]
        points = page.locator(".front circle").all()
        assert len(points) == len(entry["front"])
        for assignment, point in zip(entry["front"], points, strict=True):
            box = point.bounding_box()
            share_x = (assignment["relative_time"] - low_x) / (high_x - low_x)
            share_y = np.log(assignment["drop"] / low_y) / np.log(high_y / low_y)
            assert box["x"] + box["width"] / 2 == pytest.approx(left + share_x * (right - left), abs=1)
            # the middle of a label's box is not that of its letters
            assert box["y"] + box["height"] / 2 == pytest.approx(bottom - share_y * (bottom - top), abs=2)
            hollow = "rgb(255, 255, 255)"
            fill = point.evaluate("e => getComputedStyle(e).fill")
            assert (fill == hollow) is not assignment["measured"]
        chosen = page.locator(".front circle.chosen").bounding_box()
        budget = page.locator(".front .limit").bounding_box()
        assert chosen["y"] > budget["y"]


def test_bars_of_quantized_ops_are_as_long_as_their_effects(chromium: Any, reports: dict[str, Path]) -> None:
    entry = samples.encoder()["quantization"]["int8"]
    with opened(chromium, reports["encoder"], "phone") as page:
        width = page.locator("#q0-0 .bars svg").bounding_box()["width"]
        longest = max(op["alone"] for op in entry["ops"])
        length = {}
        for number, op in enumerate(entry["ops"]):
            row = page.locator(f"#q0-{number}")
            text = row.inner_text()
            assert re.sub(r"^layers\.\d+\.", "", op["weight"]) in text
            assert ("stays in float32" if op["method"] == "float32" else op["method"]) in text
            bar = row.locator("rect.kept" if op["method"] == "float32" else "rect.own")
            length[op["alone"]] = bar.bounding_box()["width"]
        scale = length[longest] / longest
        assert width / 2 < length[longest] <= width
        for alone, pixels in length.items():
            assert pixels == pytest.approx(alone * scale, abs=width / 1000 + 0.1)  # places are rounded to 0.1 %


def test_a_long_table_is_folded(chromium: Any, reports: dict[str, Path], screenshots: Path) -> None:
    for size in SIZES:
        with opened(chromium, reports["big"], size) as page:
            rows = page.locator("#q0 .costs tbody tr:not(.layer)")
            assert rows.count() == 10 + 121
            assert sum(row.is_visible() for row in rows.all()) == 10
            page.locator("#q0 > details > summary").click()
            assert sum(row.is_visible() for row in rows.all()) == 10 + 121
            assert page.evaluate(OVERFLOWING) == []
            page.locator("#quantization").screenshot(path=screenshots / f"big-unfolded-{size}.png")


def test_attention_maps_show_the_weights(chromium: Any, reports: dict[str, Path]) -> None:
    attention = samples.attention_maps()[0]
    with opened(chromium, reports["encoder"]) as page:
        for head in range(attention.eager.shape[0]):
            for whose, weights in (("eager", attention.eager[head]), ("ONNX", attention.onnx[head])):
                alpha = page.evaluate(
                    """async alt => {
                      const image = document.querySelector(`#maps details img[alt="${alt}"]`); await image.decode();
                      const canvas = document.createElement('canvas');
                      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                      const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
                      const data = [...pen.getImageData(0, 0, canvas.width, canvas.height).data];
                      return data.filter((_, i) => i % 4 == 3);
                    }""",
                    f"head {head + 1}, {whose}",
                )
                shown = np.array(alpha).reshape(weights.shape) / 255
                # half of one of 255 steps
                np.testing.assert_allclose(shown, weights / attention.eager[head].max(), atol=0.5 / 255 + 1e-6)


def test_on_paper_everything_is_open_and_light(chromium: Any, reports: dict[str, Path], screenshots: Path) -> None:
    with opened(chromium, reports["encoder"], scheme="dark") as page:
        assert not page.locator("#g0 details .chart").is_visible()
        page.emulate_media(media="print")
        assert page.locator("#g0 details .chart").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.set_viewport_size({"width": 700, "height": 1000})  # A4 between its margins
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), page.evaluate(OVERFLOWING)
        page.screenshot(path=screenshots / "encoder-paper.png", full_page=True)
        assert [entry for entry in page.evaluate(CONTRASTS) if entry[0] < 4.5] == []
