"""Tiny random checkpoints as we open them, and as transformers does; each is exported once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.task_models import make, quick
from tfm.runtime import load


class Both(NamedTuple):
    """A checkpoint in both libraries."""

    ours: Any
    theirs: Any
    words: Any
    folder: Path


@pytest.fixture(scope="session")
def open_both(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Both]:
    """Save a tiny random model of a family with a head; give it as we open it, and as transformers does."""
    made: dict[Any, Both] = {}

    def opened(family: str, head: str, **options: Any) -> Both:
        key = (family, head, repr(options))
        if key not in made:
            folder = tmp_path_factory.mktemp("both")
            theirs, words = make(family, head, folder / "checkpoint", **options)
            ours = load(quick(folder / "checkpoint", folder / "x.tfm"), provider="cpu", threads=1)
            made[key] = Both(ours, theirs, words, folder)
        return made[key]

    return opened
