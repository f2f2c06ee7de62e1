"""What form embeddings are given in, and how near two of them are, as sentence-transformers has it.

Shapes: B batch, D model size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from tfm.bundle import SENTENCES, Companions, brief
from tfm.errors import InputError

from ..inputs.batches import check_count
from ..inputs.checks import Array, nearest

VectorType = Literal["float32", "int8", "uint8", "binary", "ubinary"]
_TYPES = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
_LEVELS = 255
_LEAST_NORM = 1e-12
"""What a vector is divided by at least, as in torch."""


class VectorOptions(TypedDict, total=False):
    """In what form embeddings are given.

    Attributes:
        dimensions: Only so many of them, the first: for models that were trained so (Matryoshka).
        normalize: Whether each has length 1; after dimensions were left out.
        dtype: "float32"; "int8" or "uint8", each dimension in 256 steps over its range; "binary" or "ubinary", a bit
            for each, 1 where it is above 0, eight of them in an int8 (less 128) or uint8.
        ranges: Of each dimension the least and the greatest value, (2, D), for int8 and uint8: those of
            `embedding_ranges(documents)`, the same for all that are compared with each other. None: those of the
            embeddings of this call.
    """

    dimensions: int | None
    normalize: bool
    dtype: VectorType
    ranges: Any


@dataclass(frozen=True)
class VectorForm:
    """In what form embeddings are given, checked."""

    size: int
    normalize: bool
    dtype: VectorType
    ranges: npt.NDArray[np.float32] | None

    def of(self, rows_BD: npt.NDArray[np.float32]) -> Array:
        """Bring embeddings (B, D) into this form.

        Raises:
            InputError: int8 has no ranges, and fewer than two embeddings to take them of.
        """
        # In the order of sentence-transformers: cut first, so that what is left has length 1.
        rows_BD = rows_BD[:, : self.size]
        if self.normalize:
            rows_BD = rows_BD / np.maximum(np.linalg.norm(rows_BD, axis=1, keepdims=True), _LEAST_NORM)
        if self.dtype == "float32":
            return rows_BD
        if self.dtype in ("binary", "ubinary"):
            # The first dimension is the highest bit of the first byte.
            bits = np.packbits(rows_BD > 0, axis=1)
            return bits if self.dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
        # What is compared later must have the same steps, which no single call can know.
        ranges = self.ranges
        if ranges is None:
            if len(rows_BD) == 0:
                return np.zeros(rows_BD.shape, _TYPES[self.dtype])
            if len(rows_BD) == 1:
                raise InputError(
                    f"{self.dtype} of one embedding alone says nothing: pass ranges=embedding_ranges(embeddings of "
                    "your documents)"
                )
            ranges = embedding_ranges(rows_BD)
        # A dimension that is always the same has no steps; dividing by 1 leaves it where it is.
        steps = (ranges[1] - ranges[0]) / np.float32(_LEVELS)
        levels = np.floor((rows_BD - ranges[0]) / np.where(steps == 0, np.float32(1), steps))
        levels = np.clip(levels, 0, _LEVELS)
        return (levels if self.dtype == "uint8" else levels - 128).astype(_TYPES[self.dtype])


def embedding_ranges(embeddings: Any) -> npt.NDArray[np.float32]:
    """Give the least and the greatest value of each dimension of embeddings (B, D), float32 (2, D).

    Take thousands of your documents' for it, and keep what it gives: int8 embeddings that are compared with each other
    must have the same ranges.

    Raises:
        InputError: They are not two or more rows of numbers.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) < 2 or rows.dtype.kind != "f":
        raise InputError(f"ranges are of two or more embeddings (B, D) of floats, not of {rows.dtype} {rows.shape}")
    return np.stack([rows.min(0), rows.max(0)]).astype(np.float32)


def vector_form(options: VectorOptions, width: int) -> VectorForm:
    """Check in what form embeddings of so many dimensions are asked for.

    Raises:
        InputError: There are fewer dimensions than asked for, or there is no such dtype, or ranges are of other sizes.
    """
    # All of it before the first text is run.
    size, dtype = options.get("dimensions"), options.get("dtype", "float32")
    size = width if size is None else check_count("dimensions", size)
    if size > width:
        raise InputError(f"dimensions is {size}, but this model's embeddings have only {width}")
    if dtype not in _TYPES:
        raise InputError(f"there is no dtype {brief(dtype)} for embeddings; {nearest(dtype, _TYPES)}")
    ranges = options.get("ranges")
    if ranges is not None:
        ranges = np.asarray(ranges, np.float32)[:, :size]
        if ranges.shape != (2, size):
            raise InputError(f"ranges must be (2, {size}), the least and the greatest, but is {ranges.shape}")
    normalize = options.get("normalize", False)
    if not isinstance(normalize, bool):
        raise InputError(f"normalize must be True or False, but is {brief(normalize)}")
    return VectorForm(size, normalize, dtype, ranges)


def read_similarity(companions: Companions) -> str:
    """Read by which measure a model's embeddings are compared; cosine where it does not say.

    Raises:
        BundleError: It is none that is known.
    """
    value = (companions.json(SENTENCES) or {}).get("similarity_fn_name")
    return "cosine" if value is None or value.value is None else value.choice(SIMILARITIES)


def _cosine(a_ND: Array, b_MD: Array) -> Array:
    return _unit(a_ND) @ _unit(b_MD).T


def _unit(rows_ND: Array) -> Array:
    unit: Array = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), _LEAST_NORM)
    return unit


def _euclidean(a_ND: Array, b_MD: Array) -> Array:
    # One row of a at a time, which needs no memory of N · M · D.
    return np.stack([-np.linalg.norm(b_MD - row, axis=1) for row in a_ND])


def _manhattan(a_ND: Array, b_MD: Array) -> Array:
    return np.stack([-np.abs(b_MD - row).sum(1) for row in a_ND])


SIMILARITIES: dict[str, Callable[[Array, Array], Array]] = {
    "cosine": _cosine,
    "dot": lambda a_ND, b_MD: a_ND @ b_MD.T,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
"""Name → function of two matrices (N, D) and (M, D) that gives (N, M): the greater, the nearer."""
