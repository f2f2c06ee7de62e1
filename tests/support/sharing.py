"""What is made once for all tests of a run, whichever of xdist's processes asks for it first."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Shelf:
    """Folders by what is in them, beside the temporary folders of every process of this run.

    Args:
        factory: Whose temporary folders those are.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        base = factory.getbasetemp()
        self._place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shelf"
        self._place.mkdir(exist_ok=True)

    def get(self, key: str, make: Callable[[Path], object]) -> Path:
        """Get the folder of a key, which nobody changes; `make` fills it where it is not there yet."""
        folder = self._place / hashlib.sha256(key.encode()).hexdigest()[:24]
        with FileLock(folder.with_suffix(".lock")):
            if not folder.with_suffix(".made").exists():  # of one that failed half-way, nothing is taken
                folder.mkdir(exist_ok=True)
                make(folder)
                folder.with_suffix(".made").touch()
        return folder
