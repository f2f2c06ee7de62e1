"""A native family's head or configuration that is not native goes the way of other families, and says so."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tfm.errors import CheckpointError, ConfigError, ExportError, NotNativeError
from tfm.export.generic import huggingface
from tfm.export.generic.graph import GenericGraph
from tfm.export.generic.open import read_model
from tfm.export.reasons import one_line, reason_of
from tfm.model import Transformer, load_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}


def save(folder: Path, cls: str, **options: Any) -> Path:
    kind = getattr(transformers, cls)
    kind(kind.config_class(**(SIZES | options))).save_pretrained(folder)
    return folder


@pytest.fixture
def stages() -> list[str]:
    return []


def told(stages: list[str]) -> Any:
    @contextmanager
    def stage(name: str) -> Iterator[Any]:
        stages.append(name)
        yield lambda *_: None

    return stage


@pytest.mark.parametrize(
    ("cls", "options", "because"),
    [
        ("BertForNextSentencePrediction", {}, "architectures ['BertForNextSentencePrediction'] is not supported"),
        ("LlamaForSequenceClassification", {"pad_token_id": 0}, "architectures ['LlamaForSequenceClassification'] is"),
        ("AlbertModel", {"num_hidden_groups": 2, "embedding_size": 8}, "num_hidden_groups = 2 is not supported"),
        ("BertModel", {"hidden_act": "relu6"}, "unknown activation 'relu6'"),
    ],
)
def test_what_is_not_native_is_read_by_transformers(
    cls: str, options: dict[str, Any], because: str, tmp_path: Path, stages: list[str]
) -> None:
    save(tmp_path, cls, **options)
    with pytest.raises(NotNativeError):
        load_checkpoint(tmp_path)
    read = read_model(tmp_path, stage=told(stages))
    assert isinstance(read, GenericGraph)
    assert read.config.family.startswith("transformers:")
    assert [name.partition(",")[0] for name in stages] == ["read checkpoint", "read checkpoint by transformers"]
    assert because in stages[1]


def test_what_is_native_is_not(tmp_path: Path, stages: list[str]) -> None:
    assert isinstance(read_model(save(tmp_path, "BertModel"), stage=told(stages)), Transformer)
    assert stages == ["read checkpoint"]


def test_a_configuration_that_is_wrong_is_no_reason_to_go_another_way(tmp_path: Path) -> None:
    folder = rewritten(save(tmp_path, "BertModel"), hidden_size="wide")
    with pytest.raises(ConfigError, match="hidden_size must be an integer"):
        read_model(folder)


def rewritten(folder: Path, **change: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


def test_where_neither_way_is_one_both_reasons_are_told(tmp_path: Path) -> None:
    folder = rewritten(save(tmp_path, "BertForNextSentencePrediction"), architectures=["BertForNothing"])
    with pytest.raises(ConfigError) as caught:
        read_model(folder)
    first, _, second = str(caught.value).partition("; and transformers does not help: ")
    assert "architectures ['BertForNothing'] is not supported" in first
    assert "architectures names 'BertForNothing', which transformers" in second


def test_a_configuration_of_the_users_own_is_for_the_native_model(tmp_path: Path) -> None:
    folder = save(tmp_path, "BertForNextSentencePrediction")
    with pytest.raises(NotNativeError):
        read_model(folder / "model.safetensors", options={"config": folder / "config.json"})


def test_attention_step_by_step_where_a_class_refuses_torchs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = save(tmp_path, "MegatronBertModel"), []
    original = transformers.MegatronBertModel.from_pretrained

    def refusing(path: Any, **options: Any) -> Any:
        asked.append(options["attn_implementation"])
        if asked[-1] == "sdpa":
            raise ValueError("does not support torch.nn.functional.scaled_dot_product_attention yet")
        return original(path, **options)

    monkeypatch.setattr(transformers.MegatronBertModel, "from_pretrained", refusing)
    monkeypatch.setattr(transformers.MegatronBertModel, "_supports_sdpa", True)
    assert isinstance(read_model(folder), GenericGraph)
    assert asked == ["sdpa", "eager"]


@pytest.mark.parametrize("cls", ["BertForMultipleChoice", "GPT2ForSequenceClassification"])
def test_what_a_class_says_of_its_inputs_is_the_reason(cls: str, tmp_path: Path) -> None:
    with pytest.raises((ExportError, CheckpointError)) as caught:
        read_model(save(tmp_path, cls))
    assert "and transformers does not help: the module fails on its own example inputs: " in str(caught.value)
    assert "modeling_" in str(caught.value)  # the line that says so


def test_a_configuration_that_lacks_what_examples_are_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, "MegatronBertModel")
    monkeypatch.setattr(huggingface, "_longest", lambda config: {}[config.model_type])
    with pytest.raises(ExportError, match=r"no example inputs can be made for a MegatronBertModel: KeyError 'megatron"):
        read_model(folder)


def raised(make: Any) -> Exception:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError


def test_reasons_are_the_cause_and_the_line() -> None:
    def inner() -> None:
        raise KeyError("deep")

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError("\x1b[31mwrapped\x1b[0m\nmore") from error

    error = raised(outer)
    assert one_line(error) == "RuntimeError wrapped"
    assert reason_of(error).startswith("KeyError 'deep' (test_fallback.py:")
    assert 'raise KeyError("deep")' in reason_of(error)
    assert reason_of(raised(lambda: torch.ones(2, 3) @ torch.ones(2, 3))).startswith("RuntimeError mat1 and mat2")


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("Could not guard on data-dependent expression Eq(u0, 1)", "data-dependent: which way it goes"),
        ("No ONNX function found for <OpOverload(op='aten.bucketize.Tensor')>", "ONNX has no form of aten.bucketize"),
        ("flex_attention is not there", "it computes attention by flex_attention"),
        ("ComplexFloat: complex64 is not there", "it computes with complex numbers"),
        ("bad\n  - Not all values of L satisfy the constraint\n", "Not all values of L satisfy the constraint"),
    ],
)
def test_torchs_words_are_told_in_ours(words: str, meaning: str) -> None:
    assert reason_of(RuntimeError(f"\x1b[31m{words}")).startswith(meaning)
