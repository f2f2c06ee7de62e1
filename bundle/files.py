"""Files of a bundle as they are read: plain ones only, of a bounded size, or held open for later.

A path is looked up once. What a path leads to later may be another file: an update has replaced the bundle, the working
directory is another, a temporary folder was cleaned.
"""

import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20
# A FIFO is not waited for, and a terminal does not become this process's; Windows has neither flag, and needs its own.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"))

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of change: two equal ones are of one file that was not written to in between."""


class HeldFile:
    """A plain file that is held open: what happens to its path does not matter any more.

    Attributes:
        path: Where it was found.
        size: In bytes, when it was found.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError: It cannot be opened, or is no plain file: a folder, a FIFO, a device.
        """
        self.path = path
        self._descriptor = os.open(path, _FLAGS)
        # Whoever drops the object closes the file, in whatever way it ends.
        self._close = weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        # Asked of what is open, not of the path, which may lead elsewhere by now.
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError("it is no plain file")
        self.size = found.st_size
        self._stamp = _stamp(found)

    def close(self) -> None:
        """Let go of it; twice does no harm."""
        self._close()

    def blocks(self) -> Iterator[bytes]:
        """Read it, a MiB at a time; for one reader at once."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while block := os.read(self._descriptor, _BLOCK):
            yield block

    def read(self) -> bytes:
        """Read all of it."""
        return b"".join(self.blocks())

    def sha256(self) -> str:
        """Compute its digest, as hexadecimal digits."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    def map(self) -> mmap.mmap:
        """Map it into memory, to be read."""
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    @property
    def is_unchanged(self) -> bool:
        """Whether nobody has written to it since it was opened."""
        return _stamp(os.fstat(self._descriptor)) == self._stamp

    @property
    def is_in_place(self) -> bool:
        """Whether its path still leads to it, and nobody has written to it."""
        try:
            return _stamp(os.stat(self.path)) == self._stamp
        except OSError:
            return False


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read a plain file.

    Args:
        path: The file.
        most: Bytes that it may have at most; None: any number.

    Raises:
        OSError: It cannot be read, is no plain file, or is larger.
    """
    file = HeldFile(path)
    try:
        if most is not None and file.size > most:
            raise OSError(f"it has {file.size} bytes, more than {most}")
        return file.read()
    finally:
        file.close()


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
