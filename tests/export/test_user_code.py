"""Python files of a user's own are imported as if they were run, and take nobody's name."""

import random
import sys
from pathlib import Path

import pytest

from tfm.errors import ExportError, InputError
from tfm.export import import_file
from tfm.export.generic.factory import from_factory

CODE = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Options:
    steps: int = 3
"""


def test_dataclasses_with_annotations_as_strings(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text(CODE)
    module = import_file(tmp_path / "random.py")
    assert module.Options().steps == 3
    assert sys.modules["random"] is random
    assert not (tmp_path / "__pycache__").exists()


def test_what_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"broken\.py cannot be imported: ZeroDivisionError"):
        import_file(tmp_path / "broken.py")


def test_a_factory_that_changes_the_folder_fails_for_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wanders_off.py").write_text("import os\nos.chdir('/')\nraise ValueError('no weights here')")
    before = list(sys.path)
    with pytest.raises(ExportError, match="importing 'wanders_off' fails: ValueError no weights here"):
        from_factory("wanders_off:make")
    assert sys.path == before
