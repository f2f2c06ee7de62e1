"""A folder that appears whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tfm.errors import ExportError


@contextlib.contextmanager
def staged(output: Path, *, overwrite: bool) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Make a temporary sibling of `output` to write into, and a function that puts it in place.

    A body that leaves without calling the function, by return or error, leaves nothing behind.

    Args:
        output: Absolute path of the folder to make.
        overwrite: Replace a bundle (a folder with a manifest.json) that is there already.

    Yields:
        The folder to write into, and the function to call once it is complete.

    Raises:
        ExportError: `output` exists, or its place cannot be written to.
    """
    try:
        exists = output.exists()
    except OSError as error:
        raise ExportError(f"no bundle can be written to {output}: {error.strerror}") from error
    if exists and not overwrite:
        raise ExportError(
            f"{output} exists already; choose another folder with -o, or replace the bundle with --overwrite"
        )
    if exists and not (output / "manifest.json").is_file():
        raise ExportError(f"{output} exists and is not a bundle (it has no manifest.json): --overwrite leaves it alone")
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        _remove_empty(made)
        raise ExportError(f"no bundle can be written to {output.parent}: {error.strerror}") from error
    new, old = room / "new", room / "old"

    def put_in_place() -> None:
        for file in new.rglob("*"):
            _flush(file)
        if output.exists():
            os.rename(output, old)
        os.rename(new, output)
        _flush(output.parent)

    try:
        new.mkdir()
        yield new, put_in_place
    except OSError as error:
        raise ExportError(f"the bundle could not be written to {output.parent}: {error.strerror or error}") from error
    finally:
        if old.exists() and not output.exists():
            os.rename(old, output)
        shutil.rmtree(room, ignore_errors=True)
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made on the way, innermost first, unless the bundle is in them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _flush(path: Path) -> None:
    """Have the system write a file or folder to disk; where folders cannot be opened (Windows), files alone."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
