import importlib.util
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "runtime" / "conftest.py"


@pytest.fixture(scope="session")
def toys():
    """The hand-built bundles of tests/runtime."""
    spec = importlib.util.spec_from_file_location("toy_bundles", CONFTEST)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_bundle(toys, tmp_path):
    return lambda kind, **changes: str(toys.write_bundle(tmp_path / kind, kind, **changes))
