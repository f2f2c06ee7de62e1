"""The page of `tfm activations` in headless Chromium: within the window, quiet, readable, and the curves are seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.study.activations.test_activations_page import CONTENT, activation
from tests.support.pages import CONTRASTS, OVERFLOWING, SCHEMES, opened
from tfm.report import ActivationCurve
from tfm.study.activations import write_activations

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
NAMES = ("relu", "gelu_tanh", "swiglu")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three activations, one of a long formula."""
    x = np.linspace(-6, 6, 241)
    curves = [
        ActivationCurve(
            name=name, x=x, y=np.maximum(x, 0), error=np.abs(np.sin(x)) * 1e-7, limit=1e-6, derivative=(x > 0) * 1.0
        )
        for name in NAMES
    ]
    values = [activation(name, formula="½x (1 + tanh(√(2/π) (x + 0.044715 x³)))") for name in NAMES]
    path = tmp_path_factory.mktemp("page") / "activations.html"
    warnings = ["the machine was busy when this began: a load of 3.9 on 2 usable cores"]
    write_activations(path, CONTENT | {"activations": values, "warnings": warnings}, curves)
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_the_page_fits_and_can_be_read(
    chromium: Any, page_file: Path, screenshots: Path, size: str, scheme: str
) -> None:
    with opened(chromium, page_file, SIZES[size], scheme) as page:
        page.screenshot(path=screenshots / f"activations-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("innerWidth") == SIZES[size][0]
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert page.evaluate(OVERFLOWING) == []
        found = page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert [entry for entry in found if entry[0] < 4.5] == []


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_function_and_derivative_are_seen_and_told_apart(chromium: Any, page_file: Path, size: str) -> None:
    with opened(chromium, page_file, SIZES[size]) as page:
        for name in NAMES:
            card = page.locator(f"#a-{name}")
            boxes = {style: card.locator(f"path.{style}").bounding_box() for style in ("curve", "derivative", "error")}
            assert boxes["derivative"]["width"] == pytest.approx(boxes["curve"]["width"], abs=2)
            assert boxes["derivative"]["width"] > 200
            # of the axis from 0 to 6, the derivative takes the lowest sixth
            assert boxes["derivative"]["height"] == pytest.approx(boxes["curve"]["height"] / 6, abs=3)
            bottom = boxes["curve"]["y"] + boxes["curve"]["height"]
            assert boxes["error"]["y"] >= bottom - 1
        stroke = "style => getComputedStyle(document.querySelector(`path.${style}`)).stroke"
        assert len({page.evaluate(stroke, style) for style in ("curve", "derivative", "error")}) == 3


def test_a_row_leads_to_its_card(chromium: Any, page_file: Path) -> None:
    with opened(chromium, page_file, SIZES["phone"]) as page:
        page.locator("table a", has_text="swiglu").click()
        top = page.locator("#a-swiglu").bounding_box()["y"]
        assert -1 <= top < SIZES["phone"][1]
