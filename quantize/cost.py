"""What ops take by each method on this machine: each run by itself, on what it gets, in interleaved rounds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .pieces import open_piece

Array = npt.NDArray[Any]

_ROUNDS = 7
_ROUND_SECONDS = 0.003
"""What one method runs before the next has its turn, at least two runs."""


def time_pieces(pieces: Sequence[ir.Model], feeds: Mapping[str, Array]) -> list[float]:
    """Time the forms of one op on one thread.

    Args:
        pieces: Its forms.
        feeds: What it takes, by name.

    Returns:
        Seconds per run of each: the median over rounds of a round's fastest.
    """
    runs = []
    for written in pieces:
        session = open_piece(written, threads=1)
        runs.append(lambda session=session: session.run(None, dict(feeds)))
    return interleaved(runs)


def interleaved(runs: Sequence[Callable[[], object]], seconds: float = _ROUND_SECONDS) -> list[float]:
    """Time calls side by side: the median over rounds of a round's fastest, in seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(_ROUNDS):
        for run, found in zip(runs, times, strict=True):
            found.append(_fastest(run, seconds))
    return [statistics.median(found) for found in times]


def _fastest(run: Callable[[], object], seconds: float) -> float:
    run()  # wakes caches after the others' turns
    fastest, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return fastest


def noise_of(pieces: Sequence[ir.Model], exact: ir.Model, inputs: Sequence[tuple[Mapping[str, Array], Array | None]]) -> list[float]:
    """Normalised mean squared error of each form of one op on exact inputs.

    Args:
        pieces: Its forms.
        exact: The op in float32.
        inputs: What it takes, by name, and which rows of its results count; None: all.

    Returns:
        Σ(found - exact)² / Σ exact² over all results, per form.
    """
    signal, noise = 0.0, [0.0] * len(pieces)
    reference = open_piece(exact)
    sessions = [open_piece(written) for written in pieces]
    for feeds, real_R in inputs:
        expected = [_rows(array, real_R) for array in reference.run(None, dict(feeds))]
        signal += sum(float(np.square(array).sum(dtype=np.float64)) for array in expected)
        for index, session in enumerate(sessions):
            found = [_rows(array, real_R) for array in session.run(None, dict(feeds))]
            noise[index] += sum(
                float(np.square(f - e).sum(dtype=np.float64)) for f, e in zip(found, expected, strict=True)
            )
    return [part / signal if signal else float(part > 0) for part in noise]


def _rows(array: Array, real_R: Array | None) -> Array:  # noqa: N803 - R is its shape
    rows = array.reshape(-1, array.shape[-1])
    return rows if real_R is None or len(real_R) != len(rows) else rows[real_R]
