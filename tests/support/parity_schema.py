"""Where a certificate, or another JSON, and its page of the docs do not agree."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
TYPES = {
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
FIGURES = {"count": "integer", "max_abs": "number or null", "nmse": "number or null", "snr_db": "number or null"}
FIGURES |= {"cosine": "number or null", "scale": "number or null"}


def documented(page: str) -> dict[str, str]:
    """Field → type, the figures written out."""
    found: dict[str, str] = {}
    for line in (DOCS / page).read_text(encoding="utf-8").split("<!-- fields -->")[1].splitlines():
        if match := re.match(r"\| `([^`]+)` \| ([^|]+) \| \S", line):
            field, kind = match.groups()
            assert field not in found, field
            if kind == "*figures*":
                found |= {f"{field.removesuffix('*')}{name}": type_ for name, type_ in FIGURES.items()}
            else:
                found[field] = kind
    return found


def fields(value: Any, known: dict[str, str], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a certificate and its value; a key of a free object is `*`, and so is a list's index `[]`."""
    if at in known:
        yield at, value
        if not any(field.startswith((f"{at}.", f"{at}[]")) for field in known):
            return  # an object whose own line says what is in it
    if isinstance(value, dict):
        free = any(field.startswith(f"{at}.*") for field in known)
        for key, inner in value.items():
            yield from fields(inner, known, f"{at}.{'*' if free else key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, known, f"{at}[]")
    elif at not in known:
        yield at, value


def problems(certificate: Mapping[str, Any], page: str = "parity.md") -> list[str]:
    """What a certificate and the page do not agree in."""
    known, seen, wrong = documented(page), set(), []
    for field, value in fields(certificate, known):
        seen.add(field)
        if field not in known:
            wrong.append(f"{field} is not documented")
        elif not any(TYPES[kind](value) for kind in known[field].split(" or ")):
            wrong.append(f"{field} is {value!r}, documented as {known[field]}")
    missing = [field for field in known if field not in seen and not field.endswith("[]")]  # a list may be empty
    if certificate.get("quantization") == {}:
        missing = [field for field in missing if not field.startswith("quantization.")]
    return wrong + [f"{field} is documented, and not there" for field in missing]
