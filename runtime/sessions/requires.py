"""Whether the onnxruntime here is new enough for a bundle's graphs, and what to do where it is not.

Opening a graph on one that is too old fails in onnxruntime's own words, which do not say what to do about it.
"""

import re
from typing import TYPE_CHECKING

import onnxruntime

from tfm.bundle import is_older
from tfm.errors import BundleError

if TYPE_CHECKING:
    from tfm.bundle import Manifest

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


def newer_needed(error: BaseException) -> str:
    """Advise what to do where onnxruntime says, by an error, that it does not know what a graph is made of; else ""."""
    if not _UNKNOWN.search(str(error)):
        return ""
    return f"it does not know all that this graph is made of, but a newer one may: {upgrade()}; "


def upgrade() -> str:
    """Give the command that makes onnxruntime newer, by the name of the package that it came in."""
    from importlib import metadata  # 10 ms that only an error needs

    # Both packages bring the same module, so it does not tell them apart.
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return f"pip install -U {name}"
    return "pip install -U onnxruntime"
