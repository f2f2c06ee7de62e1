"""Mutations of .npy arrays and of the .npz archives that hold them."""

import struct
from random import Random

from .byte_edits import edit_bytes
from .pickle_edits import evil
from .zip_edits import edit_zip

_SHAPES = [
    "()", "(0,)", "(1,)", "(-1,)", "(2, 0)", "(0, 2147483648)", "(1099511627776,)", "(9223372036854775807,)",
    "(18446744073709551616, 2)", "(1, 1099511627776)", "(2, 4294967296, 4294967296)", "(1.5,)", "('a',)", "None",
    "(" + "1, " * 100 + ")", "(True,)", "[1, 2]",
]  # fmt: skip
_TYPES = [
    "'<f4'", "'>f4'", "'<f8'", "'|b1'", "'<i8'", "'<f2'", "'|O'", "'|S1000000000'", "'<U2147483647'", "'|V0'",
    "'<M8[s]'", "'<c16'", "[('a', '<f4')]", "[('a', '|O')]", "('<f4', (1000000, 1000000))", "'x'", "None", "''",
    "'<f4,<i8'", "'|S0'",
]  # fmt: skip


def edit_npz(rng: Random, data: bytes) -> bytes:
    """Change an .npz archive."""
    return edit_zip(rng, data, {".npy": edit_npy})


def edit_npy(rng: Random, data: bytes) -> bytes:
    """Change an .npy array."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12 or rng.random() < 0.15:
        return edit_bytes(rng, data)
    size = struct.unpack("<H", data[8:10])[0]
    header, content = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    shape = header[header.find("'shape': ") + 9 : header.rfind(")") + 1] or "()"
    kind = header[header.find("'descr': ") + 9 : header.find(", 'fortran")] or "'<f4'"
    in_columns = "True" if rng.random() < 0.1 else "False"
    draw = rng.random()
    if draw < 0.4:
        shape = rng.choice(_SHAPES)
    elif draw < 0.75:
        kind = rng.choice(_TYPES)
        content = evil(rng) if "O" in kind else content
    elif draw < 0.85:
        return data[:6] + bytes([rng.choice([0, 1, 2, 3, 255]), rng.choice([0, 1, 7])]) + data[8:]
    elif draw < 0.92:
        return data[:8] + struct.pack("<H", rng.choice([0, 1, 65535, size + 1, size - 1])) + data[10:]
    else:
        content = content[: rng.randrange(len(content) + 1)] if rng.random() < 0.5 else content + b"\0" * 8
    odd = ["__import__('os').mkdir('canary')", "{" * 3000, "9" * 50_000, "[" * 60_000, "{}", "{'descr': '<f4'}"]
    text = f"{{'descr': {kind}, 'fortran_order': {in_columns}, 'shape': {shape}, }}\n"
    text = rng.choice(odd) if rng.random() < 0.06 else text
    return data[:8] + struct.pack("<H", len(text)) + text.encode("latin-1", "replace") + content
