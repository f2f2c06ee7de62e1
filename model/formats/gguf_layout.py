"""GGUF's counts and lengths, compared with the bytes that there are before the package gguf believes them.

It goes through as many items as a file claims to have, which may be more than any lifetime has time for.
"""

import struct
from pathlib import Path
from typing import IO

from tfm.errors import CheckpointError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its bytes."""

_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # ggml's
_DEEPEST = 4  # arrays within arrays; none is known


def check_layout(file: Path) -> None:
    """Walk along all that stands before the weights."""
    with open(file, "rb") as stream:
        _Walk(file, stream).check()


class _Walk:
    """Goes along a file, and never beyond its end."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._left = file.stat().st_size

    def check(self) -> None:
        """Go along the metadata and what is said of the tensors."""
        # The magic bytes, which `sniff` has seen. Then the version: a small number, whose low half
        # is 0 if it is read in the other byte order.
        self._skip(4)
        if self._number("I") & 0xFFFF == 0:
            raise CheckpointError(
                f"{self._file} is GGUF of the other byte order; convert it with gguf's gguf-convert-endian"
            )
        tensors, entries = self._number("Q"), self._number("Q")
        # At least the length of its name, 8 bytes, and its type, 4.
        for _ in range(self._bounded("entries of metadata", entries, 12)):
            self._skip(self._number("Q"))
            self._skip_value(self._number("I"), 0)
        # At least the length of its name, 8 bytes, a count of dimensions, 4, its type, 4, and
        # offset, 8.
        for _ in range(self._bounded("tensors", tensors, 24)):
            self._skip(self._number("Q"))
            dimensions = self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise self._damaged(f"a tensor has {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8)

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY and depth < _DEEPEST:
            item, count = self._number("I"), self._number("Q")
            if item in _SIZES:
                self._skip(_SIZES[item] * count)
                return
            # Items are texts or arrays here, which begin with a length of 8 bytes.
            for _ in range(self._bounded("items of an array", count, 8)):
                self._skip_value(item, depth + 1)
        else:
            raise self._damaged(f"a value is of the unknown type {kind}")

    def _number(self, kind: str) -> int:
        size = struct.calcsize(f"={kind}")
        self._take(size)
        (value,) = struct.unpack(f"={kind}", self._stream.read(size))
        return int(value)

    def _skip(self, count: int) -> None:
        self._take(count)
        self._stream.seek(count, 1)

    def _take(self, count: int) -> None:
        if count > self._left:
            raise self._damaged(f"{count} bytes are to follow where {self._left} are left")
        self._left -= count

    def _bounded(self, what: str, count: int, least: int) -> int:
        """Check a count of things that each have some bytes at least."""
        if count * least > self._left:
            raise self._damaged(f"it would have {count} {what}, for which there is no room")
        return count

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._file} is a damaged GGUF file ({reason}); was it cut short?")
