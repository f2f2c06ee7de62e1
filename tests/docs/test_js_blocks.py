"""Every block of JavaScript is a module that runs under Node, beside the bundles that it names."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

BUNDLES = {"all-MiniLM-L6-v2": "minilm-int8", "g2p": "g2p-int8", "llama": "llama-int8"}


def test_every_block_runs(page: str, blocks: list[Any], request: pytest.FixtureRequest) -> None:
    scripts = [block for block in blocks if block.language == "js"]
    if not scripts:
        return
    node: Path = request.getfixturevalue("node")
    packs: Path = request.getfixturevalue("packs")
    for name, pack in BUNDLES.items():
        if not (node / name).exists():
            (node / name).symlink_to(packs / pack)
    for block in scripts:
        script = node / f"{re.sub(r'[^a-z]', '-', page)}-{block.line}.mjs"
        script.write_text(block.source, encoding="utf-8")
        found = subprocess.run(["node", script], cwd=node, capture_output=True, text=True, check=False, timeout=120)
        assert found.returncode == 0, f"{block.place}: {found.stderr[-800:]}"


def test_there_are_blocks_to_run(find_blocks: Any) -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "other-runtimes.md").read_text(encoding="utf-8")
    assert len([block for block in find_blocks("x", text) if block.language == "js"]) >= 4
