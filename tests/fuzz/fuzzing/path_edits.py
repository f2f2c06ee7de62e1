"""What may lie where a file is expected: nothing, a folder, links, pipes, devices, files without end."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

HUGE = 1 << 40


def edit_path(rng: Random, path: Path) -> str:
    """Put something else where a file is, and say what."""
    name = rng.choice(list(NODES))
    NODES[name](path)
    return name


def _gone(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


def _moved(path: Path) -> None:
    """A link to the file itself, elsewhere: caches have such, and it may be read."""
    other = path.parent / f".moved-{path.name}"
    shutil.move(path, other)
    path.symlink_to(other.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _huge(path: Path) -> None:
    os.truncate(path, HUGE)  # sparse: it takes no room


def _zeros(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, HUGE)


NODES: dict[str, Callable[[Path], None]] = {
    "gone": _gone,
    "folder": _folder,
    "loop": _loop,
    "dangling": _link_to("nowhere"),
    "zero": _link_to("/dev/zero"),
    "null": _link_to("/dev/null"),
    "random": _link_to("/dev/urandom"),
    "tty": _link_to("/dev/tty"),
    "outside": _link_to("/etc/passwd"),
    "proc": _link_to("/proc/self/mem"),
    "moved": _moved,
    "pipe": _pipe,
    "socket": _socket,
    "empty": _empty,
    "huge": _huge,
    "zeros": _zeros,
}
