"""How a page is written: its template, the version of what it is drawn from, and one file that refers to no other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from tfm.bundle import write_whole
from tfm.errors import BundleError


def make_environment(*folders: Path) -> jinja2.Environment:
    """Templates of some folders and of this one: text is escaped, and a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def check_schema(path: Path, content: Mapping[str, Any], schemas: Sequence[int], refusal: str) -> None:
    """Refuse content of another version than a page is drawn from.

    Args:
        path: The page, for the message.
        content: JSON values with their "schema".
        schemas: The versions that are known.
        refusal: The message behind the page's name, with {known} and {found}.

    Raises:
        BundleError: It is of another version.
    """
    found = content.get("schema")
    if found not in schemas:
        raise BundleError(f"{path.name} is " + refusal.format(known=" or ".join(map(str, schemas)), found=repr(found)))


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Write a page from a template: no network, no script, no font."""
    write_whole(path, make_environment(template.parent).get_template(template.name).render(values))
