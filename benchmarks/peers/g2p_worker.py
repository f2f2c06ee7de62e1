"""One engine that pronounces words; run by `decoders.py` in an environment that has it.

    python g2p_worker.py '{"engine": …, "model": …, "words": …, "threads": …}'

Opens `model` with one of `ENGINES` and answers these lines:

- "time COUNT BATCH BEAMS" pronounces the first COUNT of `words` (JSON), so many at once: "seconds";
- "say BATCH BEAMS" pronounces all: "spoken".

Shapes: B words, K beams, C candidates of a word, S phonemes so far, V vocabulary.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import serve

LONGEST = 32
"""Phonemes of a word at most, as the checkpoint's `generation_config.json` says."""

Pronounce = Callable[[list[str], int, int], list[str]]
"""From words, how many at once, and the number of beams to phonemes joined by spaces."""


def tfm(job: dict[str, Any]) -> Pronounce:
    """Our bundle, by our runtime."""
    from tfm.runtime import load

    model = load(job["model"], provider="cpu", precision=job["precision"], threads=job["threads"])
    return lambda words, batch, beams: model.translate(words, LONGEST, batch_size=batch, num_beams=beams)


def ctranslate2(job: dict[str, Any]) -> Pronounce:
    """CTranslate2, which sorts what it is given by length as ours does; it wants letters, and gives phonemes."""
    from ctranslate2 import Translator

    translator = Translator(
        job["model"], device="cpu", compute_type=job["compute"], inter_threads=1, intra_threads=job["threads"]
    )

    def pronounce(words: list[str], batch: int, beams: int) -> list[str]:
        letters = [list(word) for word in words]
        settings = {"max_batch_size": batch, "beam_size": beams, "max_decoding_length": LONGEST}
        return [" ".join(found.hypotheses[0]) for found in translator.translate_batch(letters, **settings)]

    return pronounce


def torch(job: dict[str, Any]) -> Pronounce:
    """Our own module in PyTorch, with its cache; eager, or its decoder compiled."""
    import torch

    from tfm.model import load_checkpoint

    torch.set_num_threads(job["threads"])
    model = load_checkpoint(Path(job["model"])).eval()
    vocabulary = json.loads(Path(job["tokenizer"]).read_text())["model"]["vocab"]
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    start, end = vocabulary["<s>"], vocabulary["</s>"]
    decoder = torch.compile(model.decoder, dynamic=True) if job["compile"] else model.decoder

    def text(row: list[int]) -> str:
        return " ".join(symbols[token] for token in (row[: row.index(end)] if end in row else row))

    def greedy(source_BT: Any) -> list[str]:
        mask_BT = source_BT != 0
        cross = model.decoder.project(model.encoder(source_BT, mask_BT))
        token_B1, past, columns = torch.full((len(source_BT), 1), start), None, []
        ended_B1 = torch.zeros_like(token_B1, dtype=torch.bool)
        for _ in range(LONGEST):
            logits_B1V, past = decoder(token_B1, past=past, cross=cross, cross_mask_BT=mask_BT)
            token_B1 = logits_B1V[:, -1:].argmax(-1)
            columns.append(token_B1)
            ended_B1 |= token_B1 == end
            if ended_B1.all():
                break
        return [text(row) for row in torch.cat(columns, 1).tolist()]

    def search(source_BT: Any, beams: int) -> list[str]:
        """Beam search as transformers does it: scores over lengths, until no running beam can enter the best."""
        count, mask_BT = len(source_BT), source_BT != 0
        cross = model.decoder.project(model.encoder(source_BT, mask_BT))
        cross = [tuple(part.repeat_interleave(beams, 0) for part in layer) for layer in cross]
        mask_BT = mask_BT.repeat_interleave(beams, 0)
        token_B1, past = torch.full((count * beams, 1), start), None
        score_BK = torch.full((count, beams), -1e9)
        score_BK[:, 0] = 0
        running_BKS = torch.zeros((count, beams, 0), dtype=torch.long)
        ended_BKS = torch.full((count, beams, LONGEST), end)
        ended_BK = torch.full((count, beams), -1e9)
        first_B1 = torch.arange(count)[:, None] * beams
        for length in range(1, LONGEST + 1):
            logits_B1V, past = decoder(token_B1, past=past, cross=cross, cross_mask_BT=mask_BT)
            total_BKV = logits_B1V[:, -1].log_softmax(-1).view(count, beams, -1) + score_BK[..., None]
            score_BC, place_BC = total_BKV.flatten(1).topk(2 * beams)
            parent_BC, token_BC = place_BC // total_BKV.size(-1), place_BC % total_BKV.size(-1)
            texts_BCS = running_BKS.gather(1, parent_BC[..., None].expand(-1, -1, length - 1))
            texts_BCS = torch.cat([texts_BCS, token_BC[..., None]], -1)
            ends_BC = (token_BC == end) | (length == LONGEST)

            score_BK, on_BK = score_BC.where(~ends_BC, -1e9).topk(beams)
            running_BKS = texts_BCS.gather(1, on_BK[..., None].expand(-1, -1, length))

            ends_BC[:, beams:] = False  # only the best may end
            merged = torch.cat([ended_BK, (score_BC / length).where(ends_BC, -1e9)], 1)
            ended_BK, best_BK = merged.topk(beams)
            padded = torch.nn.functional.pad(texts_BCS, (0, LONGEST - length), value=end)
            texts = torch.cat([ended_BKS, padded], 1)
            ended_BKS = texts.gather(1, best_BK[..., None].expand(-1, -1, LONGEST))
            if (score_BK[:, 0] / length <= ended_BK[:, -1]).all():
                break

            order = (first_B1 + parent_BC.gather(1, on_BK)).flatten()
            past = [tuple(part[order] for part in layer) for layer in past]
            token_B1 = token_BC.gather(1, on_BK).view(-1, 1)
        return [text(row) for row in ended_BKS[:, 0].tolist()]

    def pronounce(words: list[str], batch: int, beams: int) -> list[str]:
        order = sorted(range(len(words)), key=lambda place: len(words[place]))
        spoken = [""] * len(words)
        with torch.no_grad():
            for first in range(0, len(words), batch):
                places = order[first : first + batch]
                rows = [torch.tensor([vocabulary[letter] for letter in words[place]]) for place in places]
                source_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                found = greedy(source_BT) if beams == 1 else search(source_BT, beams)
                for place, phonemes in zip(places, found, strict=True):
                    spoken[place] = phonemes
        return spoken

    return pronounce


ENGINES = {function.__name__: function for function in (tfm, ctranslate2, torch)}


def main(job: dict[str, Any]) -> None:
    """Answer until stdin ends."""
    pronounce = ENGINES[job["engine"]](job)
    words = json.loads(Path(job["words"]).read_text())

    def answer(line: str) -> dict[str, Any]:
        what, *numbers = line.split()
        if what == "say":
            batch, beams = map(int, numbers)
            return {"spoken": pronounce(words, batch, beams)}
        count, batch, beams = map(int, numbers)
        pronounce(words[:batch], batch, beams)  # wakes caches and clock frequency after the other engines' turns
        start = time.perf_counter()
        for first in range(count if batch == 1 else 1):
            chosen = words[first : first + 1] if batch == 1 else words[:count]
            if len(pronounce(chosen, batch, beams)) != len(chosen):
                raise SystemExit("words were left out")
        return {"seconds": time.perf_counter() - start}

    serve(answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
