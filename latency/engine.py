"""A bundle as an engine: opened and run by `tfm.runtime`, as an app does it."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.runtime import PLAIN_SETTINGS, Decoder, Encoder, EncoderDecoder, load

from . import worker
from .onnx_engine import read_arrays
from .workloads import CORPUS

_OF_ROWS = ("embed", "classify")
_OF_TEXTS = ("embed", "classify", "classify_tokens")


def open_workloads(job: Mapping[str, Any]) -> Sequence[worker.Run | None]:
    """Open one precision of a bundle."""
    model: Any = load(job["bundle"], provider="cpu", precision=job["precision"], threads=job["threads"])
    return [_run_of(model, work) for work in job["works"]]


def _run_of(model: Any, work: Mapping[str, Any]) -> worker.Run | None:
    """Make what runs a work; None: the model has no task for it."""
    if work["file"] is not None:
        arrays = read_arrays(work["file"])
        # Read once, and outside of what is timed.
        return worker.timed(lambda: model.run(arrays))
    if isinstance(model, Encoder):
        return _encoding(model, work["kind"], work["rows"], work["texts"])
    rows, texts, new_tokens = work["rows"], work["texts"], work["new_tokens"]
    if work["kind"] == "rows":
        return lambda: _generate(model, rows, new_tokens)
    return worker.timed(lambda: model.generate(texts or rows, max_new_tokens=new_tokens, **PLAIN_SETTINGS))


def _encoding(model: Encoder, kind: str, rows: list[list[int]], texts: list[str]) -> worker.Run | None:
    task = next((name for name in model.tasks if name in (_OF_TEXTS if texts else _OF_ROWS)), None)
    if task is not None:
        call = getattr(model, task)
        return worker.timed(lambda: call(texts or rows, long_texts="cut"))
    # It is of texts and ragged rows, which a graph without a task does not take.
    if kind == CORPUS:
        return None
    inputs = _inputs(model, rows[:1] if kind == "answer" else rows)
    return worker.timed(lambda: model.run(inputs))


def _generate(model: Decoder | EncoderDecoder, rows: list[list[int]], new_tokens: int) -> worker.Times:
    """Generate so many tokens, whatever they are: the time to the first ones, and that of each step after it."""
    times: list[float] = []

    def stamp(_: object, logits_BV: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # A logits processor is called once for each new token, when the graph has run.
        times.append(perf_counter())
        return logits_BV

    start = perf_counter()
    model.generate(
        # In one batch, and to the last token: where rows end early, there would be fewer steps to
        # time.
        rows,
        new_tokens,
        batch_size=len(rows),
        logits_processors=[stamp],
        **{**PLAIN_SETTINGS, "min_new_tokens": new_tokens},
    )
    return {"first token": [times[0] - start], "token": np.diff(times).tolist()}


def _inputs(model: Encoder, rows: list[list[int]]) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of one length as a graph without a task takes them."""
    ids_BS = np.array(rows, np.int64)
    known = {"input_ids": ids_BS, "attention_mask": np.ones_like(ids_BS), "token_type_ids": np.zeros_like(ids_BS)}
    return {spec.name: known[spec.name] for spec in model.manifest.signature["model"].inputs}


def main(imported: float | None = None) -> None:
    """Serve as an engine of `rounds`."""
    worker.main(open_workloads, imported)
