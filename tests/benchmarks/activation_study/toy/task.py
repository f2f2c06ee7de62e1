"""Letters read backwards: a task as small as one can be, for tests."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from tfm.model import Transformer, TransformerConfig

LETTERS = "abcdefgh"
VOCABULARY = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *LETTERS])}
CONFIG = TransformerConfig(
    vocab_size=len(VOCABULARY),
    d_model=16,
    nhead=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    dim_feedforward=24,
    activation="relu",
    norm_first=True,
    max_positions=16,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
Batch = tuple[Tensor, Tensor]


def words(count: int, rng: random.Random) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=rng.randint(1, 5))) for _ in range(count)]


def collate(rows: list[str]) -> Batch:
    sources = [torch.tensor([VOCABULARY[letter] for letter in row]) for row in rows]
    targets = [torch.tensor([1, *(VOCABULARY[letter] for letter in reversed(row)), 2]) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(sources, batch_first=True), pad(targets, batch_first=True)


def batches(size: int, seed: int) -> Iterator[Batch]:
    rng = random.Random(seed)
    while True:
        yield collate(words(size, rng))


def loss(model: Transformer, batch: Batch) -> Tensor:
    src, tgt = batch
    logits = model(src, tgt[:, :-1], src_mask=src != 0)
    return F.cross_entropy(logits.float().flatten(0, 1), tgt[:, 1:].flatten(), ignore_index=0)


def held_out() -> Batch:
    return collate(words(40, random.Random(1)))


def evaluate(answer: Callable[[list[str]], list[str]], limit: int | None = None) -> dict[str, float]:
    asked = words(limit or 50, random.Random(2))
    answers = [found.split() for found in answer(asked)]
    wrong = sum(found != list(reversed(word)) for word, found in zip(asked, answers, strict=True))
    return {"word_error": wrong / len(asked)}


def write_files(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps({**special, "max_new_tokens": 8}))
