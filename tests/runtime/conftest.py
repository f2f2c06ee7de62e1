"""The toy bundles of tests/support, as the tests of this folder take them."""

from typing import Any

import numpy as np
import pytest

from tests.support.toy_fixtures import Bundle, edit_manifest, make_bundle, make_golden, remake_digests
from tests.support.toys import TABLE_VD
from tfm.runtime import load

__all__ = ["edit_manifest", "make_bundle", "make_golden", "remake_digests"]


@pytest.fixture
def encoder(make_bundle: Bundle) -> Any:
    return load(make_bundle("encoder"), provider="cpu", threads=1)


@pytest.fixture
def copier(make_bundle: Bundle) -> Any:
    return load(make_bundle("copier"), provider="cpu", threads=1)


@pytest.fixture
def counter(make_bundle: Bundle) -> Any:
    return load(make_bundle("counter"), provider="cpu", threads=1)


@pytest.fixture
def tower(make_bundle: Bundle) -> Any:
    return load(make_bundle("tower"), provider="cpu", threads=1)


@pytest.fixture
def table() -> np.ndarray:
    """The toy encoder's embeddings (V, D)."""
    return TABLE_VD
