"""A bundle of a sentence-transformers folder, as it is, opened by others: their embeddings are ours."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import LONGEST, edit_json, make, quick
from tfm.runtime import Encoder, load

pytest.importorskip(
    "sentence_transformers", reason="what the checkpoints are made with: pip install sentence-transformers"
)

TEXTS = ["who lives in paris?", "the capital of france is paris, " * 20, "é 你 😀", "a small town"]
KINDS = {
    "mean": ("bert", "mean", False),
    "cls, of length 1": ("bert", "cls", True),
    "mean of RoBERTa, of length 1": ("roberta", "mean", True),
    "max": ("bert", "max", False),
}
"""What is tried → family, pooling, and whether Normalize comes behind it."""

Opened = Callable[[str], tuple[Encoder, Path, Any]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Ours, the bundle's folder, and sentence-transformers' own model, of one kind."""
    found: dict[str, tuple[Encoder, Path, Any]] = {}

    def of(kind: str) -> tuple[Encoder, Path, Any]:
        if kind not in found:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

            family, pooling, unit = KINDS[kind]
            folder = tmp_path_factory.mktemp("embedder")
            make(family, "Model", folder / "base")
            modules = [Transformer(str(folder / "base"), max_seq_length=24), Pooling(32, pooling_mode=pooling)]
            theirs = SentenceTransformer(modules=[*modules, *([Normalize()] if unit else [])], device="cpu")
            theirs.save(str(folder / "checkpoint"))
            # As older versions wrote it: the limit stands in a file that fastembed does not read.
            edit_json(folder / "checkpoint" / "tokenizer_config.json", model_max_length=LONGEST)
            (folder / "checkpoint" / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
            bundle = quick(folder / "checkpoint", folder / "x.tfm")
            ours = load(bundle, provider="cpu", threads=1)
            assert isinstance(ours, Encoder)
            found[kind] = ours, bundle, theirs
        return found[kind]

    return of


@pytest.mark.skipif(importlib.util.find_spec("fastembed") is None, reason="needs the package fastembed")
@pytest.mark.parametrize("kind", KINDS)
def test_fastembed(opened: Opened, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours, bundle, theirs = opened(kind)
    expected = ours.embed(TEXTS, long_texts="cut")
    np.testing.assert_allclose(expected, theirs.encode(TEXTS), rtol=0, atol=1e-5)
    # The graph pools and normalizes; fastembed's own pooling, of the token states, must come to the same.
    ways: list[tuple[str, Any, dict[str, Any]]] = [
        ("ours", PoolingType.DISABLED, {"output_name": "sentence_embedding", "normalization": False})
    ]
    _, pooling, unit = KINDS[kind]
    if pooling in ("mean", "cls"):
        ways.append(("its own", getattr(PoolingType, pooling.upper()), {"normalization": unit}))
    for name, how, options in ways:
        said = f"{kind}, {name}"
        TextEmbedding.add_custom_model(said, pooling=how, sources=ModelSource(hf="none/none"), dim=32, **options)
        reader = TextEmbedding(said, specific_model_path=str(bundle), providers=["CPUExecutionProvider"], threads=1)
        np.testing.assert_allclose(np.stack(list(reader.embed(TEXTS))), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_by_onnx(opened: Opened, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    pytest.importorskip(
        "optimum.exporters.onnx.convert", exc_type=ImportError, reason="needs optimum-onnx, and transformers 4 for it"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours, bundle, _ = opened(kind)
    files = sorted(path.name for path in bundle.rglob("*"))
    reader = SentenceTransformer(str(bundle), backend="onnx", device="cpu", local_files_only=True)
    np.testing.assert_allclose(reader.encode(TEXTS), ours.embed(TEXTS, long_texts="cut"), rtol=0, atol=1e-5)
    assert sorted(path.name for path in bundle.rglob("*")) == files  # it opened ours, and exported none of its own
