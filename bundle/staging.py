"""A folder that appears whole or not at all, and takes nothing away that was not to be replaced.

It is written beside its place, in a folder that tells whether its process still lives (`tfm.bundle.scratch`), and
renamed when it is complete: where the system can, in one step that takes the old one out at the same time. Elsewhere
there is a moment between two renames; a process that is killed in it leaves both, and the next finishes what it began.
What is at the place by then is looked at again: what appeared there, or was changed, since the work began stays, and
the finished folder is kept beside it.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tfm.errors import ExportError

from .renames import exchange, move
from .scratch import LOCK, HeldFolder, clear_up
from .stopping import Patience

placed: list[Path] = []
"""What this process has put in place, so that a message of an interruption is true."""

_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def staged(
    output: Path, *, overwrite: bool, what: str = "bundle", mark: str = "manifest.json"
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Make a temporary sibling of `output` to write into, and a function that puts it in place.

    A body that leaves without calling the function, by return or error, leaves nothing behind. Nor does a signal that
    is sent again and again: once one is heeded, those that follow at once are not.

    Args:
        output: Absolute path of the folder to make.
        overwrite: Replace a folder of this kind that is there already.
        what: The kind of folder, for messages.
        mark: The file that shows that a folder is of this kind.

    Yields:
        The folder to write into, and the function to call once it is complete.

    Raises:
        ExportError: `output` exists, another process is making it just now, or its place cannot be written to; at the
            end, that something else is there meanwhile, and where the finished folder was put.
    """
    patience = Patience()
    patience.start()
    try:
        with _staged(_Place(output, what, mark), overwrite, patience) as folder_and_end:
            yield folder_and_end
    finally:
        patience.stop()


def finish(output: Path) -> None:
    """Finish what a process that was killed began to put in place, and remove what others left behind.

    Raises:
        ExportError: A process is making it just now.
    """
    if holders := clear_up(output.parent, f".{output.name}.", before=lambda room: _finish(room, output)):
        raise ExportError(
            f"another process (number {holders[0]}) is making {output} just now; wait until it has ended, or choose "
            "another folder with -o"
        )


