"""The page of a study in headless Chromium: within the window, readable, and its marks where the axis says."""

from pathlib import Path
from typing import Any

import pytest
from activation_study.html import write_study
from activation_study.page import page_content

from tests.benchmarks.activation_study.study_samples import results
from tests.support.pages import CONTRASTS, OVERFLOWING, opened

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}

CLIPPED = """
[...document.querySelectorAll('.study text, .panels text, .axis span:not(.heard), .study td, .study th, .all td, .all th')]
  .filter(e => e.checkVisibility() && !e.closest('.heard'))
  .map(e => [e.closest('.card').getBoundingClientRect(), e.getBoundingClientRect(), e.textContent.trim()])
  .filter(([card, box]) => box.width > 1 && (box.left < card.left || box.right > card.right + 0.5))
  .map(([, , text]) => text)
"""  # noqa: E501

# Texts of an axis or of a row that lie upon each other.
OVERLAPPING = """
[...document.querySelectorAll('.axis, .panel')].flatMap(axis => {
  const boxes = [...axis.querySelectorAll('span:not(.heard), text')].map(e => [e.getBoundingClientRect(), e.textContent]);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b]) =>
    a.left < b.right - 0.5 && b.left < a.right - 0.5 && a.top < b.bottom - 2 && b.top < a.bottom - 2
  ).map(([, other]) => one + ' | ' + other));
})
"""  # noqa: E501


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Pages and their contents: a whole study, and a short one of a single seed."""
    folder = tmp_path_factory.mktemp("studies")
    contents = {"study": page_content(results()), "quick": page_content(results(seeds=1, steps=25))}
    for name, content in contents.items():
        write_study(folder / f"{name}.html", content)
    return {name: (folder / f"{name}.html", content) for name, content in contents.items()}


@pytest.mark.parametrize(
    ("size", "scheme", "name"),
    [("phone", "light", "study"), ("desktop", "dark", "study"), ("desktop", "light", "quick")],
)
def test_the_page_fits_and_can_be_read(
    chromium: Any, studies: dict[str, Any], screenshots: Path, size: str, scheme: str, name: str
) -> None:
    with opened(chromium, studies[name][0], SIZES[size], scheme) as page:
        page.screenshot(path=screenshots / f"{name}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), page.evaluate(OVERFLOWING)
        assert page.evaluate(OVERFLOWING) == []
        assert page.evaluate(CLIPPED) == []
        assert page.evaluate(OVERLAPPING) == []
        found = page.evaluate(CONTRASTS)
        assert len(found) > 500
        assert [entry for entry in found if entry[0] < 4.5] == []
        answer = page.locator(".answer").bounding_box()
        assert answer["y"] + answer["height"] < SIZES[size][1] / 2


@pytest.mark.parametrize("size", SIZES)
def test_dots_and_whiskers_lie_where_the_axis_says(chromium: Any, studies: dict[str, Any], size: str) -> None:
    path, content = studies["study"]
    with opened(chromium, path, SIZES[size]) as page:
        table = page.locator("table.errors")
        ticks = table.evaluate(
            """e => { const svg = e.querySelector('.bars svg').getBoundingClientRect();
              const labels = [...e.querySelectorAll('.axis span:not(.heard)')].map(s => parseFloat(s.textContent));
              return [svg.left, svg.right, labels[0], labels[labels.length - 1]] }"""
        )
        left, right, low, high = ticks
        rows = table.evaluate(
            """e => [...e.querySelectorAll('tbody tr')].map(row => {
              const dot = row.querySelector('circle').getBoundingClientRect();
              const line = row.querySelector('.whisker').getBoundingClientRect();
              return [row.querySelector('th').textContent, dot.left + dot.width / 2, line.left, line.right] })"""
        )
        assert len(rows) == len(content["activations"]) == 11
        for (name, dot, start, end), one in zip(rows, content["activations"], strict=True):
            assert name == one["activation"]
            value = one["errors"]["phoneme_error"]
            for found, key in ((dot, "mean"), (start, "low"), (end, "high")):
                share = (100 * value[key] - low) / (high - low)
                assert found == pytest.approx(left + share * (right - left), abs=1)  # rounded to 0.1 % of the width


def test_the_tools_see_what_is_wrong(chromium: Any, studies: dict[str, Any]) -> None:
    with opened(chromium, studies["study"][0], "phone") as page:
        page.add_style_tag(content=".axis span{left:40%!important}.study td{margin-left:-50px}")
        assert page.evaluate(OVERLAPPING) != []
        assert page.evaluate(CLIPPED) != []
