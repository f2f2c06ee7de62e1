"""Files of calibration data, read a sample at a time: none is ever wholly in memory, and nothing in them is run.

.txt     UTF-8, a text per line
.jsonl   an object per line with "text", a string, or "input_ids", a list of integers; other keys are left alone
.npz     arrays by the graph's input names, whose first axis counts samples; no pickles
folder   of these: a sample of each file in turn, in the order of their names
"""

import contextlib
import functools
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tfm.errors import CalibrationError

Content = str | dict[str, Any]
"""A text, or what goes into the graph by input name, without the batch axis."""

_MAX_LINE = 1 << 20
"""Bytes of the longest line: a model's greatest text has less, and a file without line ends is not to fill memory."""


_MOST_ROW = 1 << 30
"""Bytes of one row of an array, where nobody says how many the model could read."""

_MOST_ARRAYS = 1_000
"""In one .npz file: a graph has fewer inputs."""

_LEAST_UNPACKED, _MOST_RATIO = 1 << 30, 100
"""Bytes to which an .npz file may unpack whatever its size, and how many times its size beyond: ids and masks that are
mostly padding pack well, but a file that is more than 99 % nothing is there to fill memory and time."""


def read_samples(source: Path, most_bytes: int = _MOST_ROW) -> Iterator[tuple[str, Content]]:
    """Read samples, in the same order on each call.

    Args:
        source: A file or folder.
        most_bytes: Of one row of an array: what has more is refused before it is read.

    Yields:
        Where the sample stands, as "corpus.txt, line 3", and what it is.

    Raises:
        CalibrationError: There is no such file, it is of another kind, or it is malformed; with the line or sample.
    """
    files = [source]
    if source.is_dir():
        try:
            files = sorted(file for file in source.iterdir() if not file.name.startswith("."))
        except OSError as error:
            raise CalibrationError(f"{source} cannot be read: {error}") from error
        if not files:
            raise CalibrationError(f"{source} is an empty folder; put the files to calibrate with into it")
    readers = [_read_file(file, most_bytes) for file in files]
    while readers:
        for reader in list(readers):
            sample = next(reader, None)
            if sample is None:
                readers.remove(reader)
            else:
                yield sample


def _read_file(file: Path, most_bytes: int) -> Iterator[tuple[str, Content]]:
    known: dict[str, Callable[[Path], Iterator[tuple[str, Content]]]] = {
        ".txt": _read_texts,
        ".jsonl": _read_objects,
        ".npz": functools.partial(_read_arrays, most_bytes=most_bytes),
    }
    if not file.is_file() or file.suffix not in known:
        state = "a folder within a folder" if file.is_dir() else "of no known kind" if file.exists() else "not there"
        raise CalibrationError(f"{file} is {state}; give a {', '.join(known)} file, or a folder of these")
    sample = None
    for sample in known[file.suffix](file):
        yield sample
    if sample is None:
        raise CalibrationError(f"{file} holds no sample; remove it, or give it some")


def _read_lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with open(file, "rb") as stream:
            number = 0
            while line := stream.readline(_MAX_LINE + 1):
                number += 1
                place = f"{file}, line {number}"
                if len(line) > _MAX_LINE:
                    raise CalibrationError(f"{place} is longer than {_MAX_LINE} bytes; put one text on each line")
                try:
                    # A byte order mark can stand before the first line, and is none of its text.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise CalibrationError(f"{place} is not UTF-8: {error}; convert the file") from error
                if not text.strip():
                    raise CalibrationError(f"{place} is empty; remove it")
                yield place, text
    except OSError as error:
        raise CalibrationError(f"{file} cannot be read: {error}") from error


def _read_texts(file: Path) -> Iterator[tuple[str, Content]]:
    yield from _read_lines(file)


