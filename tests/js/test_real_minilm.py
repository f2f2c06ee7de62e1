"""The real MiniLM, packed in int8: small, and the same under Node, in transformers.js and in Python."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import tfm
from tests.support.javascript import run_node
from tests.support.js_tasks import DTYPES, TEXTS, check_packs, tasks_of
from tests.support.packs import minilm, write_packs


@pytest.mark.slow
def test_minilm_packed(node: Path, tmp_path: Path) -> None:
    write_packs(tmp_path, "minilm", lambda folder: shutil.copytree(minilm(), folder))
    size = sum(path.stat().st_size for path in (tmp_path / "minilm-int8").rglob("*") if path.is_file())
    assert size < 24e6
    check_packs(run_node(node, {"tasks": tasks_of(str(tmp_path), ["minilm"])}), tmp_path, "cpu", ["minilm"])
    others = [
        {"bundle": f"minilm-{precision}", "dtype": dtype, "kind": "embed", "texts": TEXTS[:2]}
        for precision, dtype in DTYPES.items()
    ]
    found = run_node(node, {"others": others, "root": str(tmp_path)})
    for precision, one in zip(DTYPES, found, strict=True):
        with tfm.load(tmp_path / f"minilm-{precision}", provider="cpu") as model:
            nearness = np.einsum("bd,bd->b", one["results"], model.embed(TEXTS[:2]))
        assert (nearness > (1 - 1e-6 if precision == "fp32" else 0.99)).all()
