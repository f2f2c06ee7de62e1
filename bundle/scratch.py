"""Temporary folders that tell whether the process that made them still lives, so that the next one can clear up.

A process that is killed leaves its temporary folders behind. Each of ours holds a file that its process keeps locked,
or is locked itself where it must hold nothing else; the system releases that lock when the process ends, however it
ends. A folder whose lock can be had is nobody's, and is removed. Where a file system has no locks, nothing is ever
taken for left behind.
"""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = ".tfm-lock"
"""The locked file in each folder; it holds the number of the process, for messages."""

SUFFIX = ".tmp"
_PREFIX = "tfm-"
_ATTEMPTS = 100

if sys.platform == "win32":
    import msvcrt

    # The lock is mandatory there, and must not cover what is read.
    _FAR = 1 << 30

    def _lock(descriptor: int) -> bool:
        # Windows locks from the file's position on.
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file for as long as this process has it open.

    Returns:
        Whether it could be had; None: this file system has no locks.
    """
    try:
        return _lock(descriptor)
    # Another process has it: POSIX says so by the one, Windows by the other.
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None


class HeldFolder:
    """A temporary folder that lasts no longer than this process.

    Attributes:
        path: The folder.
    """

    def __init__(self, parent: Path, prefix: str = _PREFIX, suffix: str = SUFFIX, *, bare: bool = False) -> None:
        """Make it.

        Args:
            parent: Where.
            prefix: What its name begins with.
            suffix: What its name ends in.
            bare: Whether it is to hold nothing of ours, and is known by its name alone; not so on Windows.

        Raises:
            OSError: It cannot be made.
        """
        for _ in range(_ATTEMPTS):
            self.path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=suffix))
            try:
                descriptor = _open_lock(self.path, bare)
            except FileNotFoundError:  # who cleared up meanwhile took it for one left behind, as it was not locked yet
                continue
            except BaseException:
                _remove_empty(self.path)
                raise
            # Until it was locked, another process may have taken it for left behind, and removed it.
            if try_lock(descriptor) is not False and _is_lock_of(descriptor, self.path):
                self._descriptor, self._process = descriptor, os.getpid()
                # Bare, or a full disk: whose it is cannot be said in a message then.
                with contextlib.suppress(OSError):
                    os.write(descriptor, str(self._process).encode())
                return
            os.close(descriptor)
        raise FileExistsError(f"no temporary folder could be kept in {parent}: others remove each at once")

    def __enter__(self) -> "HeldFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove it; a forked child, for which it is its parent's, leaves it."""
        if os.getpid() == self._process and self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            _remove(self.path, descriptor)

    def leave(self) -> None:
        """Leave it to the next process."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def clear_up(
    parent: Path,
    prefix: str = _PREFIX,
    suffix: str = SUFFIX,
    *,
    bare: bool = False,
    before: Callable[[Path], None] = lambda folder: None,
) -> list[str]:
    """Remove what processes that are gone left behind.

    Args:
        parent: Where.
        prefix: What the names of the folders begin with.
        suffix: What they end in.
        bare: As they were made.
        before: Called with each of them before it is removed; one that raises OSError keeps it.

    Returns:
        The numbers of the processes whose folders are in use, "?" where one is unknown.
    """
    # Tempfile puts eight characters between them.
    length, holders = len(prefix) + 8 + len(suffix), []
    try:
        names = [name for name in os.listdir(parent) if name.startswith(prefix) and name.endswith(suffix)]
    except OSError:
        return []
    for name in names:
        # Another's, whose name begins alike.
        if len(name) != length:
            continue
        try:
            holder = _clear(parent / name, bare, before)
        except OSError:  # another's, or going away just now
            continue
        if holder is not None:
            holders.append(holder)
    return holders


def _clear(folder: Path, bare: bool, before: Callable[[Path], None]) -> str | None:
    """Remove a folder whose process is gone; give the number of a process that lives."""
    descriptor = _claim(folder, bare)
    if descriptor is None or isinstance(descriptor, str):
        return descriptor
    try:
        # The lock is ours by now, so that nobody else finishes or removes it meanwhile.
        before(folder)
    except BaseException:
        os.close(descriptor)
        raise
    _remove(folder, descriptor)
    return None


_cleared = False


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder for as long as the body runs, where the system keeps such."""
    global _cleared
    parent = Path(tempfile.gettempdir())
    # Once per process: what is left behind was left by others that are gone.
    if not _cleared:
        _cleared = True
        clear_up(parent)
    with HeldFolder(parent) as held:
        yield held.path


def _open_lock(folder: Path, bare: bool) -> int:
    if bare and os.name != "nt":
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)


def _is_lock_of(descriptor: int, folder: Path) -> bool:
    """Tell whether what is open is still there: it may have been removed before it was locked."""
    mine = os.fstat(descriptor)
    try:
        # lstat: a link to our file would be another's.
        return os.path.samestat(mine, os.lstat(folder if stat.S_ISDIR(mine.st_mode) else folder / LOCK))
    except OSError:
        return False


def _claim(folder: Path, bare: bool) -> int | str | None:
    """Lock a folder that nobody holds.

    Returns:
        The open lock; who holds it, as text; None: it is none of ours, or nobody can tell.
    """
    found = folder.lstat()
    # Anybody may put something of such a name into /tmp: only folders of this user are touched.
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        return None
    names = os.listdir(folder)
    # Empty is one that was left before its lock file was made, or after that was removed.
    if names and LOCK not in names and not bare:
        return None
    descriptor = _open_lock(folder, bare)
    locked = try_lock(descriptor)
    if locked and _is_lock_of(descriptor, folder):
        return descriptor
    holder = os.read(descriptor, 20).decode(errors="replace") if locked is False and not bare else ""
    os.close(descriptor)
    return (holder if holder.isdecimal() else "?") if locked is False else None


def _remove(folder: Path, descriptor: int) -> None:
    """Remove a folder whose lock is ours, the lock last: what is left when that is cut short is still known as ours."""
    try:
        for entry in os.scandir(folder):
            # A link to a folder is removed as what it is; what it leads to stays.
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != LOCK:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        # No open file can be removed there.
        if os.name == "nt":
            os.close(descriptor)
            descriptor = -1
        # Where something could not be removed, the lock file stays, and the next process tries again.
        if os.listdir(folder) == [LOCK]:
            os.unlink(folder / LOCK)
        os.rmdir(folder)
    except OSError:
        pass
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
