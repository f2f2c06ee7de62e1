"""A JSON value that knows its file and its place in it, so that an error can say where."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tfm.errors import BundleError


def parse_json(path: Path, content: bytes) -> "CheckedJson":
    """Read the content of a bundle's JSON file.

    Raises:
        BundleError: It is no JSON, or nests values deeper than Python reads.
    """
    try:
        return CheckedJson(path, json.loads(content.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}; export the bundle again") from error


class CheckedJson:
    """One value of a bundle's JSON file; each method reads it as one type, or raises BundleError."""

    def __init__(self, path: Path, value: Any, place: str = "") -> None:
        self.path, self.value, self.place = path, value, place

    def error(self, expected: str) -> BundleError:
        """Make the error that this value is not what was expected."""
        try:
            found = json.dumps(self.value)
        except RecursionError:  # writing calls itself more often than reading did
            found = "nested too deeply to be shown"
        found = found if len(found) <= 40 else found[:37] + "..."
        return BundleError(
            f"{self.path}: {self.place or 'it'} must be {expected}, but is {found}; export the bundle again"
        )

    def __getitem__(self, key: str) -> "CheckedJson":
        """Read a required key of an object."""
        fields = self.fields()
        if key not in fields:
            place = f" in {self.place}" if self.place else ""
            raise BundleError(f"{self.path}: {key!r} is missing{place}; export the bundle again")
        return fields[key]

    def fields(self) -> dict[str, "CheckedJson"]:
        """Read an object."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        place = f"{self.place}." if self.place else ""
        return {key: CheckedJson(self.path, value, f"{place}{key}") for key, value in self.value.items()}

    def items(self) -> list["CheckedJson"]:
        """Read a list."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return [CheckedJson(self.path, value, f"{self.place}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        """Read a string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("a string")
        return self.value

    def string(self) -> str:
        """Read a string, which may be empty."""
        return "" if self.value == "" else self.text()

    def integer(self, least: int) -> int:
        """Read an integer of at least `least`."""
        # Not isinstance: JSON's true is an int to Python.
        if type(self.value) is not int or self.value < least:
            raise self.error(f"an integer of at least {least}")
        return self.value

    def optional_integer(self, least: int) -> int | None:
        """Read an integer of at least `least`, or null."""
        return None if self.value is None else self.integer(least)

    def number(self, least: float) -> float:
        """Read a finite number of at least `least`."""
        # NaN, which Python's JSON reads, is not at least anything, and infinity is not below itself.
        if type(self.value) not in (int, float) or not least <= self.value < math.inf:
            raise self.error(f"a number of at least {least:g}")
        return float(self.value)

    def optional_number(self, least: float) -> float | None:
        """Read a finite number of at least `least`, or null."""
        return None if self.value is None else self.number(least)

    def flag(self) -> bool:
        """Read true or false."""
        if not isinstance(self.value, bool):
            raise self.error("true or false")
        return self.value

    def choice(self, known: Iterable[str]) -> str:
        """Read one of the known strings."""
        known = list(known)
        if self.value not in known:
            raise self.error(f"one of {', '.join(known)}")
        return str(self.value)

    def inside(self, name: str) -> str:
        """Check that a name leads to no place outside the bundle."""
        # A backslash and a drive's colon lead elsewhere on Windows, and a NUL ends a path in C.
        if any(c in name for c in "\\:\0") or any(part in ("", ".", "..") for part in name.split("/")):
            place = f" ({self.place})" if self.place and self.place != name else ""
            raise BundleError(f"{self.path}: {name!r}{place} is not a path inside the bundle; export the bundle again")
        return name
