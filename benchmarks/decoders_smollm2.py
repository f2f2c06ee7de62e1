"""SmolLM2-135M by `decoders.py`: the engines, their turns, and the tables of what came out."""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import tokenizers
from peers.environments import TOOLS, digest_of, make_model, python_of
from side_by_side import Engine, Workload, column, ratio_table, say, started, table, take_turns

from tfm.bundle.manifest import read_manifest

PROMPTS, NEW = (128, 1024), 64
WINDOWS, WINDOW = 12, 256

PYTORCH = "PyTorch"
"""The group that has fewer turns."""

REFERENCE = "PyTorch eager, float32"

SAME = 1e-6
"""KL divergence, in nats, below which two implementations in float32 are of one model."""

Turns = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Group and prompt → engine → its answers."""


def inputs_of(bundle: Path, folder: Path) -> dict[str, Any]:
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


def engines_of(
    peers: Path, gguf: Path, bundle: Path, inputs: Mapping[str, Any], fast: Path | None = None
) -> dict[str, list[Engine]]:
    """By the bits of their weights, ours first, and after it that of the bundle `fast`, which favours speed."""
    made_from = digest_of(gguf)

    def model(name: str, python: str, source: Path, made_from: str) -> Path:
        return make_model(peers, f"smollm2-{name}", python, TOOLS / "smollm2_models.py", [source], made_from)

    float32 = model("float32", "genai", gguf, made_from)
    llama, genai = model("llama", "llama", gguf, made_from), model("genai", "genai", float32, float32.name)
    ctranslate2 = model("ctranslate2", "ctranslate2", float32, float32.name)

    def engine(name: str, python: Path, kind: str, model: Path, files: Sequence[Path], **more: Any) -> Engine:
        job = {**inputs, "engine": kind, "model": str(model), **more}
        return Engine(name=name, python=python, worker=TOOLS / "smollm2_worker.py", job=job, files=files)

    def ours(name: str, precision: str, bundle: Path = bundle) -> Engine:
        path = bundle / read_manifest(bundle).graphs[precision]["model"]
        files = [path, *path.parent.glob(f"{path.name}_data")]
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
            *([] if fast is None else [ours("int8, --optimize-for speed", "int8", fast)]),
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
        PYTORCH: [
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


def measure(groups: Mapping[str, Sequence[Engine]], threads: int, rounds: int, fidelity: dict[str, Any]) -> Turns:
    """Group and prompt → engine → answers, on so many threads; fills in the fidelity where it is empty."""
    workloads = [Workload(name=f"{length} tokens", line=f"continue {length} {NEW}") for length in PROMPTS]
    if judge := not fidelity:
        say("write the reference")
        with started([engine for engine in groups[PYTORCH] if engine.name == REFERENCE], threads) as [worker]:
            worker.ask("write")
    found: dict[str, Any] = {}
    for names, count in (([name for name in groups if name != PYTORCH], rounds), ([PYTORCH], max(1, rounds // 2))):
        with started([engine for name in names for engine in groups[name]], threads) as workers:
            for worker in workers:
                if judge and worker.engine.name not in fidelity:
                    say(f"compare {worker.engine.name}")
                    fidelity[worker.engine.name] = worker.ask("compare")
                worker.ask(workloads[0].line)  # compiles, and reads files into memory
            turns = take_turns(workers, workloads, count, threads)
        for name in names:
            for work in workloads:
                found[f"{name}, {work.name}"] = {engine.name: turns[work.name][engine.name] for engine in groups[name]}
    if judge:
        judge_tokens(found, fidelity)
    exact = fidelity["ours, float32"]
    if not exact["kl"] / exact["positions"] <= SAME:
        raise SystemExit(f"our float32 graph is not PyTorch's model: {exact}")
    return found


def judge_tokens(turns: Turns, fidelity: dict[str, Any]) -> None:
    """Count each engine's new tokens before the first that is not the reference's: what its cache makes of prompts.

    Those in float32 must agree for a while, or a cache is wrong; near ties may part them later.
    """
    for length in PROMPTS:
        exact = turns[f"{PYTORCH}, {length} tokens"][REFERENCE][0]["tokens"]
        for work, answers in turns.items():
            if not work.endswith(f", {length} tokens"):
                continue
            for engine, (first, *_) in answers.items():
                differs = [i for i, pair in enumerate(zip(first["tokens"], exact, strict=True)) if pair[0] != pair[1]]
                same = fidelity[engine].setdefault("same_tokens", {})[str(length)] = min(differs, default=NEW)
                if engine.endswith(", float32") and same < NEW // 4:
                    raise SystemExit(
                        f"{engine} is not PyTorch's model: of {NEW} tokens after {length}, {same} are the same"
                    )


def draw_times(groups: Mapping[str, Sequence[Engine]], turns: Turns, threads: str) -> list[str]:
    """Ratios and rates."""
    parts = []
    for group, engines in groups.items():
        ours, *others = [engine.name for engine in engines]
        peers = [name for name in others if not name.startswith("ours")]
        seconds: dict[str, Any] = {}
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
    rows = [
        [
            "SmolLM2-135M",
            "MB",
            "perplexity",
            "change",
            "top-1",
            "KL, nats",
            *(f"same tokens after {n}" for n in PROMPTS),
        ]
    ]
    for engine in dict.fromkeys(engine.name for group in groups.values() for engine in group):
        found = fidelity[engine]
        size = next(other.bytes for group in groups.values() for other in group if other.name == engine)
        exact, surprise = (found[name] / found["targets"] for name in ("exact_surprise", "surprise"))
        cells = [f"{size / 1e6:.1f}", f"{math.exp(surprise):.3f}", f"{100 * math.expm1(surprise - exact):+.2f}%"]
        cells += [f"{found['agree'] / found['positions']:.2%}", f"{found['kl'] / found['positions']:.5f}"]
        rows.append([engine, *cells, *(str(same) for same in found["same_tokens"].values())])
    return table(rows)
