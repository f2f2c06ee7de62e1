"""The g2p task: what is trained, on what batches, and how wrong the answers are.

`python -m benchmarks.activation_study examples/g2p` reads CONFIG, batches, loss, held_out, evaluate and write_files;
what each is to be, a task of one's own included, stands in docs/activations.md.
"""

import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from data import BOS, EOS, PAD, VOCABULARY, Pronunciations, error_counts, load, split, without_stress, write_tokenizer
from torch import Tensor

from tfm.model import Transformer, TransformerConfig

MAX_NEW_TOKENS = 32
Batch = tuple[Tensor, Tensor]

CONFIG = TransformerConfig(
    vocab_size=len(VOCABULARY),
    d_model=160,
    nhead=4,
    num_encoder_layers=3,
    num_decoder_layers=3,
    dim_feedforward=480,
    dropout=0.1,
    activation="gelu",
    norm_first=True,
    max_positions=64,
    tie_embeddings=True,
    pad_token_id=VOCABULARY[PAD],
    bos_token_id=VOCABULARY[BOS],
    eos_token_id=VOCABULARY[EOS],
)


def pad(rows: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)


def ids(symbols: Sequence[str]) -> list[int]:
    return [VOCABULARY[s] for s in symbols]


def epoch(pairs: list[tuple[str, list[str]]], size: int, rng: random.Random) -> list[Batch]:
    """Shuffled (letters, <s> phonemes </s>) batches of words of similar length, zero-padded."""
    pairs = sorted(pairs, key=lambda p: (len(p[0]) + rng.random() * 2, rng.random()))
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    rng.shuffle(groups)
    return [collate(group) for group in groups]


def collate(pairs: list[tuple[str, list[str]]]) -> Batch:
    bos, eos = VOCABULARY[BOS], VOCABULARY[EOS]
    return pad([ids(word) for word, _ in pairs]), pad([[bos, *ids(phonemes), eos] for _, phonemes in pairs])


@functools.cache
def parts() -> tuple[Pronunciations, Pronunciations, Pronunciations]:
    return split(load())


def batches(size: int, seed: int) -> Iterator[Batch]:
    """Batches to train on, without an end: the same ones for the same seed."""
    rng = random.Random(seed)
    pairs = [(word, phonemes) for word, all_of_it in parts()[0].items() for phonemes in all_of_it]
    while True:
        yield from epoch(pairs, size, rng)


def loss(model: Transformer, batch: Batch) -> Tensor:
    """Label-smoothed cross-entropy of the next phoneme, a scalar."""
    src, tgt = batch
    logits = model(src, tgt[:, :-1], src_mask=src != 0)
    return F.cross_entropy(logits.float().flatten(0, 1), tgt[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1)


def held_out() -> Batch:
    """Words to look at a trained model's units on: 512 that it was neither trained nor tested on."""
    words = sorted(parts()[1].items())[:512]
    return collate([(word, phonemes[0]) for word, phonemes in words])


def evaluate(answer: Callable[[list[str]], list[str]], limit: int | None = None) -> dict[str, float]:
    """How wrong answers are on the 9,920 test words, or on `limit` of them; `answer` gives phonemes by spaces."""
    test = parts()[2]
    step = 1 if limit is None else max(1, len(test) // limit)
    words = list(test)[::step][:limit]
    answers = answer(words)
    return rates({word: found.split() for word, found in zip(words, answers, strict=True)}, test)


def rates(found: dict[str, list[str]], words: Pronunciations) -> dict[str, float]:
    """Phoneme error rate with and without stress digits, and word error rate, as fractions."""
    counts = [error_counts(found[word], words[word]) for word in found]
    bare = [error_counts(without_stress(found[word]), [without_stress(p) for p in words[word]]) for word in found]

    def rate(pairs: list[tuple[int, int]]) -> float:
        return sum(e for e, _ in pairs) / sum(n for _, n in pairs)

    wrong = sum(errors > 0 for errors, _ in counts)
    return {
        "phoneme_error": rate(counts),
        "phoneme_error_without_stress": rate(bare),
        "word_error": wrong / len(counts),
    }


def write_files(folder: Path) -> None:
    """Write what a bundle needs beside the weights: tokenizer.json and generation_config.json."""
    write_tokenizer(folder / "tokenizer.json")
    special = {"pad_token_id": VOCABULARY[PAD], "bos_token_id": VOCABULARY[BOS], "eos_token_id": VOCABULARY[EOS]}
    generation = {**special, "max_new_tokens": MAX_NEW_TOKENS, "split_on_whitespace": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
