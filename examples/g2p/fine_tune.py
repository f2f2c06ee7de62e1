"""Fine-tune a pruned g2p model on the dictionary, by its labels and by what the original says of each next phoneme:

tfm prune --ckpt examples/g2p/model.pt --keep 0.7 --fine-tune examples/g2p/fine_tune.py -o g2p-pruned
"""

import math
import os
import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from task import epoch, parts
from torch import Tensor

from tfm.model import Transformer

EPOCHS = float(os.environ.get("G2P_EPOCHS", "4"))
BATCH, LEARNING_RATE, SEED = 256, 1e-3, 0


def pairs() -> list[tuple[str, list[str]]]:
    return [(word, phonemes) for word, spoken in parts()[0].items() for phonemes in spoken]


def losses(model: Transformer) -> Iterator[Callable[[Transformer], Tensor]]:
    """What importance is measured by: the cross-entropy of each of 1,024 words."""
    for src, tgt in epoch(random.Random(SEED).sample(pairs(), 1024), 64, random.Random(SEED)):

        def loss(model: Transformer, src: Tensor = src, tgt: Tensor = tgt) -> Tensor:
            logits = model(src, tgt[:, :-1], src_mask=src != 0)
            return F.cross_entropy(logits.mT, tgt[:, 1:], ignore_index=0, reduction="none").sum(1)

        yield loss


def fine_tune(model: Transformer, original: Transformer, say: Callable[[int, int, str], None]) -> None:
    torch.manual_seed(SEED)
    rng, words = random.Random(SEED), pairs()
    steps = max(1, round(EPOCHS * math.ceil(len(words) / BATCH)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    left: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        left = left or epoch(words, BATCH, rng)
        src, tgt = left.pop()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                said = original(src, tgt[:, :-1], src_mask=src != 0)
            logits = model(src, tgt[:, :-1], src_mask=src != 0)
        real = tgt[:, 1:] != 0
        found, wanted = logits[real].float(), said[real].float().softmax(-1)
        loss = 0.5 * F.cross_entropy(found, tgt[:, 1:][real]) + 0.5 * F.cross_entropy(found, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        say(step + 1, steps, f"loss {loss.item():.3f}")
    model.eval()
