"""The temporary folder of what engines are told: their jobs and inputs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tfm.bundle import scratch_folder
from tfm.errors import VerificationError


@contextlib.contextmanager
def shelf() -> Iterator[Path]:
    """Make a temporary folder, and remove it.

    Raises:
        VerificationError: There is no room for one.
    """
    with contextlib.ExitStack() as stack:
        with writing(None):
            folder = stack.enter_context(scratch_folder())
        yield folder


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Say what to do where something cannot be written into a temporary folder, as one on a full disk.

    Raises:
        VerificationError: It cannot.
    """
    try:
        yield
    except OSError as error:
        where = "a temporary folder" if folder is None else f"the temporary folder {folder}"
        raise VerificationError(
            f"what is to be timed cannot be written to {where}: {error.strerror or error}; make room there, or name "
            "another folder by the environment variable TMPDIR"
        ) from error
