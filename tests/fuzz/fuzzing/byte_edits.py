"""Mutations of any file: bits, cuts, additions, chunks that change places, integers at their extremes."""

import struct
from random import Random

EXTREMES = (
    0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip


def extreme(rng: Random, old: int = 0) -> int:
    """An integer that a reader may not have thought of; at times one that is next to what was there."""
    near = [old + 1, max(old - 1, 0), old * 2, old * 8, old * 1000, old // 2]
    return rng.choice([*EXTREMES, *near])


def edit_bytes(rng: Random, data: bytes) -> bytes:
    """Change a file without regard to what it is."""
    return rng.choice([_flip, _flip, _overwrite, _truncate, _extend, _swap, _repeat, _remove, _integer, _integer])(
        rng, data
    )


def write_integer(data: bytes, offset: int, size: int, value: int) -> bytes:
    """Put a little-endian integer of `size` bytes in the place of what is there."""
    return data[:offset] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[offset + size :]


def _place(rng: Random, data: bytes) -> int:
    """A place in the file; most of the structure lies at either end."""
    ends = min(len(data), 256)
    return rng.choice([rng.randrange(len(data)), rng.randrange(ends), len(data) - 1 - rng.randrange(ends)])


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8]) if data else 0):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    start, count = _place(rng, data), rng.choice([1, 2, 4, 8, 64])
    new = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * count if rng.random() < 0.5 else rng.randbytes(count)
    return data[:start] + new + data[start + count :]


def _truncate(rng: Random, data: bytes) -> bytes:
    if not data:
        return data
    return data[: rng.choice([0, 1, 4, len(data) - 1, len(data) // 2, rng.randrange(len(data))])]


def _extend(rng: Random, data: bytes) -> bytes:
    new = rng.choice([b"\0", b" ", b"\n", b"PK\3\4", data, rng.randbytes(8)])
    return data + new * rng.choice([1, 16, 1000]) if rng.random() < 0.8 else new + data


def _swap(rng: Random, data: bytes) -> bytes:
    if len(data) < 4:
        return data
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat(rng: Random, data: bytes) -> bytes:
    start, count = rng.randrange(len(data) + 1), rng.choice([1, 8, 64, 4096])
    return data[: start + count] + data[start:]


def _remove(rng: Random, data: bytes) -> bytes:
    start, count = rng.randrange(len(data) + 1), rng.choice([1, 8, 64, 4096])
    return data[:start] + data[start + count :]


def _integer(rng: Random, data: bytes) -> bytes:
    size = rng.choice([1, 2, 4, 8])
    if len(data) < size:
        return data
    offset = _place(rng, data)
    offset = min(offset - offset % size if rng.random() < 0.5 else offset, len(data) - size)
    (old,) = struct.unpack_from({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[size], data, offset)
    return write_integer(data, offset, size, extreme(rng, old))
