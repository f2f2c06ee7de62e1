"""The server's page, at the width of a phone and of a desk: a person tries each task by hand."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'tfm-export[serve]'")

from tests.serve.conftest import bundles, every_bundle  # noqa: E402, F401  # fixtures
from tfm.serve import ServeOptions, create_app  # noqa: E402


@pytest.fixture(scope="module")
def address(every_bundle: list[Path]) -> Iterator[str]:  # noqa: F811
    """A server in a thread: its signals are the tests' own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(ServeOptions(bundles=every_bundle, threads=1, api_keys=["key"]))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("width", [360, 1200])
def test_each_task_by_hand(chromium: Any, address: str, width: int) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".error")
    assert "a key is missing or wrong" in page.inner_text("#output")
    page.fill("#key", "key")
    page.press("#key", "Tab")
    page.wait_for_selector("#task option", state="attached")

    def run(model: str, task: str, text: str, query: str = "") -> str:
        page.select_option("#model", model)
        page.select_option("#task", task)
        assert page.is_visible("#query") == (task == "rank")
        if query:
            page.fill("#query", query)
        page.fill("#text", text)
        page.click("#go")
        page.wait_for_function("!document.getElementById('go').disabled")
        return str(page.inner_text("#output"))

    assert run("embedder", "embed", "a b\na b\nh").split()[:6] == ["a", "b", "1.000", "a", "b", "1.000"]
    assert run("reranker", "rank", "a town\nthe capital", "who lives there").count("0.") == 2
    assert "paris →" in run("labels", "classify", "paris")
    assert run("copier", "generate", "abc") == "a b c"
    assert len(run("chat", "chat", "abc")) > 3
    assert "takes at most" in run("chat", "generate", "a" * 999)
    assert page.locator(".error").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"{address}/docs")
    page.wait_for_selector("h2")
    assert "POST /v1/embeddings" in page.inner_text("main")
    assert errors == []
    page.close()
