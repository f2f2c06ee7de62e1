"""examples/web in headless Chromium: two models answer while one types, at the width of a phone and of a desktop."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.javascript import serving
from tests.support.pages import CONTRASTS, OVERFLOWING, SCHEMES

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web"
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def models(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("minilm", "g2p"):
        shutil.copytree(packs / f"{kind}-int8", folder / kind)
    return folder


@contextlib.contextmanager
def opened(
    chromium: Any, node: Path, models: Path, size: str = "desktop", scheme: str = "light"
) -> Iterator[tuple[Any, list[str]]]:
    width, height = SIZES[size]
    with serving({"/": EXAMPLE, "/node_modules/": node / "node_modules", "/models/": models}) as address:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page, wrong = context.new_page(), []
        page.on("console", lambda message: _is_wrong(message) and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((address, "data:")) or wrong.append(asked.url))
        page.set_default_timeout(60_000)
        page.goto(f"{address}/index.html")
        yield page, wrong
        context.close()


def _is_wrong(message: Any) -> bool:
    # Chromium's own word that there is no GPU, which the page has asked for.
    return message.type in ("error", "warning") and message.text != "No available adapters."


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_page_answers_and_fits(
    chromium: Any, node: Path, models: Path, screenshots: Path, size: str, scheme: str
) -> None:
    with opened(chromium, node, models, size, scheme) as (page, wrong):
        page.locator("#search.ready .found li").first.wait_for()
        assert page.locator("#speech .status").inner_text() == (
            "int8 on wasm; as it was exported (int8 encoder, int8 decoder)"
        )
        page.locator("#words").fill("onnx naïve")
        page.locator("#speech dd").nth(1).locator("span").nth(2).wait_for()
        assert page.locator("#speech dd").first.locator("span").all_inner_texts() == ["AA1", "N", "EH2", "K", "S"]
        page.locator("#query").fill("The museum is closed on Mondays.")
        page.locator(".score", has_text="1.00").wait_for()
        first = page.locator("#search .found li").first
        assert first.inner_text().split("\n") == ["The museum is closed on Mondays.", "1.00"]
        page.screenshot(path=screenshots / f"example-web-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert page.evaluate(OVERFLOWING) == []
        assert [entry for entry in page.evaluate(CONTRASTS) if entry[0] < 4.5] == []
        assert wrong == []


def test_an_altered_model_is_told_of_and_the_other_answers(
    chromium: Any, node: Path, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models")
    path = tmp_path / "models" / "minilm" / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"[UNK]", b"[UNC]", 1))
    with opened(chromium, node, tmp_path / "models") as (page, wrong):
        status = page.locator("#search .status.wrong")
        status.wait_for()
        assert "tokenizer.json was altered: its SHA-256 is not the manifest's" in status.inner_text()
        assert page.locator("#query").is_disabled()
        assert page.locator("#speech dd span").count() > 8
        assert wrong == []
