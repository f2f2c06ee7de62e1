"""What a search has found so far, line by line in a file: one that was interrupted goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Journal:
    """Remembers figures by what they are of.

    Attributes:
        path: The file; None: nothing is kept.
        recalled: How many figures were there already.
    """

    def __init__(self, path: Path | None, subject: str) -> None:
        """Open it, and forget what it holds of anything else.

        Args:
            path: The file.
            subject: What the figures depend on: digests of the graphs, the samples, versions.
        """
        self.path, self.recalled = path, 0
        self._known: dict[str, Any] = {}
        if path is None:
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        parsed = [value for value in map(_parse, lines) if value is not None]
        if parsed and parsed[0] == ["subject", subject]:
            self._known = dict(parsed[1:])
        self.recalled = len(self._known)
        whole = [["subject", subject], *([key, value] for key, value in self._known.items())]
        path.write_text("".join(json.dumps(line) + "\n" for line in whole), encoding="utf-8")

    def recall(self, key: str, find: Callable[[], T], fits: Callable[[Any], bool] | None = None) -> T:
        """Give what is known of `key`, unless it does not fit; else find it and write it down. It must survive JSON."""
        if key not in self._known or (fits is not None and not fits(self._known[key])):
            self._known[key] = find()
            if self.path is not None:
                with open(self.path, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps([key, self._known[key]]) + "\n")
        found: T = self._known[key]
        return found

    def forget(self) -> None:
        """Remove the file: the search is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _parse(line: str) -> list[Any] | None:
    """One line, None where it was cut off."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) else None
