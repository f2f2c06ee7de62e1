"""tfm-runtime and transformers.js in headless Chromium: what Python gives, on WebAssembly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.javascript import serving
from tests.support.js_tasks import check_others, check_packs, others_of, tasks_of
from tests.support.refusals import CASES, check_refusals, damaged, tasks_of_refusals


@pytest.fixture(scope="module")
def address(node: Path, packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Where a server gives out node_modules, the packs, and a folder for more of them."""
    more = tmp_path_factory.mktemp("more")
    with serving({"/": node, "/node_modules/": node / "node_modules", "/packs/": packs, "/more/": more}) as address:
        yield address, more


@pytest.fixture
def page(chromium: Any, address: tuple[str, Path]) -> Iterator[Any]:
    page = chromium.new_context().new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(120_000)
    page.goto(f"{address[0]}/page.html")
    page.wait_for_function("window.ready")
    yield page
    page.context.close()
    assert wrong == []


def test_all_tasks_give_what_python_gives(page: Any, address: tuple[str, Path], packs: Path) -> None:
    found = page.evaluate("tasks => window.perform(tasks)", tasks_of(f"{address[0]}/packs"))
    check_packs(found, packs, "wasm")


def test_transformersjs_opens_the_same_packs(page: Any, packs: Path) -> None:
    check_others(page.evaluate("tasks => window.performOther(tasks)", others_of(packs)), packs)


def test_what_is_damaged_is_refused_in_pythons_words(page: Any, address: tuple[str, Path]) -> None:
    place, more = address
    for case in CASES:
        damaged(case, more / case.name)
    found = page.evaluate("tasks => window.perform(tasks)", tasks_of_refusals(f"{place}/more"))
    check_refusals(found, f"{place}/more")


def test_progress_and_an_own_fetch(page: Any, address: tuple[str, Path]) -> None:
    """Bytes are told of while they come, and an app may fetch files as it likes."""
    told, asked = page.evaluate(
        """async (bundle) => {
          const { load } = await import("tfm-runtime");
          const ort = await import("onnxruntime-web");
          const told = [], asked = [];
          const own = (url) => { asked.push(url.split("/").at(-1)); return fetch(url); };
          await load(bundle, { ort, fetch: own, onProgress: (one) => told.push(one) });
          return [told, asked];
        }""",
        f"{address[0]}/packs/llama-int8",
    )
    assert "manifest.json" in asked
    assert "model_quantized.onnx" in asked
    assert [one["loaded"] for one in told] == sorted(one["loaded"] for one in told)
    assert told[-1]["loaded"] == told[-1]["total"] > 10_000
