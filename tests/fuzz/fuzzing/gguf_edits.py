"""Mutations of GGUF: of its counts, types, lengths, dimensions and offsets, by a walk of our own along the file."""

import struct
from random import Random

from .byte_edits import edit_bytes, extreme, write_integer

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9

Field = tuple[str, int, int]
"""What it is, where, and of how many bytes."""


def edit_gguf(rng: Random, data: bytes) -> bytes:
    """Change a GGUF file."""
    if rng.random() < 0.15:
        return edit_bytes(rng, data)
    fields = list(_Walk(data).fields())
    kinds = sorted({kind for kind, _, _ in fields})
    if not kinds:
        return edit_bytes(rng, data)
    kind = rng.choice(kinds)  # each kind as often as any, though there are many more texts than counts
    _, offset, size = rng.choice([field for field in fields if field[0] == kind])
    if kind == "text":
        return (
            data[:offset]
            + edit_bytes(rng, data[offset : offset + size])[:size].ljust(size, b"x")
            + data[offset + size :]
        )
    old = int.from_bytes(data[offset : offset + size], "little")
    types = [*range(45), 255, 2**32 - 1]
    if kind.endswith("type"):
        value = rng.choice(types)
    elif kind == "version":
        value = rng.choice([0, 1, 2, 3, 4, 3 << 24, 2**32 - 1])
    elif kind == "float":
        value = struct.unpack(
            "<I", struct.pack("<f", rng.choice([0.0, -1.0, 1e38, 1e-45, float("nan"), float("inf")]))
        )[0]
    else:
        value = extreme(rng, old)
    return write_integer(data, offset, size, value)


class _Walk:
    """Goes along the file, as far as it makes sense."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4

    def fields(self) -> list[Field]:
        """List its fields."""
        found: list[Field] = []
        try:
            self._note(found, "version", 4)
            tensors, entries = self._note(found, "tensor count", 8), self._note(found, "entry count", 8)
            for _ in range(min(entries, 1000)):
                self._text(found, "key length")
                self._value(found, self._note(found, "value type", 4))
            for _ in range(min(tensors, 1000)):
                self._text(found, "name length")
                for _ in range(min(self._note(found, "rank", 4), 8)):
                    self._note(found, "dimension", 8)
                self._note(found, "tensor type", 4)
                self._note(found, "offset", 8)
        except struct.error:
            pass
        return found

    def _note(self, found: list[Field], kind: str, size: int) -> int:
        (value,) = struct.unpack_from({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[size], self.data, self.at)
        found.append((kind, self.at, size))
        self.at += size
        return int(value)

    def _text(self, found: list[Field], kind: str) -> None:
        length = self._note(found, kind, 8)
        if length > len(self.data) - self.at:
            raise struct.error
        if length:
            found.append(("text", self.at, length))
        self.at += length

    def _value(self, found: list[Field], kind: int) -> None:
        if kind == _STRING:
            self._text(found, "text length")
        elif kind == _ARRAY:
            item, count = self._note(found, "item type", 4), self._note(found, "item count", 8)
            for _ in range(min(count, 1000)):
                self._value(found, item)
        elif kind in _SIZES:
            self._note(found, "float" if kind == 6 else "value", _SIZES[kind])
        else:
            raise struct.error
