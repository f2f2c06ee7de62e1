"""Bundles in one .zip file: unpacked into a private folder that is gone when the process ends."""

import atexit
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from tfm.errors import BundleError

from .locate import MANIFEST
from .manifest import LARGEST_MANIFEST, Manifest, parse_manifest, read_manifest
from .scratch import HeldFolder, clear_up

# Deflate makes at most 1032 bytes of one (zlib, "Maximum compression factor").
_MOST_RATIO = 1100
# What describes one entry, twice: its name, extra fields and comment have 64 KiB at most.
_MOST_HEADERS = 1 << 19
_BLOCK = 1 << 20
_UNPACKED = ".unpacked"
"""What the names of the folders end in: those of processes that are gone are known by it."""

# Process and digest of the archive → folder.
_unpacked: dict[tuple[int, str], Path] = {}
_unpacking = threading.Lock()


def unpack(archive: Path) -> Path:
    """Unpack a bundle's .zip, once per process and content.

    Nothing is written but the files that its manifest lists, under the manifest's names and with its sizes; what else
    the archive holds is left alone. Their digests are for who opens them to compare.

    Args:
        archive: A zip of a bundle's content, or of its folder, as `shutil.make_archive` makes them.

    Returns:
        The bundle's folder, which only this user can read and which is removed when this process ends.

    Raises:
        BundleError: It is no zip, holds no bundle, is damaged, does not fit its manifest, or does not fit on the disk.
    """
    try:
        # Threads that open one archive at once must not unpack it twice.
        with _unpacking, open(archive, "rb") as stream:
            # Before all of it is read: anything may be as long as it likes.
            _check_is_zip(archive, stream)
            digest = hashlib.sha256()
            while block := stream.read(_BLOCK):
                digest.update(block)
            # With the process: a parent's folder goes when it ends, whatever its forked child does.
            key = os.getpid(), digest.hexdigest()
            # By content, not by path: an archive that was replaced is another bundle.
            if key not in _unpacked or not _is_whole(_unpacked[key]):
                _unpacked[key] = _unpack(archive, stream)
            return _unpacked[key]
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        # RuntimeError: an encrypted file; NotImplementedError, a kind of it: a compression that Python does not know
        raise BundleError(f"{archive} cannot be read as a zip of a bundle: {error}; copy it again") from error


def _check_is_zip(archive: Path, stream: IO[bytes]) -> None:
    """Refuse a file that is no zip, or most of whose bytes belong to no entry."""
    with zipfile.ZipFile(stream) as content:
        most = sum(info.compress_size + _MOST_HEADERS for info in content.infolist()) + _MOST_HEADERS
    size = stream.seek(0, os.SEEK_END)
    if size > most:
        raise BundleError(f"{archive} has {size} bytes, but its entries no more than {most}; zip the bundle again")
    stream.seek(0)


def _is_whole(folder: Path) -> bool:
    """Whether nobody has cleaned an unpacked bundle away, not even in part."""
    try:
        read_manifest(folder)
    except BundleError:
        return False
    return True


def _unpack(archive: Path, stream: IO[bytes]) -> Path:
    parent = Path(tempfile.gettempdir())
    clear_up(parent, suffix=_UNPACKED, bare=True)
    held = HeldFolder(parent, suffix=_UNPACKED, bare=True)
    atexit.register(held.remove)
    try:
        with zipfile.ZipFile(stream) as content:
            _copy(archive, content, stream.seek(0, os.SEEK_END), held.path)
    except BaseException:
        held.remove()
        raise
    return held.path


def _copy(archive: Path, content: zipfile.ZipFile, packed: int, folder: Path) -> None:
    """Copy a bundle out of an archive of `packed` bytes, the manifest last: where it is, all is."""
    entries = _entries(archive, content)
    top = _top(archive, entries)
    with content.open(_plain(archive, entries, top + MANIFEST)) as source:
        written = source.read(LARGEST_MANIFEST + 1)
    if len(written) > LARGEST_MANIFEST:
        raise BundleError(f"{archive}: its manifest.json has more than {LARGEST_MANIFEST} bytes; zip the bundle again")
    manifest = parse_manifest(archive, written)
    # Before anything is written: a small archive may claim to unpack to more than a disk holds.
    _check_sizes(archive, manifest, packed, folder)
    for name, file in manifest.files.items():
        info = _plain(archive, entries, top + name)
        if info.file_size != file.size:
            raise BundleError(
                f"{archive}: {name} was altered: it has {info.file_size} bytes, not {file.size} as in the manifest; "
                "copy it again"
            )
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": nothing that is there already is written into, and no link is followed.
        with content.open(info) as source, open(path, "xb") as target:
            # Zipfile gives no more than file_size, and compares the CRC.
            shutil.copyfileobj(source, target, _BLOCK)
    (folder / MANIFEST).write_bytes(written)


def _entries(archive: Path, content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """List what is in an archive by name; two entries of one name are read differently by programs: none is right."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in content.infolist():
        if info.filename in entries:
            raise BundleError(f"{archive} holds {info.filename!r} twice; zip the bundle's folder again")
        entries[info.filename] = info
    return entries


def _top(archive: Path, entries: Iterable[str]) -> str:
    """Find what the names of a bundle's files begin with: it may be at the top, or in one folder there."""
    found = [name for name in entries if name.split("/")[-1] == MANIFEST and name.count("/") < 2]
    if MANIFEST in found:
        return ""
    if len(found) != 1:
        holds = f"{len(found)} bundles" if found else "no manifest.json"
        raise BundleError(f"{archive} holds {holds}; zip the folder of one bundle that tfm-export wrote")
    return found[0].removesuffix(MANIFEST)


def _plain(archive: Path, entries: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    """Find a file in an archive, and refuse what is no plain file or could be larger than it says."""
    info = entries.get(name)
    if info is None:
        raise BundleError(f"{archive}: {name} is missing, though the manifest lists it; zip the bundle again")
    # Unix's mode, in the upper half; 0 where the archive was made elsewhere.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise BundleError(f"{archive}: {name} is a link or no plain file; zip the bundle's files themselves")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{archive}: {name} is neither stored nor deflated; zip the bundle as zip does by default")
    return info


def _check_sizes(archive: Path, manifest: Manifest, packed: int, folder: Path) -> None:
    size = sum(file.size for file in manifest.files.values())
    if size > _MOST_RATIO * packed:
        raise BundleError(f"{archive} has {packed} bytes, which cannot hold the {size} that its manifest lists")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BundleError(
            f"{archive} unpacks to {size} bytes, but {folder.parent} has {free} free; make room, point TMPDIR "
            "elsewhere, or unzip it yourself and load the folder"
        )


def _renew_lock() -> None:
    """Start anew in a forked child: a lock that another thread of the parent held would never be released."""
    global _unpacking
    _unpacking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
