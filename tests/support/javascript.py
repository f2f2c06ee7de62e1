"""Node, what the tests of JavaScript run with, and a server that a browser reads it from."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
TESTS, RUNTIME = ROOT / "tests" / "js", ROOT / "js"
OLDEST_NODE = 20  # has WebCrypto without a flag


def node_folder(place: Path) -> Path:
    """A folder with node_modules and tfm-runtime as npm installs it; a test that needs it is skipped without Node.

    What is downloaded stays in a cache, by what is asked for: $TFM_NODE_CACHE, else ~/.cache/tfm-export.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is missing: install nodejs and npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node {version} is too old: {OLDEST_NODE} or newer is wanted")
    modules = _installed() / "node_modules"
    own = place / "node_modules"
    own.mkdir(parents=True)
    for name in modules.iterdir():
        (own / name.name).symlink_to(name)
    for path in ("package.json", "tsconfig.json", "src"):
        target = own / "tfm-runtime" / path
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (RUNTIME / path).is_dir() else shutil.copyfile
        copy(RUNTIME / path, target)
    for script in ("driver.mjs", "node.mjs", "page.html", "package.json"):
        shutil.copyfile(TESTS / script, place / script)
    return place


def cache() -> Path:
    """Where what npm gave is kept from run to run."""
    folder = Path(os.environ.get("TFM_NODE_CACHE") or Path.home() / ".cache" / "tfm-export")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _installed() -> Path:
    wanted = (TESTS / "package.json").read_bytes()
    folder = cache() / f"node-{hashlib.sha256(wanted).hexdigest()[:16]}"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "package.json").write_bytes(wanted)
            # Else onnxruntime-node's own script fetches what is for GPUs.
            environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
            command = ["npm", "install", "--loglevel=error", "--no-audit", "--no-fund"]
            found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if found.returncode:
                not_installed("what tests/js/package.json names", found.stderr)
            (folder / "done").touch()
    return folder


def not_installed(what: str, said: str) -> NoReturn:
    """End a test for which npm failed: it is skipped where no registry is reached, and fails where names are wrong."""
    message = f"npm could not install {what}: {said.strip()[-300:]}"
    if "ETARGET" in said or "E404" in said:
        pytest.fail(message)
    pytest.skip(message)


def run_node(folder: Path, content: Mapping[str, Any]) -> list[Any]:
    """Have `node.mjs` do tasks, in a process of its own."""
    tasks = folder / f"tasks-{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}.json"
    tasks.write_text(json.dumps(content))
    command = ["node", "node.mjs", str(tasks)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout)


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }
    routes: Mapping[str, Path]

    def translate_path(self, path: str) -> str:
        plain = path.partition("?")[0].partition("#")[0]
        for start, folder in self.routes.items():
            if plain.startswith(start):
                return str(folder / plain.removeprefix(start).lstrip("/"))
        return str(self.routes["/"] / "nothing")

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(routes: Mapping[str, Path]) -> Iterator[str]:
    """Serve folders, each under the beginning of a path, the longest first; gives the address."""
    ordered = dict(sorted(routes.items(), key=lambda item: -len(item[0])))
    handler = type("Handler", (_Handler,), {"routes": ordered})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
