"""Tiny random checkpoints of many families, with a tokenizer as theirs, for the tasks of the runtime."""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tfm.export.bundle as export_bundle
from tfm.export import OPSET, to_onnx
from tfm.export.manifest import write_manifest
from tfm.export.source import open_source
from tfm.quantize import save_onnx

WORDS = "the capital of france is paris a small town walk in new york who lives there and what it does not say"
PIECES = [*WORDS.split(), "##s", "##ing", "##er", ",", ".", "?", "'", "é", "你", "😀"]
LONGEST = 48

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.6,  # so that labels and tokens differ
}
ROBERTA = SIZES | {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "bert", SIZES),
    "electra": ("Electra", "bert", SIZES | {"embedding_size": 16}),
    "distilbert": (
        "DistilBert",
        "bert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": LONGEST}
        | {"initializer_range": 0.6},
    ),
    "roberta": ("Roberta", "roberta", ROBERTA | {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", "unigram", ROBERTA | {"type_vocab_size": 1}),
    "camembert": ("Camembert", "unigram", ROBERTA | {"type_vocab_size": 1}),
    "deberta-v2": (
        "DebertaV2",
        "deberta",
        SIZES
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        | {"type_vocab_size": 0},
    ),
    "albert": ("Albert", "bert", SIZES | {"embedding_size": 16}),
    "mpnet": ("MPNet", "mpnet", ROBERTA),
    "modernbert": (
        "ModernBert",
        "roberta",
        SIZES
        | {"initializer_range": 0.2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        | {"cls_token_id": 0, "sep_token_id": 2},
    ),
    "convbert": ("ConvBert", "bert", SIZES | {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}),
    "rembert": (
        "RemBert",
        "bert",
        SIZES | {"input_embedding_size": 16, "output_embedding_size": 24},
    ),
    "ernie": ("Ernie", "bert", SIZES),
}
"""Family → how transformers calls its classes, the kind of its tokenizer, its sizes."""

NATIVE = ("bert", "electra", "distilbert", "roberta", "xlm-roberta")

COMPARED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "embed": (
        "sentence-transformers",
        "`SentenceTransformer.encode`",
        tuple(name for name in FAMILIES if name != "convbert"),
    ),
    "similarity": ("sentence-transformers", "`util.similarity`, `quantize_embeddings`", ("bert",)),
    "rank": ("sentence-transformers", "`CrossEncoder.rank` and `.predict`", ("bert", "roberta", "deberta-v2")),
    "classify": ("transformers", "the tokenizer and the model, of pairs", tuple(FAMILIES)),
    "classify_zero_shot": ("transformers", "`zero-shot-classification`", ("bert", "roberta", "deberta-v2")),
    "classify_tokens": (
        "transformers",
        "`token-classification`, every aggregation",
        ("bert", "roberta", "xlm-roberta", "deberta-v2"),
    ),
    "fill_mask": ("transformers", "`fill-mask`", ("bert", "roberta", "xlm-roberta", "albert", "modernbert")),
    "answer": (
        "transformers",
        "`question-answering` of transformers 4, and every span by hand",
        ("bert", "electra", "distilbert", "roberta", "xlm-roberta", "deberta-v2"),
    ),
    "classify_images": ("transformers", "`image-classification`", ("vit", "deit")),
    "classify_audio": ("transformers", "`audio-classification`", ("wav2vec2", "audio-spectrogram-transformer")),
    "transcribe": (
        "transformers",
        "`automatic-speech-recognition`, words and letters with times; `generate`, its tokens and sentences",
        ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "whisper", "speech_to_text"),
    ),
    "image_to_text": ("transformers", "`generate`, token by token", ("vision-encoder-decoder",)),
    "generate": (
        "transformers",
        "`generate` by generation_config.json, token by token",
        ("gpt2", "llama", "t5", "marian", "bart"),
    ),
}
"""Task → the library that its results are compared with, what of it, and on tiny random models of which families: the
parameters of the tests in tests/runtime/tasks and of test_library_generates, and the tables of docs/tasks.md."""


def tokenizer(kind: str, longest: int | None = LONGEST) -> Any:
    """Make a tokenizer of a kind, as transformers opens it."""
    import transformers

    options: dict[str, Any] = {} if longest is None else {"model_max_length": longest}
    if kind in ("bert", "deberta", "mpnet"):
        return _word_pieces(transformers, kind, options)
    if kind == "roberta":
        return _byte_pairs(transformers, options)
    return _unigrams(transformers, options)


def _word_pieces(transformers: Any, kind: str, options: dict[str, Any]) -> Any:
    names = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"] if kind == "mpnet" else _SPECIAL
    vocabulary = {token: number for number, token in enumerate([*names, *PIECES])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    if kind == "mpnet":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
        named |= {"unk_token": "[UNK]", "mask_token": "<mask>"}
        options |= named | {"model_input_names": ["input_ids", "attention_mask"]}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **options)
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    if kind == "bert":
        return transformers.BertTokenizerFast(tokenizer_object=made, **options)
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **named, **options)


_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _byte_pairs(transformers: Any, options: dict[str, Any]) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_ROBERTA, initial_alphabet=letters, show_progress=False, min_frequency=1
    )
    made.train_from_iterator([WORDS, f" {WORDS}"], trainer)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **_roberta_names(), **options)


def _unigrams(transformers: Any, options: dict[str, Any]) -> Any:
    pieces = [(piece, 0.0) for piece in _ROBERTA[:4]]
    pieces += [(f"▁{word}", -3.0) for word in WORDS.split()] + [(letter, -6.0) for letter in "abcdefghilnoprstuwy.,?'▁"]
    pieces += [("<mask>", 0.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.add_special_tokens(_ROBERTA)
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **_roberta_names(), **options)


def _roberta_names() -> dict[str, Any]:
    ends = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    rest = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return ends | rest | {"model_input_names": ["input_ids", "attention_mask"]}


def make(family: str, head: str, folder: Path, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Save a tiny random model of a family with a head and its tokenizer; give both as transformers has them."""
    import torch
    import transformers

    name, kind, sizes = FAMILIES[family]
    words = tokenizer(kind)
    torch.manual_seed(seed)
    if "id2label" in options:
        options["label2id"] = {name: number for number, name in options["id2label"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(vocab_size=len(words), **sizes, **options)
        model = getattr(transformers, f"{name}{head}")(config).eval()
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return model, words


def quick(checkpoint: Path, folder: Path) -> Path:
    """Export a checkpoint's fp32 graphs as a bundle without verifying them, which has tests of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = open_source(checkpoint)
    export_bundle._copy_what_belongs(source, folder)
    files: dict[str, dict[str, Path]] = {"fp32": {}}
    for graph in source.graphs:
        path = files["fp32"][graph.role] = folder / "onnx" / f"{graph.file}.onnx"
        path.parent.mkdir(exist_ok=True)
        save_onnx(to_onnx(graph, opset=OPSET), path)
    write_manifest(folder, source.config, source.family, source.graphs, files, OPSET, gates=[])
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pairs_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Each text beside the next."""
    return list(zip(texts, [*texts[1:], texts[0]], strict=True))
