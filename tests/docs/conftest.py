"""The code blocks of README.md, CONTRIBUTING.md and docs/, and a folder in which they can be run.

A fenced block that is not to be run says why in a comment above it: `<!-- not run: the search takes minutes -->`.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from tokenizers import Regex, normalizers

from tests.support import toys

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]

_FENCES = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))
_MARK = re.compile(r"<!-- not run:(?P<reason>[^\n]*?)-->\s*\Z")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Of its first line of code, from 1."""
    language: str
    source: str
    not_run: str | None = None
    """Why it is not run; "" where the page gives no reason; None: it is run."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """Find every fenced block, marked or not."""
    document = Document(text, page)
    found = []
    for region in _FENCES(document):
        mark = _MARK.search(text, 0, region.start)
        line = text.count("\n", 0, region.start) + 2
        not_run = None if mark is None else mark["reason"].strip()
        found.append(Block(page, line, region.lexemes["language"].strip(), str(region.lexemes["source"]), not_run))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for `page` every page in turn."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES)


@pytest.fixture
def blocks(page: str) -> list[Block]:
    return blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def find_blocks() -> Any:
    return blocks_of


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Path:
    """A folder with what the pages name: bundles built by hand, a checkpoint and lines of text."""
    from tfm.model import save_checkpoint

    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        # the pages' texts are longer than what the other tests give to these bundles
        patch.setattr(toys, "LIMIT", 4096)
        patch.setattr(toys, "tokenizer", _reading_any_text(toys.tokenizer))
        _write_bundles(folder)
    (folder / "build").mkdir()
    os.symlink(folder / "g2p.tfm", folder / "build" / "g2p.tfm")
    save_checkpoint(make_model(kind="encoder"), folder / "model.pt")
    (folder / "lines.txt").write_text("The first line.\nThe second.\n", encoding="utf-8")
    return folder


@pytest.fixture
def workplace(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shelf, as the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(shelf, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def _write_bundles(folder: Path) -> None:
    for name, kind in (
        ("all-MiniLM-L6-v2", "encoder"),
        ("model", "encoder"),
        ("g2p", "copier"),
        ("SmolLM2-135M-Instruct", "counter"),
    ):
        toys.write_bundle(folder / f"{name}.tfm", kind)
    toys.add_golden(folder / "model.tfm")
    chats = folder / "SmolLM2-135M-Instruct.tfm"
    (chats / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[:1] }}{% endfor %}")
    toys.write_manifest(chats, json.loads((chats / "manifest.json").read_text()))


def _reading_any_text(make_tokenizer: Callable[[bool], Any]) -> Callable[[bool], Any]:
    """Make tokenizers whose few letters stand for all others too."""

    def make(by_character: bool) -> Any:
        made = make_tokenizer(by_character)
        others = Regex("[^a-h]") if by_character else Regex(r"[^a-h\s]")
        made.normalizer = normalizers.Replace(others, "b")
        return made

    return make
