"""Bundles of tiny models, as the exporter writes them but for what a look inside does not read."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.export.manifest import write_manifest

TOYS = Path(__file__).resolve().parents[2] / "runtime" / "conftest.py"


@pytest.fixture(scope="session")
def toys() -> Any:
    """The hand-built bundles of tests/runtime."""
    spec = importlib.util.spec_from_file_location("toy_bundles", TOYS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_bundle(export_tiny: Any, toys: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny model's fp32 bundle, by default one that reads words a … h; gives its folder."""

    def make(*, text: bool = True, **options: Any) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.tfm"
        (folder / "onnx").mkdir(parents=True)
        exported = export_tiny(**options)
        files = {}
        for role, one in exported.items():
            files[role] = folder / "onnx" / one.path.name
            files[role].write_bytes(one.path.read_bytes())
        if text:
            toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
        graphs = [one.graph for one in exported.values()]
        write_manifest(folder, graphs[0].model.config, "own", graphs, {"fp32": files}, 24, [])
        return folder

    return make
