"""Fixtures that write the toy bundles and meddle with them, for the conftest of each folder that needs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.toys import add_golden, write_bundle, write_manifest

Bundle = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> Bundle:
    """Write a bundle of a kind of `KINDS`; keywords replace parts of its manifest."""
    return lambda kind, **changes: write_bundle(tmp_path / kind, kind, **changes)


@pytest.fixture
def edit_manifest() -> Callable[..., None]:
    """Change a bundle's manifest by a function of its dict, leaving the files' digests alone."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "manifest.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


@pytest.fixture
def make_golden(make_bundle: Bundle) -> Callable[[], Path]:
    """Write the toy encoder's bundle with golden outputs."""
    return lambda: add_golden(make_bundle("encoder"))


@pytest.fixture
def remake_digests() -> Callable[[Path], None]:
    """Make a bundle's manifest say of the files what they are, as one would who meddles with them."""
    return lambda folder: write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
