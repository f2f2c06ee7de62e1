"""The lowest onnxruntime that opens a bundle's graphs: what its manifest says, and whether the one here is enough.

Opening a graph on one that is too old fails in onnxruntime's own words, which do not say what to do about it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import onnxruntime

from tfm.errors import BundleError

from .checked_json import CheckedJson

if TYPE_CHECKING:
    from .manifest import Manifest

OLDEST = "1.24.1"
"""The oldest onnxruntime that tfm-export is tested with."""

_NUMBERS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}")

# What onnxruntime, 1.23 to 1.32, says of an IR version, an opset, an operator, an attribute, an input or a type of one,
# and a kernel that it does not have; other domains' operators come from libraries that no newer onnxruntime brings.
_UNKNOWN = re.compile(
    r"Unsupported model IR version"
    r"|only \*guarantees\* support for models stamped with official released onnx opset versions"
    r"|No Op registered for \w+ with domain_version of"
    r"|Fatal error: (com\.microsoft|ai\.onnx|):\w+\(-?\d+\) is not a registered function/op"
    r"|Unrecognized attribute: \w+ for operator"
    r"|has (in|out)put size \d+ not in range"
    r"|of input parameter \(.*\) of operator \(\w+\) in node \(.*\) is invalid"
    r"|Could not find an implementation for "
)

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


def check_onnxruntime(manifest: "Manifest", precision: str) -> None:
    """Refuse to open graphs for which the onnxruntime here is too old.

    Args:
        manifest: The bundle's.
        precision: Of the graphs.

    Raises:
        BundleError: It is.
    """
    for role in manifest.graphs[precision]:
        if why := too_old(manifest, precision, role):
            raise BundleError(why)


def too_old(manifest: "Manifest", precision: str, role: str) -> str:
    """Say that the onnxruntime here is too old for one graph, and what to do; "" where it is not, or nobody knows."""
    lowest = manifest.requires.get(precision, {}).get(role)
    if lowest is None or not is_older(onnxruntime.__version__, lowest):
        return ""
    return (
        f"{manifest.folder / manifest.graphs[precision][role]} needs onnxruntime >= {lowest}, and this is "
        f"{onnxruntime.__version__}: {upgrade()}"
    )


def lowest_needed(manifest: "Manifest") -> dict[str, str]:
    """Give the lowest onnxruntime that opens all graphs of a precision, by precision; nothing where nobody knows."""
    said = {name: manifest.requires.get(name, {}) for name in manifest.graphs}
    return {name: newest(roles.values()) for name, roles in said.items() if roles}


def newest(versions: Iterable[str]) -> str:
    """Give the newest of some versions."""
    return max(versions, key=_parts)


def is_older(version: str, than: str) -> bool:
    """Tell whether a version is older than another; what is not a version is older than none."""
    return bool(_NUMBERS.match(version)) and _parts(version) < _parts(than)


def newer_needed(error: BaseException) -> str:
    """Advise what to do where onnxruntime says, by an error, that it does not know what a graph is made of; else ""."""
    if not _UNKNOWN.search(str(error)):
        return ""
    return f"it does not know all that this graph is made of, but a newer one may: {upgrade()}; "


def upgrade() -> str:
    """Give the command that makes onnxruntime newer, by the name of the package that it came in."""
    from importlib import metadata  # 10 ms that only an error needs

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return f"pip install -U {name}"
    return "pip install -U onnxruntime"


def _version(value: CheckedJson) -> str:
    if not _NUMBERS.fullmatch(value.text()):
        raise value.error('a version, as "1.25.0"')
    return value.text()


def _parts(version: str) -> tuple[int, ...]:
    """Take a version's numbers apart; what follows them, as in "1.33.0.dev20260101", is not looked at."""
    found = _NUMBERS.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    return tuple([*numbers, 0, 0, 0, 0][:4])
