"""The g2p example by `decoders.py`: the engines, their turns, and the tables of what came out."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.environments import TOOLS, digest_of, make_model, python_of
from side_by_side import Engine, Workload, column, ratio_table, say, started, table, take_turns

from tfm.bundle.manifest import read_manifest

EXAMPLE = Path(__file__).parents[1] / "examples" / "g2p"
sys.path.insert(0, str(EXAMPLE))

import data as dictionary  # noqa: E402 - of the example

WORDS = 2000
SAID = ((100, 1, 1), (512, 64, 1), (50, 1, 4), (256, 64, 4))
"""How many words, how many at once, beams."""

REFERENCE = "PyTorch eager, float32"

Turns = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Work → engine → its answers."""


def held_out_words() -> dict[str, list[list[str]]]:
    """Words that the example was not trained on with their pronunciations, evenly spaced."""
    _, _, test = dictionary.split(dictionary.load())
    names = list(test)
    return {names[i]: test[names[i]] for i in np.linspace(0, len(names) - 1, WORDS).astype(int)}


def engines_of(peers: Path, bundle: Path, words: Path) -> list[Engine]:
    """Ours first."""
    checkpoint, tokenizer = EXAMPLE / "model.pt", EXAMPLE / "tokenizer.json"
    script, made_from = TOOLS / "g2p_ctranslate2.py", digest_of(checkpoint, tokenizer)
    converted = make_model(peers, "g2p-ctranslate2", "ctranslate2", script, [checkpoint, tokenizer], made_from)

    def engine(name: str, python: Path, kind: str, model: Path, files: Sequence[Path], **more: Any) -> Engine:
        job = {"engine": kind, "model": str(model), "words": str(words), **more}
        return Engine(name=name, python=python, worker=TOOLS / "g2p_worker.py", job=job, files=files)

    def ours(name: str, precision: str) -> Engine:
        files = [bundle / path for path in read_manifest(bundle).graphs[precision].values()]
        return engine(f"ours, {name}", Path(sys.executable), "tfm", bundle, files, precision=precision)

    def ctranslate2(form: str) -> Engine:
        python, folder = python_of(peers, "ctranslate2"), converted / form
        return engine(f"CTranslate2 {form}", python, "ctranslate2", folder, [folder / "model.bin"], compute=form)

    eager = {"tokenizer": str(tokenizer), "compile": False}
    return [
        ours("int8", "int8"),
        ours("float32", "fp32"),
        ctranslate2("int8"),
        ctranslate2("float32"),
        engine(REFERENCE, Path(sys.executable), "torch", checkpoint, [checkpoint], **eager),
    ]


def name_of(batch: int, beams: int) -> str:
    """Of a work."""
    return f"{'greedy' if beams == 1 else f'{beams} beams'}, {'one by one' if batch == 1 else f'{batch} at once'}"


def measure(engines: Sequence[Engine], threads: int, rounds: int, spoken: dict[str, Any]) -> Turns:
    """Work → engine → answers, on so many threads; fills in what is spoken where it is empty."""
    workloads = [
        Workload(name=name_of(batch, beams), line=f"time {count} {batch} {beams}") for count, batch, beams in SAID
    ]
    listen = not spoken
    with started(engines, threads) as workers:
        for worker in workers if listen else []:
            say(f"{worker.engine.name} speaks")
            answers = {beams: worker.ask(f"say 64 {beams}")["spoken"] for beams in (1, 4)}
            spoken[worker.engine.name] = {name_of(64, beams): answer for beams, answer in answers.items()}
        return take_turns(workers, workloads, rounds, threads)


def draw_times(engines: Sequence[Engine], turns: Turns, threads: str) -> list[str]:
    """Ratios and rates."""
    ours, *others = [engine.name for engine in engines]
    seconds = column(turns)
    rates = [[f"g2p, {threads}: words a second", *seconds]]
    for engine in engines:
        medians = [statistics.median(of[engine.name]) for of in seconds.values()]
        rates.append(
            [engine.name, *(f"{count / median:.0f}" for (count, _, _), median in zip(SAID, medians, strict=True))]
        )
    peers = [name for name in others if not name.startswith("ours")]
    return [ratio_table(seconds, ours, peers, f"g2p, {threads}: time, of ours"), table(rates)]


def judge(words: Mapping[str, list[list[str]]], spoken: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Engine → way → share of wrong phonemes, and how many words are not as eager PyTorch's."""
    judged: dict[str, dict[str, Any]] = {}
    for engine, ways in spoken.items():
        for way, found in ways.items():
            counts = [
                dictionary.error_counts(phonemes.split(), known)
                for phonemes, known in zip(found, words.values(), strict=True)
            ]
            other = sum(mine != exact for mine, exact in zip(found, spoken[REFERENCE][way], strict=True))
            wrong = sum(errors for errors, _ in counts) / sum(length for _, length in counts)
            judged.setdefault(engine, {})[way] = {"wrong": wrong, "other": other}
    for engine in ("ours, float32", "CTranslate2 float32"):  # the same weights, so the same words but for near ties
        for way, found in judged[engine].items():
            if found["other"] > len(words) // 200:
                raise SystemExit(
                    f"{engine} is not PyTorch's model: {way}, {found['other']} of {len(words)} words differ"
                )
    return judged


def draw_fidelity(judged: Mapping[str, Mapping[str, Any]], engines: Sequence[Engine]) -> str:
    """Fidelity of g2p."""
    sizes = {engine.name: engine.bytes for engine in engines}
    ways = list(judged[REFERENCE])
    rows = [["g2p", "MB", *(f"{way}: {what}" for way in ways for what in ("phonemes wrong", "words not as eager's"))]]
    for engine, found in judged.items():
        cells = [cell for way in ways for cell in (f"{found[way]['wrong']:.2%}", str(found[way]["other"]))]
        rows.append([engine, f"{sizes[engine] / 1e6:.1f}", *cells])
    return table(rows)
