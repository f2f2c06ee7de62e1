"""What ops take by each method on this machine: each run by itself, on what it gets, in interleaved rounds."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.latency import Workload
from tfm.runtime import StepProgress, open_session

from ..calibration.hooked import open_tapped
from .candidates import Candidate
from .figures import numbers
from .journal import Journal
from .subgraphs import open_subgraph

Array = npt.NDArray[Any]

_ROUNDS = 9
_EVICTED = 1 << 26
"""Bytes, at most, that are read between two runs."""

# A thread's own time leaves out what other processes take; some systems count it in ticks that are
# longer than an op.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter


def time_shares(
    candidates: Sequence[Candidate],
    workloads: Sequence[Workload],
    paths: Mapping[str, Path],
    size: int,
    journal: Journal,
    progress: StepProgress,
) -> list[list[float]]:
    """Find what each op's forms take of float32's whole time, on average over the works.

    Args:
        candidates: The ops and their forms.
        workloads: What is run.
        paths: Role → float32 graph.
        size: Bytes of the model's weights.
        journal: Where times are kept; what is alike is timed once.
        progress: Told of every work.

    Returns:
        A share of the time per form, per op.
    """
    times = [[0.0] * len(one.subgraphs) for one in candidates]
    for number, work in enumerate(workloads):
        progress(number, len(workloads), f"time the forms of the ops of {work.name}")
        mine = [(index, one) for index, one in enumerate(candidates) if one.role == work.role]
        arrays = _inputs_of([one for _, one in mine], work, paths[work.role])
        # One thread, as for the subgraphs: the clock counts no other's work.
        session = open_session(paths[work.role], "cpu", 1)
        whole = functools.partial(session.run, None, dict(work.inputs))
        (total,) = journal.recall(
            f"time {work.name}", functools.partial(interleaved, [whole], size), numbers(1, positive=True)
        )
        for index, one in mine:
            feeds = {str(use.x.name): arrays[str(use.x.name)] for use in one.op.uses}
            # The key names all that an op's times depend on, and not the op: layers are alike, and
            # so are timed once.
            shapes = [(feeds[str(use.x.name)].shape, use.is_lookup, use.bias is not None) for use in one.op.uses]
            classes = [method.speed_class for method in one.methods]
            key = f"time {work.name} {one.op.values.shape} {shapes} {classes}"
            find = functools.partial(time_subgraphs, one.subgraphs, feeds, size)
            found = journal.recall(key, find, numbers(len(one.subgraphs), positive=True))
            for variant, seconds in enumerate(found):
                times[index][variant] += seconds / total / len(workloads)
    return times


def _inputs_of(candidates: Sequence[Candidate], work: Workload, path: Path) -> dict[str, Array]:
    """What the ops of a graph get in a work, by name."""
    values = {str(use.x.name): use.x for one in candidates for use in one.op.uses}
    arrays = {name: value.const_value.numpy() for name, value in values.items() if value.const_value is not None}
    arrays |= work.inputs
    # Of none onnxruntime gives every output.
    if names := sorted(set(values) - set(arrays)):
        arrays |= zip(names, open_tapped(path, names).run(names, dict(work.inputs)), strict=True)
    return arrays


def time_subgraphs(subgraphs: Sequence[ir.Model], feeds: Mapping[str, Array], size: int) -> list[float]:
    """Time the forms of one op on one thread.

    Args:
        subgraphs: Its forms.
        feeds: What it takes, by name.
        size: Bytes of the model that it belongs to.

    Returns:
        Seconds per run of each, as `interleaved` finds them.
    """
    sessions = [open_subgraph(written, threads=1) for written in subgraphs]
    return interleaved([functools.partial(session.run, None, dict(feeds)) for session in sessions], size)


def interleaved(runs: Sequence[Callable[[], object]], size: int) -> list[float]:
    """Time calls side by side: the fastest of each over all rounds, in seconds.

    Before each run as much memory is read as the model's weights take: in the model they come from there too, unless
    all of them fit into the caches. What else the machine does only ever adds time, and seldom to every round. Where
    the system tells it finely enough, the time that this thread ran is taken: the calls must do all their work in it.

    Args:
        runs: The calls.
        size: Bytes of the model's weights.
    """
    times = [float("inf")] * len(runs)
    others = np.ones(min(size, _EVICTED) // 8)
    for _ in range(_ROUNDS):
        for index, run in enumerate(runs):
            others += 1
            start = _clock()
            run()
            times[index] = min(times[index], _clock() - start)
    return times


def noise_of(
    subgraphs: Sequence[ir.Model], exact: ir.Model, inputs: Sequence[tuple[Mapping[str, Array], Array | None]]
) -> list[float]:
    """Normalized mean squared error of each form of one op on exact inputs.

    Args:
        subgraphs: Its forms.
        exact: The op in float32.
        inputs: What it takes, by name, and which rows of its results count; None: all.

    Returns:
        Σ(found - exact)² / Σ exact² over all results, per form.
    """
    signal, nmse = 0.0, [0.0] * len(subgraphs)
    reference = open_subgraph(exact)
    sessions = [open_subgraph(written) for written in subgraphs]
    for feeds, real_R in inputs:
        expected = [_rows(array, real_R) for array in reference.run(None, dict(feeds))]
        signal += sum(float(np.square(array).sum(dtype=np.float64)) for array in expected)
        for index, session in enumerate(sessions):
            found = [_rows(array, real_R) for array in session.run(None, dict(feeds))]
            nmse[index] += sum(
                float(np.square(f - e).sum(dtype=np.float64)) for f, e in zip(found, expected, strict=True)
            )
    # Where the exact result is all zeros any error is as large as can be.
    return [part / signal if signal else float(part > 0) for part in nmse]


def _rows(array: Array, real_R: Array | None) -> Array:
    # Rows that are looked up are not those of the product, and none of them is padding.
    rows = array.reshape(-1, array.shape[-1])
    return rows if real_R is None or len(real_R) != len(rows) else rows[real_R]
