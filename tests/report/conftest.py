"""What the tests of the report share."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def samples() -> SimpleNamespace:
    """The certificates of samples.py, which no test can import: tests are no package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("samples.py"))))
