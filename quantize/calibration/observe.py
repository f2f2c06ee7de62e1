"""What goes into every product of a graph, on calibration data."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from ..methods.ops import Op, find_ops
from .hooked import open_tapped

ROWS, ROWS_OF_BATCH = 512, 32
"""Of each product's input, so many rows are kept, and of each batch so many: batches are of texts of like length."""


@dataclasses.dataclass
class Observed:
    """The input of one product.

    Attributes:
        largest_K: Largest magnitude of each channel, float32; padding counts, since it shares the scale of the rest.
        batches: Rows of each input, float32 (R, K), and which of them are not padding, (R,).
    """

    largest_K: npt.NDArray[np.float32]
    batches: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]

    @property
    def power_K(self) -> npt.NDArray[np.float64]:
        """Mean square of each channel over the rows that are no padding."""
        total_K, count = np.zeros(len(self.largest_K)), 0
        for rows_RK, real_R in self.batches:
            total_K += np.square(rows_RK[real_R], dtype=np.float64).sum(0)
            count += int(real_R.sum())
        return total_K / max(count, 1)


def joined(op: Op, observed: Mapping[str, Observed]) -> Observed | None:
    """What goes into all products of an op together, since they share a weight; None where one was not seen."""
    seen = [observed.get(str(use.x.name)) for use in op.uses if not use.is_lookup]
    found = [one for one in seen if one is not None]
    if not found or len(found) < len(seen):
        return None
    largest_K = np.max([one.largest_K for one in found], axis=0)
    return Observed(largest_K, [batch for one in found for batch in one.batches])


def observe(path: Path, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> dict[str, Observed]:
    """Run a float32 graph and look at the input of every product.

    Args:
        path: The ONNX file.
        batches: Inputs by name; what an "attention_mask" of 0 marks is padding.

    Returns:
        Name of the value that goes into a product → what was seen of it.

    Raises:
        QuantizeError: There is no batch, or a value is NaN or infinite on it.
    """
    ops = find_ops(ir.load(path).graph)
    values = {use.x for op in ops for use in op.uses if not use.is_lookup}
    # Inputs of the graph are known already, and cannot be given out as values of its nodes.
    names = sorted(str(value.name) for value in values if not value.is_graph_input())
    given = sorted(str(value.name) for value in values if value.is_graph_input())
    session = open_tapped(path, names)
    found: dict[str, Observed] = {}
    any_batch = False
    for feeds in batches:
        any_batch = True
        computed = session.run(names, dict(feeds)) if names else []  # of no names it gives every output
        arrays = [*computed, *(feeds[name] for name in given)]
        for name, array in zip([*names, *given], arrays, strict=True):
            if not np.isfinite(array).all():
                raise QuantizeError(f"{name!r}, which goes into a product, is NaN or infinite on the calibration data")
            _add(found, name, array.astype(np.float32, copy=False), feeds.get("attention_mask"))
    if not any_batch:
        raise QuantizeError("there is no calibration data")
    return found


def _add(found: dict[str, Observed], name: str, array: npt.NDArray[np.float32], mask: npt.NDArray[Any] | None) -> None:
    rows_RK = array.reshape(-1, array.shape[-1])
    # (B, S, K) → (B · S, K). Only what has the mask's axes has padding: a pooled state has not.
    padded = mask is not None and array.ndim == 3 and array.shape[:2] == mask.shape
    real_R = mask.reshape(-1) != 0 if padded and mask is not None else np.ones(len(rows_RK), np.bool_)
    seen = found.setdefault(name, Observed(np.zeros(array.shape[-1], np.float32), []))
    seen.largest_K = np.maximum(seen.largest_K, np.abs(rows_RK).max(axis=0))
    if sum(len(rows) for rows, _ in seen.batches) < ROWS:
        seen.batches.append((rows_RK[:ROWS_OF_BATCH], real_R[:ROWS_OF_BATCH]))
