"""GGUF files written here as llama.cpp's converter lays them out, against the modules they were made from."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor, nn

from tests.support.gguf_files import SIZES, theirs, write
from tfm.errors import CheckpointError, TfmError
from tfm.model import FAMILIES, TransformerConfig, load_chat_template, load_checkpoint
from tfm.model.fields import Fields
from tfm.model.formats.gguf import read_gguf, read_gguf_tokenizer

# float32 on both sides: two layers of sums of some dozens of terms of order 1, each rounded at 6e-8
SINGLE = 1e-5

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 12, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}


def convert(path: Path, values: dict[str, Any], weights: dict[str, Tensor]) -> tuple[TransformerConfig, Any]:
    family = values["model_type"]
    return FAMILIES[family](path.parent, Fields(path, family, values), weights)


@torch.no_grad()
def check(path: Path, module: nn.Module) -> None:
    """The file's model gives the module's logits."""
    values, weights = read_gguf(path)
    assert load_checkpoint(path).config == convert(path, values, weights)[0]
    model = load_checkpoint(path)
    ids_BS = torch.randint(SIZES["vocab_size"], (2, 48), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids_BS), module(input_ids=ids_BS).logits, rtol=0, atol=SINGLE)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs(tmp_path: Path, name: str) -> None:
    family, options = MODELS[name]
    module = theirs(family, **options)
    sizes = {"attention.key_length": 12, "attention.value_length": 12} if "head_dim" in options else {}
    check(write(tmp_path / "x", module, **sizes), module)


def test_scaled_positions(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
    module = theirs("llama", rope_parameters=scaling)
    values = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
    check(write(tmp_path / "yarn", module, **{f"rope.scaling.{key}": value for key, value in values.items()}), module)
    module = theirs("qwen2", rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0})
    check(write(tmp_path / "linear", module, **{"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}), module)
    check(write(tmp_path / "older", module, **{"rope.scale_linear": 3.0}), module)


def test_llama_3s_divisors(tmp_path: Path) -> None:
    """The converter writes them as a tensor, not as numbers."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    module = theirs("llama", rope_parameters=scaling, head_dim=16)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    divisors = (plain / module.model.rotary_emb.inv_freq).numpy()
    assert divisors[4:7].max() > 1.0
    sizes = {"attention.key_length": 16}
    path = write(tmp_path / "x", module, tensors={"rope_freqs.weight": divisors}, **sizes)
    check(path, module)
    path = write(tmp_path / "y", module, tensors={"rope_freqs.weight": divisors + 1}, **sizes)
    with pytest.raises(CheckpointError, match=r"y: its rope_freqs\.weight is not that of Llama 3\.1 or 3\.2"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("Q8_0", torch.float32),
        ("Q4_0", torch.float32),
        ("Q5_1", torch.float32),
    ],
)
def test_weights_are_as_stored_or_dequantized(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    module, type_ = theirs("qwen2"), GGMLQuantizationType[kind]
    _, weights = read_gguf(write(tmp_path / "x", module, type_))
    for name, weight in module.state_dict().items():
        if weight.ndim == 1:
            assert weights[name].dtype == torch.float32
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
            continue
        assert weights[name].dtype == dtype
        want = weight.to(dtype)
        if dtype == torch.float32:
            want = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), type_), type_))
            assert (want - weight).abs().max() < 0.3
        torch.testing.assert_close(weights[name], want, rtol=0, atol=0)


def test_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x", theirs("qwen2"))
    before = path.read_bytes()
    _, weights = read_gguf(path)
    weights["model.norm.weight"].zero_()
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("tiny") / "x", theirs("llama")).read_bytes()


