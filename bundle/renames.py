"""Renaming folders: never onto anything, and two of them at once, in one step where the system can.

Linux has renameat2(2), macOS renamex_np(2); a file system may refuse either. Windows renames nothing onto anything.
"""

import os
import sys
from pathlib import Path

_REPLACE_NOTHING, _EXCHANGE = (1, 2) if sys.platform.startswith("linux") else (4, 2)
"""RENAME_NOREPLACE and RENAME_EXCHANGE of Linux, RENAME_EXCL and RENAME_SWAP of macOS."""

_HERE = -100
"""AT_FDCWD"""


def exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's place, at no moment of which either place is empty.

    Returns:
        False: this cannot be done here, and nothing was.
    """
    try:
        _rename(one, other, _EXCHANGE)
    except (OSError, NotImplementedError):
        return False
    return True


def move(source: Path, target: Path) -> None:
    """Rename a folder, unless something is there already.

    Raises:
        FileExistsError: Something is.
        OSError: It cannot be renamed.
    """
    try:
        _rename(source, target, _REPLACE_NOTHING)
        return
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        # Perhaps this file system knows no flags; if it is anything else, it shows again.
        pass
    # Not exists(): a link that leads nowhere is something, too.
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already")
    try:
        # Of what appears just now, it replaces nothing but an empty folder.
        os.rename(source, target)
    except OSError as error:
        # Something has appeared since the look above, for which systems have errors of their own:
        # that a folder is not empty, for one.
        if os.path.lexists(target) and os.path.lexists(source):
            raise FileExistsError(f"{target} exists already") from error
        raise


def _rename(source: Path, target: Path, flag: int) -> None:
    """Rename as a flag says.

    Raises:
        NotImplementedError: This system has no such call.
    """
    try:
        import ctypes

        # What is loaded into this process already, so that no name of a C library is needed.
        library = ctypes.CDLL(None, use_errno=True)
        paths = os.fsencode(source), os.fsencode(target)
        if sys.platform.startswith("linux"):
            failed = library.renameat2(_HERE, paths[0], _HERE, paths[1], flag)
        elif sys.platform == "darwin":
            failed = library.renamex_np(*paths, flag)
        else:
            raise NotImplementedError(sys.platform)
    except (ImportError, AttributeError, TypeError) as error:  # no ctypes, no such function, or none of this process's
        raise NotImplementedError(sys.platform) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
