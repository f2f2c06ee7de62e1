"""What the files beside a tokenizer say of texts reaches the runtime: limits, the side that is cut, cases, prompts."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from tfm.bundle import read_manifest
from tfm.errors import ConfigError
from tfm.export import export_checkpoint
from tfm.export.text_settings import apply_tokenizer_config, copy_modules, max_text_tokens, text_settings, write_limit
from tfm.runtime import Encoder, load

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "query", ":", "A"]


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sentence_bert_config": {"max_seq_length": 8}, "tokenizer_config": {"model_max_length": 16}}, 8),
        ({"sentence_bert_config": {}, "tokenizer_config": {"model_max_length": 16}}, 16),
        ({"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 16}}, 16),
        ({"tokenizer_config": {"model_max_length": 10**30}}, None),
        ({"tokenizer_config": {"model_max_length": 1e30}}, None),
        ({"tokenizer_config": {"model_max_length": None}}, None),
    ],
    ids=str,
)
def test_the_limit_is_where_the_library_has_it(tmp_path: Path, files: dict[str, Any], limit: int | None) -> None:
    assert max_text_tokens(write(tmp_path, **files)) == limit


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config_sentence_transformers": {"prompts": ["query: "]}}, "prompts"),
        ({"config_sentence_transformers": {"prompts": {"query": 3}}}, "prompts"),
        ({"config_sentence_transformers": {"prompts": {"q": "a"}, "default_prompt_name": "p"}}, "default_prompt_name"),
        ({"tokenizer_config": {"truncation_side": "middle"}}, "truncation_side"),
        ({"sentence_bert_config": {"do_lower_case": "yes"}}, "do_lower_case"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_by_its_name(tmp_path: Path, files: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        text_settings(write(tmp_path, **files))


@pytest.mark.parametrize(
    "name", ["a\0b", "n" * 300, "/etc", "../x", "a\\b", "c:", "", 3, None, "modules.json", "not there"]
)
def test_a_module_that_is_no_folder_of_the_checkpoint_is_not_copied(tmp_path: Path, name: object) -> None:
    source = write(tmp_path / "x", config={"a": 1}) and write(
        tmp_path / "m", modules=[{"type": "x.Y", "path": name}, 3]
    )
    copy_modules(source, write(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_normalizer_is_set_as_transformers_sets_it(tmp_path: Path) -> None:
    """tokenizer.json lower-cases, tokenizer_config.json says that nothing is: transformers follows the latter."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(write(tmp_path) / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("A a", add_special_tokens=False)["input_ids"]
    assert tokenizer.encode("A a").ids == [4, 4] != theirs
    apply_tokenizer_config(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("A a").ids == theirs == [10, 4]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sentence_bert_config": {"max_seq_length": 8}, "tokenizer_config": {"model_max_length": 16}}, 8),
        ({"sentence_bert_config": {"max_seq_length": 8}, "tokenizer_config": {"model_max_length": 1e30}}, 8),
        ({"sentence_bert_config": {"max_seq_length": 8}, "tokenizer_config": {"pad_token": "[PAD]"}}, 8),
        ({"sentence_bert_config": {"max_seq_length": 16}, "tokenizer_config": {"model_max_length": 8}}, 8),
        ({"tokenizer_config": {"model_max_length": 16}}, 16),
    ],
)
def test_others_are_told_the_limit_too(tmp_path: Path, files: dict[str, Any], expected: int) -> None:
    """fastembed reads tokenizer_config.json alone, and would read 512 tokens where sentence-transformers reads 256."""
    write(tmp_path, **files)
    write_limit(tmp_path)
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert found == {**files["tokenizer_config"], "model_max_length": expected}


def test_without_a_file_there_is_no_limit_to_write(tmp_path: Path) -> None:
    write(tmp_path, sentence_bert_config={"max_seq_length": 8})
    write_limit(tmp_path)
    assert not (tmp_path / "tokenizer_config.json").exists()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("st") / "m"
    sizes = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=12, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    write(
        folder,
        modules=modules,
        tokenizer_config={"model_max_length": 12, "truncation_side": "left"},
        sentence_bert_config={"do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "query : ", "none": ""}, "default_prompt_name": "query"},
    )
    write(folder / "1_Pooling", config={"pooling_mode_mean_tokens": True})
    report = export_checkpoint(folder, folder.parent / "x.tfm", precisions=["fp32"])
    assert report.passed, report.faults()
    model = load(folder.parent / "x.tfm")
    assert isinstance(model, Encoder)
    return model


def test_the_end_of_a_long_text_counts_where_the_checkpoint_says_so(encoder: Encoder) -> None:
    assert encoder.tokenize("a b c d") == [[2, 4, 5, 6, 7, 3]]
    assert encoder.tokenize("x " * 100_000 + "b c d") == [[2, *[1] * 7, 5, 6, 7, 3]]  # however far behind it is
    assert encoder.tokenize("A") == [[2, 4, 3]]  # lower-cased before the tokenizer saw it


def test_the_default_prompt_goes_in_front(encoder: Encoder) -> None:
    with_prompt = encoder.embed([[2, 8, 9, 4, 3]])
    plain = encoder.embed([[2, 4, 3]])
    assert np.abs(with_prompt - plain).max() > 1e-3
    np.testing.assert_array_equal(encoder.embed("a"), with_prompt)
    np.testing.assert_array_equal(encoder.embed(["a"], prompt="query"), with_prompt)
    np.testing.assert_array_equal(encoder.embed(["a"], prompt="none"), plain)
    np.testing.assert_array_equal(encoder.embed(["a"], prompt=""), plain)
    np.testing.assert_array_equal(encoder.embed(["a"], prompt="query :"), with_prompt)  # words of one's own
    np.testing.assert_array_equal(next(encoder.embed_stream(iter(["a"]))), with_prompt[0])


def test_the_bundle_has_what_sentence_transformers_looks_for(encoder: Encoder) -> None:
    folder = encoder.manifest.folder
    assert json.loads((folder / "1_Pooling/config.json").read_text()) == {"pooling_mode_mean_tokens": True}
    files = read_manifest(folder).files
    assert {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"} <= set(files)
