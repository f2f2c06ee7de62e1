"""The pages as a whole: their links, their length, and the site that is made of them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
CODE_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    return [link["target"] for link in LINK.finditer(CODE_FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")))]


def headings(file: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site make them of its headings."""
    text = CODE_FENCE.sub("", file.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere(page: str) -> None:
    """Also into the repository, where the site has no page."""
    here = (ROOT / page).parent
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = here / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which is not there"
        assert not anchor or anchor in headings(file), f"{page} links to {target}, and that page has no such heading"


def test_every_file_that_is_named_for_contributors_is_there() -> None:
    text = CODE_FENCE.sub("", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", text)
    assert len(named) >= 15
    assert [name for name in named if not (ROOT / name).exists() and not name.startswith("build/")] == []


def test_the_readme_is_read_standing() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    [export] = [block for block in CODE_FENCE.findall(text) if "$ .venv/bin/tfm-export" in block]
    assert len(export.splitlines()) - 3 <= 40  # the fences and the command aside


def test_the_pictures_are_small() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000


def test_code_is_fenced(page: str) -> None:
    """Indented code would be seen by no test."""
    text = CODE_FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"^:::.*\n(    .*\n)*", "", text, flags=re.MULTILINE)
    assert not re.search(r"^(    |\t)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: a link, a page or a docstring that is wrong fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_built_of_every_page(site: Path) -> None:
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in ROOT.glob("docs/**/*.md")}
    built = {str(page.parent.relative_to(site)) for page in site.glob("**/index.html")} - {"."}
    assert built == pages - {"index"}
    assert "is proved to be the same function" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("face", ["tfm", "tfm.errors"])
def test_the_reference_has_every_name_of_the_top(site: Path, face: str) -> None:
    names = set(importlib.import_module(face).__all__) - {"__version__"}
    text = (site / "api" / face.rpartition(".")[2] / "index.html").read_text(encoding="utf-8")
    assert {name for name in names if f'id="{face}.{name}"' not in text} == set()


def test_the_reference_has_every_name_that_a_page_imports(site: Path, find_blocks: Any) -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    blocks = [block for page in pages for block in find_blocks(page.name, page.read_text(encoding="utf-8"))]
    source = "".join(block.source for block in blocks if block.language == "python")
    imported = re.findall(r"^from tfm\.(\w+)[\w.]* import (.+)$", source, re.MULTILINE)
    wanted = {(room, name) for room, names in imported for name in names.split(", ")}
    assert len(wanted) >= 8
    shown = {room: (site / "api" / room / "index.html").read_text(encoding="utf-8") for room, _ in wanted}
    assert [entry for entry in sorted(wanted) if f'.{entry[1]}"' not in shown[entry[0]]] == []


def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(https?://[^\"]+)", text)
    assert loaded == []
