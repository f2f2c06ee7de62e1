"""Mutations of zip archives: of the records that describe entries, and of entries that are written anew."""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random

from .byte_edits import edit_bytes, extreme, write_integer

Entries = list[tuple[zipfile.ZipInfo, bytes]]
Edit = Callable[[Random, bytes], bytes]

_LOCAL = {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}
_CENTRAL = {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 38: 4, 42: 4}
_END = {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}
_RECORDS = {b"PK\3\4": _LOCAL, b"PK\1\2": _CENTRAL, b"PK\5\6": _END}
"""Signature → offset of each field → its size."""


def edit_zip(rng: Random, data: bytes, edits: dict[str, Edit] | None = None) -> bytes:
    """Change a zip archive.

    Args:
        rng: What decides.
        data: The archive.
        edits: End of an entry's name → how its content is changed, with sums and sizes to match.
    """
    draw = rng.random()
    if draw < 0.2:
        return edit_bytes(rng, data)
    if draw < 0.45:
        return _edit_record(rng, data)
    try:
        entries = read_entries(data)
    except (zipfile.BadZipFile, RuntimeError, ValueError, struct.error, zlib.error, EOFError):
        return edit_bytes(rng, data)  # it was changed before
    if not entries:
        return edit_bytes(rng, data)
    if draw < 0.6:
        return write_entries(_rearrange(rng, entries))
    index = rng.randrange(len(entries))
    info, content = entries[index]
    for end, edit in (edits or {}).items():
        if info.filename.endswith(end):
            entries[index] = info, edit(rng, content)
            break
    else:
        entries[index] = info, edit_bytes(rng, content)
    return write_entries(entries)


def read_entries(data: bytes) -> Entries:
    """Read all entries."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def write_entries(entries: Entries) -> bytes:
    """Write entries, in whatever way their ZipInfo says."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # names that are there twice are meant to be
        for info, content in entries:
            fresh = zipfile.ZipInfo(info.filename, info.date_time)
            fresh.compress_type, fresh.external_attr = info.compress_type, info.external_attr
            fresh.comment = info.comment
            archive.writestr(fresh, content)
    return stream.getvalue()


def _edit_record(rng: Random, data: bytes) -> bytes:
    places = [(at, fields) for mark, fields in _RECORDS.items() for at in _all(data, mark)]
    if not places:
        return edit_bytes(rng, data)
    start, fields = rng.choice(places)
    offset = rng.choice(list(fields))
    size = fields[offset]
    if start + offset + size > len(data):
        return edit_bytes(rng, data)
    old = int.from_bytes(data[start + offset : start + offset + size], "little")
    return write_integer(data, start + offset, size, extreme(rng, old))


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _rearrange(rng: Random, entries: Entries) -> Entries:
    index = rng.randrange(len(entries))
    info, content = entries[index]
    top = info.filename.partition("/")[0]
    edit = rng.randrange(9)
    if edit == 0:
        del entries[index]
    elif edit == 1:
        entries.append((info, edit_bytes(rng, content)))  # twice
    elif edit == 2:
        names = [
            "../x",
            "/etc/x",
            "a\\b",
            "",
            info.filename + "/",
            "é",
            f"{top}/extra/x",
            f"{top}/code/x.py",
            "x" * 9000,
        ]
        entries[index] = _renamed(info, rng.choice(names)), content
    elif edit == 3:
        other = rng.choice(entries)[1]
        entries[index] = info, other
    elif edit == 4:
        info.compress_type = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    elif edit == 5:
        info.compress_type = zipfile.ZIP_DEFLATED
        entries[index] = info, content + b"\0" * rng.choice([1 << 20, 1 << 24])  # a bomb
    elif edit == 6:
        info.external_attr = rng.choice([0o120777, 0o010644, 0o020644, 0o040755]) << 16  # link, pipe, device, folder
        entries[index] = info, rng.choice([b"/etc/passwd", content])
    elif edit == 7:
        rng.shuffle(entries)
    else:
        entries += [(_renamed(info, f"{top}/many/{number}"), b"") for number in range(2000)]
    return entries


def _renamed(info: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, info.date_time)
    made.compress_type, made.external_attr = info.compress_type, info.external_attr
    return made
