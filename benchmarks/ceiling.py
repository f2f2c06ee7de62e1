"""The ceiling: this machine's matrix peaks and memory bandwidth, and our graphs' operators as a share of them.

    python benchmarks/ceiling.py [--encoder minilm.tfm] [--decoder smollm2.tfm] [--json FILE] [--quick]

Peaks are the best of several products, of several shapes that stay in the cache, by onnxruntime and PyTorch; bandwidth
is that of reading arrays that fit into the second-level cache, into the third-level one, and into neither. On one
thread and on two.

Operators are timed by onnxruntime's own profile, on one thread, in the median of the runs. A product of int8 is held
against the int8 peak, one of float32 and attention against the float32 peak; all others, and products of one row,
against the bandwidth of the first place that holds what they read and write: weights of more than the third-level cache
come from memory, and what a node gives another is where the node's own inputs and outputs fit. Bytes written count as
those read, though they cost more.

A decoder's step must read every weight but the table that a token is looked up in, and the whole cache: the rate at
which it does so is given as a share of the bandwidth of memory.

Prints Markdown. The machine must do nothing else.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from side_by_side import Engine, Worker, duration, machine, say, table

from tfm.bundle.manifest import Manifest, read_manifest

SHAPES = ((1, 16), (1, 128), (8, 128), (1, 512))
CONTEXTS = (128, 1024)
PRODUCTS = ((128, 384, 1536), (512, 512, 512), (512, 1024, 1024), (1024, 1024, 1024))
INT8 = ("MatMulInteger", "DynamicQuantizeMatMul", "torch._int_mm")
FLOAT32 = ("MatMul", "torch.mm")
READS = ("numpy max", "numpy dot", "torch sum", "ReduceMax")
MEMORY = 1 << 29
"""Bytes of an array far larger than any cache here."""

IN_PLACE = ("Reshape", "Squeeze", "Unsqueeze")
"""Operators that read and write next to nothing of what they are given."""

Peaks = dict[str, tuple[float, str]]
"""What → thousand millions a second (multiply-adds, or bytes), and what reached it."""


def cache_sizes() -> dict[str, int]:
    """Level → bytes of one core's cache, "L2" and "L3"."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        if level in "23":
            found[f"L{level}"] = int(size.rstrip("K")) << 10
    if len(found) != 2:
        raise SystemExit(f"the sizes of the second- and third-level cache are needed, but Linux tells only {found}")
    return found


