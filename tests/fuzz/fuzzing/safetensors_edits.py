"""Mutations of safetensors: of the header, its length, and of what lies behind."""

import json
from random import Random

from .byte_edits import edit_bytes, extreme, write_integer
from .json_edits import edit_json

_HINTS = (
    "F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "I4", "C64", "F4", "x", [0, 0],
    [0, 4], [4, 0], [0, 2**63], [2**63, 2**64 - 1], [-4, 0], [0, 2**40], [2**32, 2**32], [0], [2**31, 2**31],
    [2**16, 2**16, 2**16, 2**16], {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
    {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 0]}, {"format": "pt"}, {"format": 1}, "__metadata__",
    "data_offsets", "shape",
)  # fmt: skip


def edit_safetensors(rng: Random, data: bytes) -> bytes:
    """Change a safetensors file."""
    draw, size = rng.random(), int.from_bytes(data[:8], "little")
    if draw < 0.15 or size > len(data) - 8:
        return edit_bytes(rng, data)
    if draw < 0.3:
        return write_integer(data, 0, 8, rng.choice([extreme(rng, size), len(data), len(data) - 8, 99_999_999]))
    header, rest = data[8 : 8 + size], data[8 + size :]
    if draw < 0.4:
        return data[: 8 + size] + edit_bytes(rng, rest)
    header = _overlapping(rng, header) if draw < 0.5 else edit_json(rng, header, _HINTS)
    return len(header).to_bytes(8, "little") + header + rest


def _overlapping(rng: Random, header: bytes) -> bytes:
    """Let one tensor lie where another does, or names be twice."""
    try:
        entries = json.loads(header)
        names = [name for name in entries if name != "__metadata__"]
        one, other = rng.choice(names), rng.choice(names)
        if rng.random() < 0.3:
            return (header.rstrip()[:-1] + f", {json.dumps(one)}: {json.dumps(entries[other])}}}".encode()).ljust(8)
        entries[one]["data_offsets"] = entries[other]["data_offsets"]
        return json.dumps(entries).encode()
    except (ValueError, LookupError, TypeError, RecursionError):  # it was changed before
        return edit_bytes(rng, header)