def test_a_file_cut_short_is_refused(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "x.gguf"
    for length in [4, 5, 8, 23, 24, 100, 400, *range(1000, len(tiny) - 33, len(tiny) // 9)]:
        path.write_bytes(tiny[:length])
        with pytest.raises(CheckpointError, match=r"x\.gguf.*was it cut short\?$") as caught:
            read_gguf(path)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path, tiny: bytes) -> None:
    path, generator = tmp_path / "x.gguf", np.random.default_rng(0)
    header = tiny.index(b"output_norm.weight")
    for _ in range(150):
        damaged = bytearray(tiny)
        damaged[int(generator.integers(4, header))] = int(generator.integers(256))
        path.write_bytes(damaged)
        try:
            values, weights = read_gguf(path)
            convert(path, values, weights)
        except TfmError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"block_count": None}, "x.gguf lacks llama.block_count; was it cut short?"),
        ({"context_length": None}, "x.gguf lacks llama.context_length; was it cut short?"),
        ({"expert_count": 8}, "llama.expert_count = 8 is not supported; expected 0"),
        ({"attention.sliding_window": 7}, "llama.attention.sliding_window = 7 is not supported; expected 0"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count = 4 is not supported; expected 8"),
        ({"attention.causal": False}, "llama.attention.causal = False is not supported; expected True"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5 is not supported"),
        (
            {"rope.scaling.type": "longrope"},
            "rope.scaling.type = 'longrope' is not supported; known: none, linear, yarn",
        ),
        (
            {"tensors": {"blk.0.ffn_gate_inp.weight": np.ones(3, np.float32)}},
            "'blk.0.ffn_gate_inp.weight' has no place",
        ),
        ({"metadata": lambda w: w.add_uint16("split.count", 3)}, "is one of 3 parts; join them with llama-gguf-split"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_supported_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_gguf(write(tmp_path / "x.gguf", theirs("llama"), **change))
    assert told in str(caught.value)
    assert "x.gguf" in str(caught.value)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"GGUF of architecture 'mamba' is not supported; known: llama, qwen2"):
        read_gguf(tmp_path / "x.gguf")


def test_the_package_is_asked_for(tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for read in (read_gguf, read_gguf_tokenizer):
        with pytest.raises(CheckpointError, match="needs the package gguf, which is not installed: pip install gguf"):
            read(tmp_path / "x.gguf")


BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 writes these as themselves
LETTERS = [chr(byte) for byte in BYTES] + [chr(256 + n) for n in range(256 - len(BYTES))]
MERGES = ["h i", "Ġ hi", "1 2", "12 3", "Ġ Ġ", "Ġ 1"]
TOKENS = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<bos>", "<think>"]


def write_tokenizer(path: Path, split: str | None, kind: str = "gpt2", **flags: bool) -> Path:
    def add(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(kind)
        if split is not None:
            writer.add_tokenizer_pre(split)
        writer.add_token_list(TOKENS)
        writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 4])
        writer.add_token_merges(MERGES)
        writer.kv_data[0]["tokenizer.ggml.bos_token_id"].value = TOKENS.index("<bos>")
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    return write(path, theirs("llama", vocab_size=len(TOKENS)), metadata=add)


def test_a_chat_template_is_read(tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_chat_template("{{ bos_token }}{{ messages }}")
        writer.add_token_list(TOKENS)
        writer.kv_data[0]["tokenizer.ggml.bos_token_id"].value = TOKENS.index("<bos>")
        writer.kv_data[0].pop("tokenizer.ggml.eos_token_id", None)

    path = write(tmp_path / "x.gguf", theirs("llama", vocab_size=len(TOKENS)), metadata=add)
    found = load_chat_template(path)
    assert found is not None
    assert (found.template, found.special_tokens) == ("{{ bos_token }}{{ messages }}", {"bos_token": "<bos>"})
    assert load_chat_template(write(tmp_path / "y.gguf", theirs("llama", vocab_size=len(TOKENS)))) is None


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("gpt-2", ["hi", "Ġhi", "<bos>", "Ġ", "Ġ", "123", "<think>", "1", "!"]),
        ("smollm", ["hi", "Ġhi", "<bos>", "ĠĠ", "1", "2", "3", "<think>", "1", "!"]),
        ("qwen2", ["hi", "Ġhi", "<bos>", "Ġ", "Ġ", "1", "2", "3", "<think>", "1", "!"]),
        ("llama-bpe", ["<bos>", "hi", "Ġhi", "<bos>", "Ġ", "Ġ", "123", "<think>", "1", "!"]),
    ],
)
def test_tokenizers(tmp_path: Path, split: str, words: list[str]) -> None:
    tokenizer = read_gguf_tokenizer(write_tokenizer(tmp_path / "x", split))
    assert tokenizer.encode("hi hi<bos>  123<think>1!").tokens == words
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(TOKENS)}
    for text in ("hi  12 ", "ünï ¢ 你好\n", "<think>"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_first_token_is_added_where_the_file_says(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "a", "gpt-2", add_bos_token=True)
    assert read_gguf_tokenizer(path).encode("hi").tokens == ["<bos>", "hi"]
    path = write_tokenizer(tmp_path / "b", "llama-bpe", add_bos_token=False)
    assert read_gguf_tokenizer(path).encode("hi").tokens == ["hi"]


@pytest.mark.parametrize(
    ("split", "kind", "told"),
    [
        ("gpt-2", "llama", r"its tokenizer is of kind 'llama', which is not supported; known: gpt2"),
        (
            "tekken",
            "gpt2",
            r"splits text as 'tekken' \(tokenizer\.ggml\.pre\), which is not supported; known: gpt-2, sm",
        ),
        (None, "gpt2", r"splits text as None"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, split: str | None, kind: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_gguf_tokenizer(write_tokenizer(tmp_path / "x", split, kind))


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path, tiny: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny)
    with pytest.raises(CheckpointError, match=r"its tokenizer is of kind None"):
        read_gguf_tokenizer(tmp_path / "x.gguf")
