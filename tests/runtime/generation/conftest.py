import pytest

from tests.support.generation_models import KINDS, make


@pytest.fixture
def tiny_gpt2():
    return make("gpt2")


@pytest.fixture(scope="session")
def tiny_models():
    return {kind: make(kind) for kind in KINDS}
