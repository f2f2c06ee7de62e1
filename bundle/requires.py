"""The lowest onnxruntime that opens each graph of a bundle, as its manifest says it, and how versions compare."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .checked_json import CheckedJson

if TYPE_CHECKING:
    from .manifest import Manifest

OLDEST = "1.24.1"
"""The oldest onnxruntime that tfm-export is tested with."""

_NUMBERS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}")

Requires = Mapping[str, Mapping[str, str]]
"""Precision → role → version."""


def read_requires(top: CheckedJson) -> Requires:
    """Read the lowest onnxruntime of every graph from a manifest; an older tfm-export wrote none.

    Args:
        top: The manifest.

    Raises:
        BundleError: It is said in another form.
    """
    if "requires" not in top.fields():
        return {}
    requires = top["requires"]
    if requires.fields().keys() != {"onnxruntime"}:
        raise requires.error("what is needed of onnxruntime alone")
    said = requires["onnxruntime"].fields()
    return {name: {role: _version(value) for role, value in roles.fields().items()} for name, roles in said.items()}


def lowest_needed(manifest: "Manifest") -> dict[str, str]:
    """Give the lowest onnxruntime that opens all graphs of a precision, by precision; nothing where nobody knows."""
    said = {name: manifest.requires.get(name, {}) for name in manifest.graphs}
    return {name: newest(roles.values()) for name, roles in said.items() if roles}


def newest(versions: Iterable[str]) -> str:
    """Give the newest of some versions."""
    return max(versions, key=_parts)


def is_older(version: str, than: str) -> bool:
    """Tell whether a version is older than another; what is not a version is older than none."""
    # By numbers: as text, "1.9" would be newer than "1.24".
    return bool(_NUMBERS.match(version)) and _parts(version) < _parts(than)


def _version(value: CheckedJson) -> str:
    if not _NUMBERS.fullmatch(value.text()):
        raise value.error('a version, as "1.25.0"')
    return value.text()


def _parts(version: str) -> tuple[int, ...]:
    """Take a version's numbers apart; what follows them, as in "1.33.0.dev20260101", is not looked at."""
    found = _NUMBERS.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    # Filled up, so that "1.25" is as new as "1.25.0".
    return tuple([*numbers, 0, 0, 0, 0][:4])
