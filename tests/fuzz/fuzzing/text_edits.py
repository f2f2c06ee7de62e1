"""Mutations of texts and of YAML."""

from random import Random

from .byte_edits import edit_bytes
from .json_edits import ODD, dump, edit_json

_YAML = [
    b"!!python/object/apply:os.mkdir [canary]", b"!!python/name:os.system", b"&a [*a]", b"*b", b"? [a]\n: b",
    b"- 1\n- 2", b"~", b"2001-01-01", b"!!binary x", b"!!set {a}", b".inf", b".nan", b"0x7fffffffffffffff", b"1_000",
    b"1:30", b"{<<: *a}", b"[[[[", b"'", b"!!int a", b"!!timestamp x", b"2001-99-99", b"!!float ''", b"!!bool x",
    b"1e400", b"9" * 5000, b"=", b"!!omap [a: 1]", b"yes",
]  # fmt: skip


def edit_text(rng: Random, data: bytes) -> bytes:
    """Change a text of lines."""
    lines = data.split(b"\n")
    edit = rng.randrange(6)
    odd = [
        b"",
        b" ",
        b"\0",
        b"\xff\xfe",
        b"x" * (1 << 21),
        b"\xed\xa0\x80",
        "é".encode("utf-16"),
        b"\r",
        b"\x1b]0;x\x07",
        "‮a".encode(),
        b"a " * 5000,
    ]
    if edit == 0:
        lines[rng.randrange(len(lines))] = rng.choice(odd)
    elif edit == 1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(odd))
    elif edit == 2:
        lines *= rng.choice([0, 2, 500 if len(data) < 1 << 14 else 2])
    elif edit == 3:
        rng.shuffle(lines)
    else:
        return edit_bytes(rng, data)
    return b"\n".join(lines)


def edit_lines(rng: Random, data: bytes) -> bytes:
    """Change lines of JSON."""
    if rng.random() < 0.3:
        return edit_text(rng, data)
    lines = data.split(b"\n")
    index = rng.randrange(len(lines))
    lines[index] = edit_json(rng, lines[index], ("text", "input_ids", "subject", [1, 2], [2**63], ["a"], "a b"))
    return b"\n".join(lines)


def edit_yaml(rng: Random, data: bytes) -> bytes:
    """Change YAML."""
    draw = rng.random()
    if draw < 0.2:
        return edit_text(rng, data)
    if draw < 0.25:
        bomb = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (97 + n, 97 + n, *[96 + n] * 8)
            for n in range(1, 12)
        )
        return rng.choice([bomb + data, b"[" * 100_000, b"a: " * 1000, b"{" * 5000, b"- " * 20_000, data + data])
    lines = data.split(b"\n")
    index = rng.randrange(len(lines))
    key = lines[index].partition(b":")[0]
    value = rng.choice(_YAML) if rng.random() < 0.5 else dump(rng.choice(ODD))
    lines[index] = rng.choice([key + b": " + value] * 5 + [value, b"", key + b": a\n" + lines[index], b"x: 1"])
    return b"\n".join(lines)