class _Place:
    """Where a folder is to be, and what was there when the work began."""

    def __init__(self, output: Path, what: str, mark: str) -> None:
        self.output, self.what, self._mark = output, what, mark
        self.before: str | None = None

    def look(self, overwrite: bool) -> None:
        """Remember what is there; refuse it where it is not to be replaced."""
        if not self.output.exists():
            return
        if not overwrite:
            raise ExportError(
                f"{self.output} exists already; choose another folder with -o, or replace the {self.what} with "
                "--overwrite"
            )
        self.before = self.identity(self.output)
        if self.before is None:
            raise ExportError(
                f"{self.output} exists and is not a {self.what} (it has no {self._mark}): --overwrite leaves it alone"
            )

    def identity(self, folder: Path) -> str | None:
        """Tell a folder by its mark, as a manifest lists the digests of all else; None: it has none."""
        mark = folder / self._mark
        if not mark.is_file():
            return None
        return hashlib.sha256(mark.read_bytes()).hexdigest()

    def put(self, new: Path, old: Path) -> None:
        """Put the finished folder there. What it replaces is then at either of these paths."""
        # Nothing was there when the work began, or it is gone: nothing may be replaced.
        if self.before is None or not os.path.lexists(self.output):
            with self._kept_on_failure(new, "has appeared"):
                move(new, self.output)
            return
        with self._kept_on_failure(new, "was changed"):
            self._check(self.output)
            # In one step: what was there is now at `new`, and there is no moment with nothing.
            if exchange(new, self.output):
                try:
                    # It may have been changed until just before; now nobody finds it any more.
                    self._check(new)
                except OSError:
                    self._change_back(new)
                    raise
                return
            # Without an exchange, the old one moves first. A process that is killed between this
            # and the next rename leaves both; `_finish` of the next one puts the new one in place.
            os.rename(self.output, old)
            try:
                self._check(old)
                move(new, self.output)
            except OSError:
                self._put_back(old)
                raise

    def _check(self, folder: Path) -> None:
        if self.identity(folder) != self.before:
            raise FileExistsError(f"{folder} is another")

    def _change_back(self, other: Path) -> None:
        if not exchange(other, self.output):
            kept = _keep(other, self.output)
            raise ExportError(
                f"{self.output} was changed while this ran; the finished {self.what} is there, and what was there is "
                f"{kept}"
            )

    def _put_back(self, old: Path) -> None:
        try:
            move(old, self.output)
        except FileExistsError:  # something appeared between the two renames
            _keep(old, self.output)
        except OSError as error:
            raise ExportError(
                f"{self.output} could not be replaced, nor put back: {error.strerror}; it is {old}, and the next "
                "run of the same command puts the new one in place"
            ) from error

    @contextlib.contextmanager
    def _kept_on_failure(self, new: Path, how: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            kept = _keep(new, self.output)
            raise ExportError(
                f"{self.output} {how} while this ran, and is left as it is; the finished {self.what} is {kept}: move "
                "it to where you want it"
            ) from error


def _keep(folder: Path, output: Path) -> Path:
    """Move a folder to a name beside `output` that is free."""
    # "model.tfm" becomes "model-2.tfm"; any other name may hold dots that are no suffix.
    stem, suffix = (output.stem, output.suffix) if output.suffix == ".tfm" else (output.name, "")
    for number in itertools.count(2):
        kept = output.with_name(f"{stem}-{number}{suffix}")
        with contextlib.suppress(FileExistsError):
            move(folder, kept)
            return kept
    raise AssertionError("numbers have no end")


@contextlib.contextmanager
def _staged(place: _Place, overwrite: bool, patience: Patience) -> Iterator[tuple[Path, Callable[[], None]]]:
    output = place.output
    try:
        finish(output)
        place.look(overwrite)
    except OSError as error:
        raise ExportError(f"no {place.what} can be written to {output}: {error.strerror}") from error
    # Before they are made, innermost first: what was not there goes again where nothing is written.
    made = [folder for folder in output.parents if not folder.exists()]
    room: HeldFolder | None = None
    try:
        # A signal between making the folder and binding its name would leave it behind.
        with patience.hold():
            room = _make_room(place)
        new, old = room.path / _NEW, room.path / _OLD
        new.mkdir()

        def put_in_place() -> None:
            # Before the rename: else a power cut could leave the name, and files without content.
            for file in (new, *new.rglob("*")):
                _flush(file)
            with patience.hold():
                place.put(new, old)
                # Within the hold, so that a message of an interruption knows that it is there.
                placed.append(output)
                _flush(output.parent)

        yield new, put_in_place
    except OSError as error:
        raise ExportError(
            f"the {place.what} could not be written to {output.parent}: {error.strerror or error}"
        ) from error
    finally:
        with patience.hold():
            if room is not None:
                # The rename back failed, too: `finish` of the next run goes on from this room.
                # The only one there is.
                if (room.path / _OLD).exists() and not os.path.lexists(output):
                    room.leave()
                room.remove()
            _remove_empty(made)


def _make_room(place: _Place) -> HeldFolder:
    parent = place.output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return HeldFolder(parent, f".{place.output.name}.")
    except OSError as error:
        raise ExportError(f"no {place.what} can be written to {parent}: {error.strerror}") from error


def _finish(room: Path, output: Path) -> None:
    """Finish what was cut short between two renames, the only moment at which nothing is at its place.

    Raises:
        OSError: It cannot be finished; all of it is to stay.
    """
    unknown = set(os.listdir(room)) - {LOCK, _NEW, _OLD}
    # Whatever it is, it is not ours to move or to remove.
    if unknown:
        raise FileExistsError(f"{room} holds {unknown}, which no process of ours puts there")
    # `new` was complete before `old` was moved.
    if (room / _OLD).exists() and not os.path.lexists(output):
        move(room / (_NEW if (room / _NEW).exists() else _OLD), output)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made on the way, innermost first, unless the bundle is in them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _flush(path: Path) -> None:
    """Have the system write a file or folder to disk; where folders cannot be opened (Windows), files alone."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
