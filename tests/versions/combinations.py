"""What is run together: the oldest that pyproject.toml declares, the newest, and some between; on each Python."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import tomllib

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""Those that every package of the base install has wheels for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """One environment.

    Attributes:
        name: Of its folder.
        python: Version of Python.
        pins: Package → version; what is not named is the newest.
        extra: Of pyproject.toml: "text"; "quantize", with which a bundle is quantized too; or "export", with which a
            checkpoint is exported too, and which brings torch.
    """

    name: str
    python: str
    pins: Mapping[str, str]
    extra: str = "text"

    def requirements(self) -> list[str]:
        """As pip takes them."""
        return [f"{name}=={version}" for name, version in self.pins.items()]


def _declared(*extras: str) -> dict[str, str]:
    """The lower bounds of the base install and of some extras, as pins."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    found = (re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", one) for one in listed)  # torch's has an upper one too
    return {match[1]: match[2] for match in found if match}


OLDEST = _declared("text")
_QUANTIZE = _declared("text", "quantize")
_EXPORT = _declared("text", "quantize", "export") | {"onnxruntime": "1.25.0"}

_FIRST_ON_313 = {"numpy": "2.1.0", "tokenizers": "0.20.2"}
"""The first that have wheels for Python 3.13."""

COMBINATIONS = (
    Combination(name="oldest", python="3.11", pins=OLDEST),
    Combination(
        name="second", python="3.11",
        pins={"onnxruntime": "1.25.0", "numpy": "2.0.0", "click": "8.1.8", "tokenizers": "0.21.0"},
    ),
    Combination(
        name="third", python="3.12",
        pins={"onnxruntime": "1.28.0", "numpy": "2.2.0", "click": "8.2.1", "tokenizers": "0.22.0"},
    ),
    Combination(name="newest", python="3.11", pins={}),
    Combination(name="oldest on 3.12", python="3.12", pins=OLDEST),
    Combination(name="newest on 3.12", python="3.12", pins={}),
    Combination(name="oldest on 3.13", python="3.13", pins=OLDEST | _FIRST_ON_313),
    Combination(name="newest on 3.13", python="3.13", pins={}),
    Combination(name="newest on 3.14", python="3.14", pins={}),
    Combination(name="oldest to quantize", python="3.11", pins=_QUANTIZE, extra="quantize"),
)  # fmt: skip

EXPORTING = Combination(name="oldest to export", python="3.11", pins=_EXPORT, extra="export")
"""Not run unless asked for: torch is large. Which one it is, is left to pip within the bounds."""
