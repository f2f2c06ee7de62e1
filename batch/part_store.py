"""Parts of work that are finished, kept in a folder beside the output until all of it is in place.

A part is written to a temporary name, flushed to the disk and renamed: it is there as a whole, or not at all. So is the
plan, which says what work the parts are of, and so is the output. A process that is killed leaves parts and perhaps a
temporary file, which the next one writes anew.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from tfm.bundle import brief, read_json, try_lock
from tfm.errors import ExportError, InputError

_PLAN, _DONE, _LOCK = "plan.json", "done.json", "lock"
_PART = re.compile(r"part-(\d{9})\.arrow")
_REASONS = b"rejected"
"""In the metadata of a part: which rows have no result, and why."""


class PartStore:
    """The folder of one output.

    Attributes:
        folder: Where the parts are.
    """

    def __init__(self, target: Path) -> None:
        """Name it, and touch nothing."""
        self.folder, self._target = target.with_name(f"{target.name}.parts"), target

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other processes from it.

        Raises:
            InputError: Another process is at work there.
            ExportError: It cannot be made.
        """
        with saving(self.folder):
            self.folder.mkdir(exist_ok=True)
            descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # The system lets go of it when the process ends, however it ends.
            if try_lock(descriptor) is False:
                raise InputError(f"another process is at work in {self.folder}; wait for it, or end it")
            yield
        finally:
            os.close(descriptor)

    @property
    def is_done(self) -> bool:
        """Whether the output is in place, and only the parts were not removed yet."""
        return (self.folder / _DONE).exists()

    def begin(self, plan: Mapping[str, Any]) -> set[int]:
        """Begin some work, or go on with it.

        Returns:
            The numbers of the parts that are finished.

        Raises:
            InputError: The folder holds parts of other work.
        """
        file = self.folder / _PLAN
        if file.exists():
            if (changed := self._changed(file, plan)) is not None:
                raise InputError(
                    f"{self.folder} holds finished parts of other work: {changed}; to go on with that, run it as it "
                    "was; --restart (restart=True) throws the parts away and begins anew"
                )
        else:
            _write_whole(file, lambda stream: stream.write(json.dumps(plan, indent=2).encode()))
        names = os.listdir(self.folder)
        return {int(found[1]) for name in names if (found := _PART.fullmatch(name))}

    def was(self, plan: Mapping[str, Any]) -> bool:
        """Whether it is this work that was finished here."""
        return self._changed(self.folder / _DONE, plan) is None

    def _changed(self, file: Path, plan: Mapping[str, Any]) -> str | None:
        # By way of JSON, as the one that was read is.
        return difference(read_json(file), json.loads(json.dumps(plan)))

    def write(self, number: int, table: pa.Table, reasons: Mapping[int, str]) -> None:
        """Keep a part, and which rows of it, by their numbers in the input, have no result.

        Raises:
            ExportError: It cannot be written.
        """
        said = json.dumps({str(row): why for row, why in sorted(reasons.items())}).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _REASONS: said})

        def put(stream: BufferedWriter) -> None:
            with pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)

        _write_whole(self._part(number), put)

    def read(self, number: int) -> tuple[pa.Table, dict[int, str]]:
        """Read a part.

        Raises:
            InputError: It cannot be read.
        """
        path = self._part(number)
        try:
            with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
                table = reader.read_all()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} cannot be read: {error}; remove it, and the same command makes it anew"
            ) from error
        metadata = dict(table.schema.metadata)
        said = json.loads(metadata.pop(_REASONS))
        # None and not {}: a table that never had any is written without.
        return table.replace_schema_metadata(metadata or None), {int(row): why for row, why in said.items()}

    def place(self, target: Path, put: Callable[[BufferedWriter], object]) -> None:
        """Write a file as a whole, and put it in its place.

        Raises:
            ExportError: It cannot be written.
        """
        _write_whole(target, put, self.folder / f"{target.name}.tmp")

    def finish(self) -> None:
        """Remove the parts: the output is in place."""
        # First it is said that nothing is left to do, since removing takes a while, in which it may be killed.
        with saving(self.folder):
            if not self.is_done:
                os.replace(self.folder / _PLAN, self.folder / _DONE)
        for name in sorted(os.listdir(self.folder), key=lambda name: name == _DONE):
            with contextlib.suppress(OSError):
                os.unlink(self.folder / name)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def throw_away(self) -> None:
        """Remove what there is of other work."""
        with saving(self.folder):
            # The plan first: without it parts are of nobody, and are thrown away too.
            (self.folder / _PLAN).unlink(missing_ok=True)
            for name in os.listdir(self.folder):
                if name != _LOCK:
                    (self.folder / name).unlink()

    @property
    def has_plan(self) -> bool:
        """Whether some work was begun here."""
        return (self.folder / _PLAN).exists()

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:09}.arrow"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in what two plans differ; None: in nothing."""
    for name in dict.fromkeys([*before, *now]):
        one, other = before.get(name), now.get(name)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            return f"{name}, {difference(one, other)}"
        return f"{name} was {brief(one)}, and is {brief(other)} now"
    return None


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """While something is written: an error of pyarrow's or the system's is one of ours.

    Raises:
        ExportError: It could not be written.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise ExportError(f"{path} could not be written: {error}") from error


def _write_whole(path: Path, put: Callable[[BufferedWriter], object], part: Path | None = None) -> None:
    """Write a file so that it is there as a whole or not at all, even where the machine loses its power."""
    part = path.with_name(f"{path.name}.tmp") if part is None else part
    with saving(path):
        with open(part, "wb") as stream:
            put(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        # A rename is kept by the folder, which has to reach the disk as well.
        if os.name != "nt":
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