def _read_objects(file: Path) -> Iterator[tuple[str, Content]]:
    for place, line in _read_lines(file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{place} is not JSON: {error}") from error
        found = [key for key in ("text", "input_ids") if isinstance(value, dict) and key in value]
        if len(found) != 1:
            raise CalibrationError(f'{place} must be an object with either "text" or "input_ids"')
        content = value[found[0]]
        if found == ["text"]:
            if not isinstance(content, str) or not content.strip():
                raise CalibrationError(f"{place}: its text must be a string that is not empty")
            yield place, content
        else:
            if not isinstance(content, list) or any(type(item) is not int for item in content) or not content:
                raise CalibrationError(f"{place}: its input_ids must be a list of integers that is not empty")
            yield place, {"input_ids": content}


def _read_arrays(file: Path, most_bytes: int) -> Iterator[tuple[str, Content]]:
    try:
        # All arrays stay open side by side: a sample is one row of each.
        with zipfile.ZipFile(file) as archive, contextlib.ExitStack() as opened:
            members = _members(file, archive)
            arrays = {}
            for member in members:
                stream = opened.enter_context(archive.open(member))
                arrays[member.filename.removesuffix(".npy")] = _Rows(file, stream, member, most_bytes)
            count = {name: rows.count for name, rows in arrays.items()}
            if len(set(count.values())) > 1:
                sizes = ", ".join(f"{name} {size}" for name, size in count.items())
                raise CalibrationError(f"{file}: the first axis counts samples, but its sizes differ: {sizes}")
            for index in range(min(count.values())):
                yield f"{file}, sample {index}", {name: rows.read() for name, rows in arrays.items()}
    except CalibrationError:
        raise
    except Exception as error:  # those of zipfile, zlib and numpy share no narrower base
        raise CalibrationError(f"{file} cannot be read as .npz: {error or type(error).__name__}") from error


def _members(file: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Give the arrays of an .npz file, once it is known that they are few and unpack to no absurd size."""
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if not members:
        raise CalibrationError(f"{file} holds no arrays")
    if len(members) > _MOST_ARRAYS or len({info.filename for info in members}) < len(members):
        raise CalibrationError(f"{file} holds {len(members)} arrays; give one for each input of the model")
    unpacked, most = sum(info.file_size for info in members), _MOST_RATIO * file.stat().st_size
    if unpacked > max(most, _LEAST_UNPACKED):
        raise CalibrationError(
            f"{file} would unpack to {unpacked >> 20} MiB, more than {_MOST_RATIO} times its size; give real samples, "
            "or fewer in a file"
        )
    return members


class _Rows:
    """One array of an .npz file, row after row."""

    def __init__(self, file: Path, stream: IO[bytes], member: zipfile.ZipInfo, most_bytes: int) -> None:
        place, self._stream = f"{file}: {member.filename}", stream
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise CalibrationError(f"{place} holds records; give plain arrays of numbers")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, self._dtype = read(stream)
        if self._dtype.hasobject:
            raise CalibrationError(f"{place} holds objects, which only pickle reads; give plain arrays of numbers")
        if not shape or min(shape) < 0:
            raise CalibrationError(f"{place} has shape {shape}; its first axis must count samples")
        if in_columns and len(shape) > 1:
            raise CalibrationError(f"{place} is stored column by column; save np.ascontiguousarray of it")
        self.count, self._shape = shape[0], shape[1:]
        self._size = math.prod(self._shape) * self._dtype.itemsize
        if self._size > most_bytes:
            raise CalibrationError(
                f"{place}: one sample of it has shape {self._shape} and takes {self._size >> 20} MiB, but what this "
                f"model reads of one has at most {max(most_bytes >> 20, 1)}; the first axis must count samples"
            )
        # What the header claims, against what the archive says it holds: nothing is unpacked for
        # this.
        if self._size * self.count > member.file_size:
            raise CalibrationError(
                f"{place} should hold {self._size * self.count} bytes, but has {member.file_size}; was it cut short?"
            )

    def read(self) -> npt.NDArray[Any]:
        """Read the next row."""
        content = self._stream.read(self._size)
        if len(content) != self._size:
            raise EOFError("it ends too early")
        return np.frombuffer(content, self._dtype).reshape(self._shape)