def measure_peaks(worker: Worker, seconds: float) -> Peaks:
    """Int8, float32, and the bandwidth of each level."""
    peaks = {}
    for what, kinds in (("int8", INT8), ("float32", FLOAT32)):
        rates = []
        for kind in kinds:
            for m, k, n in PRODUCTS:
                taken = worker.ask(f"product {kind} {m} {k} {n} {seconds}")["seconds"]
                rates.append((m * k * n / taken / 1e9, f"{kind}, {m}×{k}×{n}"))
        peaks[what] = max(rates)
    half = {level: size // 2 for level, size in cache_sizes().items()}  # so that other things leave it room
    for level, size in {**half, "memory": MEMORY}.items():
        rates = []
        for kind in READS:
            taken = worker.ask(f"read {kind.replace(' ', '_')} {size} {seconds}")["seconds"]
            rates.append((size / taken / 1e9, kind))
        peaks[level] = max(rates)
    return peaks


def weight_bytes(path: Path) -> dict[str, int]:
    """Operator → bytes, as they lie in the file, of constants that its nodes read whole.

    What several nodes read counts once. A constant that is cast or reshaped first is so when the graph is opened, and
    belongs to what reads it then; where only some rows are looked up, nothing is read whole.
    """
    graph = ir.load(path).graph
    size = {name: value.const_value.nbytes for name, value in graph.initializers.items() if value.const_value}
    origins = {name: {name} for name in size}
    found: dict[str, int] = {}
    for node in graph:
        names = [value.name for value in node.inputs if value is not None and value.name in origins]
        if node.op_type in ("Cast", "Reshape", "Transpose") and node.inputs[0].name in origins:
            origins[node.outputs[0].name] = origins[names[0]]
        elif not node.op_type.startswith("Gather"):
            for origin in {origin for name in names for origin in origins[name] if origin in size}:
                found[node.op_type] = found.get(node.op_type, 0) + size.pop(origin)
    return found


def cache_bytes(manifest: Manifest, context: int) -> int:
    """Keys and values of so many tokens."""
    sizes = {"batch": 1, "past_sequence": context}
    total = 0
    for spec in manifest.signature["model"].inputs:
        if spec.name.startswith("past_key_values."):
            count = 4 if spec.dtype == "float32" else 2
            for dim in spec.shape:
                count *= dim if isinstance(dim, int) else sizes[dim]
            total += count
    return total


def level_of(size: float) -> str:
    """The first place that holds so many bytes."""
    return next((level for level, most in sorted(cache_sizes().items()) if size <= most), "memory")


def draw_ops(answer: Mapping[str, Any], weights: Mapping[str, int], rows: int, peaks: Peaks, title: str) -> str:
    """A graph's operators, those that take longest first."""
    total = sum(figures["seconds"] for figures in answer["ops"].values())
    home = level_of(sum(weights.values()))
    lines = [[title, "ms", "of the whole", "rate", "of the peak"]]
    rest = 0.0
    for op, figures in sorted(answer["ops"].items(), key=lambda item: -item[1]["seconds"]):
        seconds = figures["seconds"]
        if seconds < 0.01 * total:
            rest += seconds
            continue
        if op in IN_PLACE:
            rate, unit, kind = 0.0, "", ""
        elif figures["macs"] and rows > 1:
            kind = "int8" if re.search("Integer|Quantize|NBits|QLinear|QGemm", op) else "float32"
            rate, unit = figures["macs"] / seconds / 1e9, "GMAC/s"
        else:
            read = weights.get(op, 0)
            kind = home if read > figures["bytes"] else level_of(figures["largest"])
            rate, unit = (figures["bytes"] + read) / seconds / 1e9, "GB/s"
        of_peak = [f"{rate:.1f} {unit}", f"{rate / peaks[kind][0]:.0%} of {kind}"] if kind else ["in place", ""]
        lines.append([op, f"{seconds * 1e3:.3f}", f"{seconds / total:.1%}", *of_peak])
    lines.append(["others", f"{rest * 1e3:.3f}", f"{rest / total:.1%}", "", ""])
    lines.append(
        ["all operators", f"{total * 1e3:.3f}", f"run without profile: {duration([answer['seconds']])}", "", ""]
    )
    return table(lines)


def draw_encoder(
    worker: Worker, bundle: Path, peaks: Mapping[int, Peaks], shapes: Sequence[tuple[int, int]]
) -> list[str]:
    """Tables of every shape."""
    manifest = read_manifest(bundle)
    weights = weight_bytes(bundle / manifest.graphs["int8"]["model"])
    parts = []
    for batch, length in shapes:
        say(f"encoder, {batch}×{length}")
        answer = worker.ask(f"encoder {bundle} int8 {batch} {length}")
        parts.append(draw_ops(answer, weights, batch * length, peaks[1], f"int8, {batch}×{length} tokens"))
    return parts


def draw_decoder(
    workers: Mapping[int, Worker], bundle: Path, peaks: Mapping[int, Peaks], contexts: Sequence[int]
) -> list[str]:
    """The steps, and tables of their operators."""
    manifest = read_manifest(bundle)
    steps = [["Step", "threads", "ms", "MB of weights", "MB of cache", "GB/s", "of memory"]]
    parts = []
    for precision in manifest.graphs:
        if precision not in ("int8", "int4"):
            continue
        weights = weight_bytes(bundle / manifest.graphs[precision]["model"])
        for context in contexts:
            cache = cache_bytes(manifest, context)
            for threads, worker in workers.items():
                say(f"decoder, {precision} after {context}, {threads} threads")
                answer = worker.ask(f"decoder {bundle} {precision} {context}")
                rate = (sum(weights.values()) + cache) / answer["seconds"] / 1e9
                size = [f"{of / 1e6:.1f}" for of in (sum(weights.values()), cache)]
                share = f"{rate / peaks[threads]['memory'][0]:.0%}"
                name = f"{precision}, after {context} tokens"
                steps.append([name, str(threads), f"{answer['seconds'] * 1e3:.2f}", *size, f"{rate:.1f}", share])
                if threads == 1:
                    parts.append(draw_ops(answer, weights, 1, peaks[1], name))
    return [table(steps), *parts]


def draw_peaks(peaks: Mapping[int, Peaks]) -> str:
    """What the machine can do."""
    rows = [["Peak", *(f"{threads} thread{'s' * (threads > 1)}" for threads in peaks)]]
    for what in peaks[1]:
        unit = "GMAC/s" if what in ("int8", "float32") else "GB/s"
        name = f"{what} products" if unit == "GMAC/s" else f"reading {what}"
        rows.append([name, *(f"{of[what][0]:.1f} {unit} ({of[what][1]})" for of in peaks.values())])
    return table(rows)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="A bundle with an int8 encoder that embeds.")
    parser.add_argument("--decoder", type=Path, help="A bundle with an int8 or int4 decoder.")
    parser.add_argument("--json", type=Path, help="File to write the peaks to.")
    parser.add_argument("--quick", action="store_true", help="As little as there can be: does it run?")
    options = parser.parse_args()
    engine = Engine(
        name="ceiling", python=Path(sys.executable), worker=Path(__file__).with_name("ceiling_worker.py"), job={}
    )
    with Worker(engine, 1) as one, Worker(engine, 2) as two:
        workers, peaks = {1: one, 2: two}, {}
        for threads, worker in workers.items():
            say(f"peaks, {threads} threads")
            peaks[threads] = measure_peaks(worker, 0.02 if options.quick else 0.3)
        parts = [f"{machine()}.", draw_peaks(peaks)]
        if options.encoder:
            shapes = SHAPES[:1] if options.quick else SHAPES
            parts += draw_encoder(one, options.encoder.resolve(), peaks, shapes)
        if options.decoder:
            contexts = CONTEXTS[:1] if options.quick else CONTEXTS
            parts += draw_decoder(workers, options.decoder.resolve(), peaks, contexts)
    if options.json:
        options.json.write_text(json.dumps(peaks, indent=2, ensure_ascii=False) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
