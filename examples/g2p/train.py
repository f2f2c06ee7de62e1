"""Train a grapheme-to-phoneme Transformer on the CMU Pronouncing Dictionary: `python examples/g2p/train.py`.

Writes model.pt, tokenizer.json, generation_config.json and train.log beside itself.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from data import BOS, EOS, VOCABULARY, Pronunciations
from task import CONFIG, MAX_NEW_TOKENS, epoch, ids, loss, pad, parts, rates, write_files
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tfm.model import Transformer, load_checkpoint, save_checkpoint

HERE = Path(__file__).parent
SYMBOLS = list(VOCABULARY)


@torch.no_grad()
def greedy(model: Transformer, words: list[str]) -> list[list[str]]:
    """Pronounce words with the cache, the plain way; letters beyond max_positions must not occur."""
    model.eval()
    src = pad([ids(w) for w in words])
    cross = model.decoder.project(model.encoder(src, src != 0))
    token, past, columns = torch.full((len(words), 1), VOCABULARY[BOS]), None, []
    for _ in range(MAX_NEW_TOKENS):
        logits, past = model.decoder(token, past=past, cross=cross, cross_mask_BT=src != 0)
        token = logits[:, -1:].argmax(-1)
        columns.append(token)
    rows = torch.cat(columns, 1).tolist()
    eos = VOCABULARY[EOS]
    return [[SYMBOLS[t] for t in (row[: row.index(eos)] if eos in row else row)] for row in rows]


def evaluate(model: Transformer, words: Pronunciations) -> dict[str, float]:
    """Phoneme error rate with and without stress digits, and word error rate, as fractions."""
    names = sorted(words, key=len)
    found: dict[str, list[str]] = {}
    for i in range(0, len(names), 500):
        chunk = names[i : i + 500]
        found |= dict(zip(chunk, greedy(model, chunk), strict=True))
    return rates(found, words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=55, help="stop after this long; the schedule ends there")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, with a schedule of its own")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = random.Random(options.seed)
    train, validation, test = parts()
    pairs = [(w, p) for w, ps in train.items() for p in ps]
    model = load_checkpoint(options.resume) if options.resume else Transformer(CONFIG)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # of the last few hundred steps
    options.output.mkdir(parents=True, exist_ok=True)
    with open(options.output / "train.log", "w") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        say(f"torch {torch.__version__}, {options.threads} threads, {vars(options)}".replace(str(HERE), "."))
        say(f"{len(train)} words to train on, {len(validation)} to validate, {len(test)} to test")
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters")
        decay = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
        start = time.monotonic()
        progress, step, finished = 0.0, 0, 0
        while progress < 1.0:
            model.train()
            total, count = 0.0, 0
            epoch_batches = epoch(pairs, options.batch_size, rng)
            for index, (src, tgt) in enumerate(epoch_batches):
                by_epoch = (finished + index / len(epoch_batches)) / options.epochs
                by_time = (time.monotonic() - start) / (60 * options.minutes)
                progress = max(by_epoch, by_time)
                if progress >= 1.0:
                    break
                lr = options.lr * min(1.0, (step + 1) / 400) * 0.5 * (1 + math.cos(math.pi * progress))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):  # 1.5 times as fast on a CPU with AVX512-BF16
                    wrong = loss(model, (src, tgt))
                wrong.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                averaged.update_parameters(model)
                total, count, step = total + wrong.item(), count + 1, step + 1
            finished += 1
            progress = max(progress, finished / options.epochs)
            scores = evaluate(averaged.module, dict(list(validation.items())[::2]))
            say(
                f"epoch {finished} step {step} minutes {(time.monotonic() - start) / 60:.1f} lr {lr:.1e} "
                f"loss {total / max(count, 1):.4f} " + " ".join(f"{k} {v:.4f}" for k, v in scores.items())
            )
            save_checkpoint(averaged.module, options.output / "model.pt")
        say("test " + " ".join(f"{k} {v:.4f}" for k, v in evaluate(averaged.module, test).items()))
    write_files(options.output)


if __name__ == "__main__":
    main()
