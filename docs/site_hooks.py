"""What the site does differently from the files that it is made of, which are read on their own as well.

The front page is README.md. Links to files of the repository that are no pages lead nowhere on the site: their text
stays, and whether the file is there is checked all the same.
"""

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)]*)?\)")
LOG = logging.getLogger("mkdocs.hooks.site_hooks")  # under mkdocs, so that --strict counts its warnings


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the README into the front page, and unlink what is outside docs/.

    Args:
        markdown: The page's text.
        page: The page, of mkdocs.

    Returns:
        The text to render.
    """
    here = ROOT / "docs" / page.file.src_uri
    if page.file.src_uri == "index.md":
        here = ROOT / "README.md"
        markdown = here.read_text(encoding="utf-8").replace("](docs/", "](")
    return LINK.sub(lambda link: _on_the_site(link, here, page.file.src_uri), markdown)


def _on_the_site(link: re.Match[str], here: Path, page: str) -> str:
    """Give a link as the site has it; one into the repository, but not into docs/, is its text alone."""
    target = (here.parent / link["target"]).resolve()
    if here.name == "README.md" and not target.exists():  # it was in docs/, and is seen from there now
        target = ROOT / "docs" / link["target"]
    if not target.exists():
        LOG.warning("%s links to %s, which is not there", page, link["target"])
    if not target.is_relative_to(ROOT / "docs"):
        return link["text"]
    return link[0]
