"""Rows of token ids of different lengths, checked, and padded into batches.

Shapes: B batch, S sequence.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfm.bundle import Signature, brief, kind_of
from tfm.errors import InputError

from .arrays import Array, foreign_array, look_through
from .checks import SUM


def check_count(name: str, value: Any) -> int:
    """Return a number of things, an integer of at least 1.

    Raises:
        InputError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, but is {brief(value)}")
    return int(value)


def check_rows(
    rows: Sequence[Any], signature: Signature, places: Sequence[int | None] | None = None
) -> list[list[int]]:
    """Check rows of token ids before they are sorted and padded, so that an error names the caller's own row.

    Args:
        rows: Sequences of integers.
        signature: Of the graph that they go into as `input_ids`.
        places: Numbers that the caller knows them by; None: their own.

    Returns:
        The rows as lists of int.

    Raises:
        InputError: A row is empty, too long or no sequence of integers, or an id is out of range.
    """
    # Int64's end.
    below = next((spec.below for spec in signature.inputs if spec.name == "input_ids"), None) or 2**63
    most = length_limit(signature)
    checked = []
    for number, row in enumerate(rows):
        index = _place(number, places)
        array = _as_integers(index, row)
        if array.size == 0:
            raise InputError(f"inputs[{index}] has no tokens; leave it out")
        if most is not None and array.size > most:
            raise InputError(
                f"inputs[{index}] has {array.size} tokens, but this model takes at most {most}; shorten it"
            )
        if array.min() < 0 or array.max() >= below:
            position = int(np.argmax((array < 0) | (array >= below)))
            raise InputError(f"inputs[{index}][{position}] is {array[position]}; ids must be in [0, {below})")
        checked.append(array.tolist())
    return checked


def length_limit(signature: Signature) -> int | None:
    """How many tokens one sequence may have, those of the past included; None: any number."""
    limits = [most for key, most in signature.max_length.items() if "sequence" in key.split(SUM)]
    return min(limits, default=None)


def batches(
    rows: Sequence[Sequence[int]], size: int, pad: int = 0, *, in_order: bool = False
) -> Iterator[tuple[list[int], Array, Array]]:
    """Sort rows by length, unless they are to stay in order, and pad them, with the id `pad`, into batches.

    Yields:
        The places of a batch's rows in `rows`; their ids (B, S), int64; which of them are real, (B, S), int64 0 or 1.
    """
    order = list(range(len(rows))) if in_order else sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        yield positions, *pad_rows([rows[position] for position in positions], pad)


def pad_rows(rows: Sequence[Sequence[int]], pad: int = 0, *, left: bool = False) -> tuple[Array, Array]:
    """Pad rows, at least one, on the right or left: ids (B, S), int64, and which are real, (B, S), int64 0 or 1."""
    ids_BS = np.full((len(rows), max(map(len, rows))), pad, np.int64)
    mask_BS = np.zeros_like(ids_BS)
    for b, row in enumerate(rows):
        start = ids_BS.shape[1] - len(row) if left else 0
        ids_BS[b, start : start + len(row)], mask_BS[b, start : start + len(row)] = row, 1
    return ids_BS, mask_BS


BATCH_TOKENS = 512
"""Where larger batches gain no more. On MiniLM in fp32 on one thread, with rows of 8 to 128 tokens, a token took in
batches of 64, 256 and 512 tokens at most 1.27, 1.03 and 1.01 of the least time in any batch of up to 1024."""

_MOST_PADDING = 18
"""In tokens: what one more batch costs, measured as above, and so where it is cheaper to start one than to pad."""


def plan(lengths: Sequence[int], batch_tokens: int | None) -> list[list[int]]:
    """Divide rows into batches of similar length, each a list of places, those with the longest rows first.

    Threads that take one batch after the other then end at about the same time. `batch_tokens` are the most of a batch
    of several rows, padding included; None: each row alone.
    """
    planned: list[list[int]] = []
    longest = padding = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        # Rows come longest first, so the first one of a batch says how long all of it is.
        padding += longest - lengths[position]
        fits = batch_tokens is not None and planned and (len(planned[-1]) + 1) * longest <= batch_tokens
        if fits and padding <= _MOST_PADDING:
            planned[-1].append(position)
        else:
            planned.append([position])
            longest, padding = lengths[position], 0
    return planned


def _place(number: int, places: Sequence[int | None] | None) -> int:
    place = None if places is None else places[number]
    return number if place is None else place


def _as_integers(index: int, row: Any) -> Array:
    name, wanted = f"inputs[{index}]", "a text or a sequence of token ids"
    # A text's bytes, not ids.
    if isinstance(row, bytearray) or (isinstance(row, memoryview) and row.itemsize == 1):
        raise InputError(f"{name} must be {wanted}, but is {kind_of(row)} of bytes; decode it, or pass a list of ids")
    if hasattr(type(row), "__array__") or hasattr(type(row), "__dlpack__"):
        array = foreign_array(name, row, wanted)
    else:
        try:
            has_bool = look_through(row, 2)
            array = np.asarray(row)
            if has_bool and array.dtype != bool:
                raise ValueError("it mixes bool with numbers")
        except Exception as error:  # the items may be somebody else's: any class
            raise InputError(f"{name} is no sequence of token ids: {error}") from error
    # Of an empty list numpy makes float64; that it has no tokens is for others to say.
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"{name} must be {wanted}, but is {type(row).__name__} {brief(row)}")
    return array
