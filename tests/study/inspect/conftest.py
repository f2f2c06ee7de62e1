"""Bundles of tiny models, as the exporter writes them but for what a look inside does not read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.export.manifest import write_manifest


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
