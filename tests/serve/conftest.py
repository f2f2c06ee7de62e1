"""Bundles to serve: an embedder, a classifier of pairs, a reranker, a chat model, an encoder-decoder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import toys
from tests.support.sharing import Shelf
from tests.support.task_models import make, quick
from tests.support.tiny_bundles import by_byte
from tfm.bundle import read_manifest, renew_manifest

pytest.importorskip("starlette", reason="pip install 'tfm-export[serve]'")

CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}:{% endfor %}"
)


def _write(folder: Path, generation_bundle: Callable[[str], tuple[Path, Any]]) -> None:
    toys.write_bundle(folder / "embedder.tfm", "encoder")
    toys.write_bundle(folder / "copier.tfm", "copier")
    for name, labels in (("labels", {0: "good", 1: "bad", 2: "so-so"}), ("reranker", {0: "score"})):
        make("bert", "ForSequenceClassification", folder / "checkpoint" / name, id2label=labels)
        quick(folder / "checkpoint" / name, folder / f"{name}.tfm")
    source = generation_bundle("llama")[0]
    shutil.copytree(source, folder / "chat.tfm")
    by_byte().save(str(folder / "chat.tfm" / "tokenizer.json"))
    (folder / "chat.tfm" / "chat_template.jinja").write_text(CHAT)
    (folder / "chat.tfm" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    renew_manifest(read_manifest(source), folder / "chat.tfm", {})


@pytest.fixture(scope="session")
def bundles(shelf_of_run: Shelf, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Path:
    """A folder of them."""
    return shelf_of_run.get("served bundles", lambda folder: _write(folder, generation_bundle))


@pytest.fixture(scope="session")
def every_bundle(bundles: Path) -> list[Path]:
    """All of them."""
    return sorted(bundles.glob("*.tfm"))
