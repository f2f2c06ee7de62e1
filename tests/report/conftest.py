"""What the tests of the report share."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import parity_schema
from tests.support import samples as made


@pytest.fixture(scope="session")
def samples() -> Any:
    """The certificates of tests/support/samples.py."""
    return made


@pytest.fixture(scope="session")
def problems() -> Callable[[dict[str, Any]], list[str]]:
    """What a certificate and docs/parity.md do not agree in."""
    return parity_schema.problems
