"""Rows of letters, and the toy encoder that embeds them: each alone, so that no batch-mate changes a bit."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="pip install 'tfm-export[map]'")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> Path:
    """The toy encoder."""
    return toys.write_bundle(tmp_path_factory.mktemp("bundle") / "encoder.tfm", "encoder")


@pytest.fixture(scope="session")
def make_rows() -> Callable[[int], list[dict[str, Any]]]:
    """So many rows, each of a number and a text of letters."""

    def make(count: int) -> list[dict[str, Any]]:
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefgh")) for _ in range(count + 6)]
        return [{"id": row, "text": " ".join(words[row : row + 1 + row % 6])} for row in range(count)]

    return make
