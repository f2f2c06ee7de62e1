"""A headless Chromium, and the pages that are looked at in it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from tfm.report import write_report

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; a test that needs it is skipped where it is missing, and says what to install.

    While it runs, so does its event loop in this thread, and none of another test could.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((found for name in names if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are left to be looked at: $TFM_SCREENSHOTS, else a temporary folder."""
    chosen = os.environ.get("TFM_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of each sample certificate."""
    folder = tmp_path_factory.mktemp("reports")
    curves = samples.activation_curves()
    made = {
        "encoder": (samples.encoder(), samples.attention_maps(), curves[:3]),
        "failing": (samples.failing(), samples.attention_maps(2), curves),
        "encoder_decoder": (samples.encoder_decoder(), samples.attention_maps(3, 4), curves[:1]),
        "long_names": (samples.long_names(), samples.attention_maps(1, 2, ("x" * 90, "y")), curves[:1]),
        "null_everything": (samples.null_everything(), [], []),
        "big": (samples.big(), samples.attention_maps(30, 9), curves[:3]),
    }
    for name, (certificate, maps, drawn) in made.items():
        write_report(folder / f"{name}.html", certificate, maps=maps, curves=drawn)
    return {name: folder / f"{name}.html" for name in made}
