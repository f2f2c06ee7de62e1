"""What the tests of the report share."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def samples() -> SimpleNamespace:
    """The certificates of samples.py, which no test can import: tests are no package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("samples.py"))))


@pytest.fixture(scope="session")
def problems() -> Callable[[dict[str, Any]], list[str]]:
    """What a certificate and docs/parity.md do not agree in; by path, as tests are no package."""
    found: Callable[[dict[str, Any]], list[str]] = runpy.run_path(str(Path(__file__).with_name("parity_schema.py")))[
        "problems"
    ]
    return found
