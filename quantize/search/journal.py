"""What a search has found so far, line by line in a file: one that was interrupted goes on where it stopped."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from tfm.bundle import try_lock

T = TypeVar("T")

_MOST_BYTES = 64 << 20
"""Of a journal: a line is of a few hundred bytes, one an op and method."""


def journal_of(output: Path, precision: str) -> Path:
    """Name the file that a search for a bundle keeps its figures in, until the bundle is in place."""
    return output.with_name(f".{output.name}.{precision}.search")


def drop_journal(path: Path) -> None:
    """Remove a journal: what was searched for is in place. One that another process has open stays its own."""
    descriptor = _open(path)
    if descriptor is None:
        return
    # Where there are no locks (None), no search has written its figures here.
    locked = try_lock(descriptor) is not False
    # No open file can be removed there.
    if os.name == "nt":
        os.close(descriptor)
    if locked:
        path.unlink(missing_ok=True)
    # Elsewhere the lock is held until the name is gone: no other process can begin with the file.
    if os.name != "nt":
        os.close(descriptor)


class Journal:
    """Remembers figures by what they are of.

    It writes to a plain file of this user's own, of one name: what else is at its path, such as a link to another's
    file, is replaced. Of two processes with one journal, the second remembers its figures without it.

    Attributes:
        recalled: How many figures were there already.
    """

    def __init__(self, path: Path | None, subject: str) -> None:
        """Open it, and forget what it holds of anything else.

        Args:
            path: The file, which is made with the first figure; None: nothing is kept.
            subject: What the figures depend on: digests of the graphs, the samples, versions.
        """
        self.recalled = 0
        self._known: dict[str, Any] = {}
        self._path, self._head = path, json.dumps(["subject", subject]) + "\n"
        self._stream: IO[bytes] | None = None
        if path is not None and (descriptor := _open(path)) is not None:
            self._take(descriptor)

    def recall(self, key: str, find: Callable[[], T], fits: Callable[[Any], bool] | None = None) -> T:
        """Give what is known of `key`, unless it does not fit; else find it and write it down. It must survive JSON."""
        if key not in self._known or (fits is not None and not fits(self._known[key])):
            self._known[key] = find()
            self._write(json.dumps([key, self._known[key]]) + "\n")
        found: T = self._known[key]
        return found

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the file to the next process that goes on; figures that are found later are not written down."""
        self._path = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _take(self, descriptor: int) -> None:
        """Lock an open file, read it, and cut off what is not of the subject or was cut short."""
        # Unbuffered: what was found is in the file, whenever the process ends.
        stream = os.fdopen(descriptor, "r+b", buffering=0)
        # Another process writes to it, or could without being seen.
        if not try_lock(descriptor):
            stream.close()
            self._path = None
            return
        self._stream = stream
        # No search has found so much: somebody else's, or a hole.
        if os.fstat(descriptor).st_size > _MOST_BYTES:
            stream.truncate(0)
        lines = stream.readall().splitlines(keepends=True)
        if not lines or _parse(lines[0]) != json.loads(self._head):
            stream.truncate(0)
            return
        # What this run has found already is newer than the file.
        self._known = dict(value for value in map(_parse, lines[1:]) if value is not None) | self._known
        self.recalled = len(self._known)
        # A write that was cut short goes, else the next line would be joined to it. If only its end
        # is missing, it is written again.
        if not lines[-1].endswith(b"\n"):
            stream.truncate(sum(map(len, lines[:-1])))
            if _parse(lines[-1]) is not None:
                stream.write(lines[-1] + b"\n")

    def _write(self, line: str) -> None:
        if self._stream is None and self._path is not None:
            self._begin(self._path)
        if self._stream is not None:
            # The subject goes before the first figure, in one write with it: no file has a head
            # alone.
            head = "" if os.fstat(self._stream.fileno()).st_size else self._head
            self._stream.write((head + line).encode())

    def _begin(self, path: Path) -> None:
        """Make the file, in place of what is no journal; where that cannot be done, the search goes on without it."""
        descriptor = _open(path)
        if descriptor is None:
            try:
                # O_EXCL: should another process have made the file since, that one keeps it.
                path.unlink(missing_ok=True)
                descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            except OSError:
                self._path = None
                return
        self._take(descriptor)


_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)


def _open(path: Path) -> int | None:
    """Open a plain file of this user's own that has no other name; None: there is none, or it is something else."""
    try:
        # For systems without O_NOFOLLOW.
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return None
        descriptor = os.open(path, _FLAGS | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    # Asked of what was opened: the path may lead elsewhere by now.
    found = os.fstat(descriptor)
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and mine:
        return descriptor
    os.close(descriptor)
    return None


def _parse(line: bytes) -> list[Any] | None:
    """One line, None where it was cut off."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) else None
