"""The zip archives that torch writes: every entry stored as it is, once, and within the file.

A reader may thus map weights from the file, and no entry takes more memory than the file has bytes.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfm.errors import CheckpointError

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,  # a name that is no text, an offset before the start
    OverflowError,  # an offset beyond what a file can have
    RuntimeError,  # an encrypted entry; NotImplementedError, a kind of it: a version or compression that is not known
)
"""What zipfile raises at damaged bytes."""


@contextmanager
def open_archive(file: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive of torch's to read entries of.

    Args:
        file: The archive.
        what: What it should be, named in messages.

    Raises:
        CheckpointError: It is damaged, or its entries are not as torch writes them.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check(file, archive, file.stat().st_size)
            yield archive
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{file} is a damaged {what}: {reason}; was it cut short?") from error


def entry_names(file: Path) -> list[str]:
    """List the names in a zip archive; none where it is damaged or no archive, which who reads it will say."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except DAMAGED:
        return []


def _check(file: Path, archive: zipfile.ZipFile, size: int) -> None:
    seen: set[str] = set()
    for entry in archive.infolist():
        if entry.filename in seen:
            raise CheckpointError(
                f"{file} holds {entry.filename!r} twice, of which readers may take either; save it again"
            )
        seen.add(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"{file}: its entry {entry.filename!r} is compressed, which torch never does, and so cannot be mapped; "
                "save it again with torch.save"
            )
        if entry.header_offset + entry.file_size > size:
            raise CheckpointError(
                f"{file}: its entry {entry.filename!r} would have {entry.file_size} bytes, but the file has {size}; "
                "was it cut short?"
            )
