"""Inputs are checked against a graph's signature before onnxruntime sees them.

onnxruntime lets some errors pass: an id of -1 wraps around, a sequence past the position table may be cut short, and
big-endian arrays are read as garbage.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from tfm.bundle import Signature, TensorSpec, brief
from tfm.errors import InputError

from .arrays import Array as Array
from .arrays import describe, to_array

MAY_BE_EMPTY = "past_sequence"
_EMPTY = (MAY_BE_EMPTY, "past_encoder_sequence")
SUM = " + "
MASKS = ("attention_mask", "decoder_attention_mask")
"""Of a decoder, what tells of all tokens which are real: by itself, or of what it writes for a source."""
POSITIONS, KEEP = "position_ids", "num_logits_to_keep"
BRANCH, HIDDEN = "use_cache_branch", "encoder_hidden_states"
"""What a decoder in the form of other readers takes: whether keys and values of the source are given, and what they are
made of where they are not. It fills in the mask of its own tokens, none of which is padding."""
NEW, TOTAL = "sequence", "total_sequence"

_UNSIGNED = {size: np.dtype(f"uint{8 * size}") for size in (1, 2, 4, 8)}
# ndarray.flags.num: the bits of C_CONTIGUOUS and ALIGNED, in one look
_READY = 0x1 | 0x100


class InputChecks:
    """The checks of one signature, prepared so that good input costs microseconds."""

    def __init__(self, signature: Signature, *, empty_batch: bool = False) -> None:
        """Prepare the checks.

        Args:
            signature: Of the graph.
            empty_batch: Whether arrays of no rows pass, where what the graph would give is known: see `without_rows`.
        """
        self._signature = signature
        self._names = dict.fromkeys(spec.name for spec in signature.inputs).keys()
        self._required = {spec.name for spec in signature.inputs if spec.default is None}
        # Caches have one shape, dozens of them: each but the first is compared with the first, not axis by axis.
        groups = {dims: number for number, dims in enumerate(dict.fromkeys(spec.shape for spec in signature.inputs))}
        self._inputs = [(spec.name, np.dtype(spec.dtype), groups[spec.shape], spec) for spec in signature.inputs]
        self._unknown: list[tuple[int, ...] | None] = [None] * len(groups)
        self._bounded = [
            (spec, spec.below, _UNSIGNED[np.dtype(spec.dtype).itemsize])
            for spec in signature.inputs
            if spec.below is not None
        ]
        dims = dict.fromkeys(dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str))
        self._sums = [(dim, tuple(dim.split(SUM))) for dim in dims if SUM in dim]
        self._max_length = [(tuple(key.split(SUM)), most) for key, most in signature.max_length.items()]
        self._min_length = [(dim, least) for dim, least in signature.min_length.items()]
        self._cached = next((spec.name for spec in signature.inputs if TOTAL in spec.shape), None)
        self._keeps = NEW in dims and KEEP in self._names - self._required
        self._batch = _batch_of(signature, dims) if empty_batch else None

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """Check arrays.

        Args:
            arrays: By input name; numpy arrays or tensors of exactly the signature's dtype, or lists that convert
                without loss.

        Returns:
            The same as numpy arrays, by input name: contiguous and aligned, copied only where they are not.

        Raises:
            InputError: A name, dtype, byte order, rank, size, value or length that the graph must not see.
        """
        if arrays.keys() != self._names and not self._required <= arrays.keys() <= self._names:
            _refuse_names(arrays, self._names, self._required)
        checked = dict(arrays)
        sizes: dict[str, int] = {}
        scattered: list[TensorSpec] = []
        shapes, plain = self._unknown.copy(), np.ndarray
        for name, dtype, group, spec in self._inputs:
            # It has a default.
            if name not in checked:
                continue
            array = checked[name]
            # Exactly ndarray: subclasses, such as masked arrays, have their own ways of being indexed.
            if type(array) is not plain:
                array = checked[name] = to_array(array, spec)
            # The other byte order is another dtype to numpy, and so is refused here.
            if array.dtype != dtype:
                _refuse_dtype(array, spec)
            if array.shape != shapes[group]:
                shapes[group] = self._measure(array, spec, sizes)
            if array.flags.num & _READY != _READY:
                scattered.append(spec)
        for dim, parts in self._sums:
            if sizes[dim] != sum([sizes[part] for part in parts]):
                self._refuse_sum(checked, dim, [sizes[part] for part in parts])
        for dims, most in self._max_length:
            total = sum([sizes[dim] for dim in dims])
            if total > most:
                raise InputError(f"{SUM.join(dims)} is {total}, but this model takes at most {most}; shorten the input")
        for dim, least in self._min_length:
            if sizes[dim] < least:
                raise InputError(f"{dim} is {sizes[dim]}, but this model takes at least {least}; give a longer input")
        # Values come last: a view of a few bytes may pretend to be as large as it likes.
        for spec in scattered:
            checked[spec.name] = _gathered(checked[spec.name], spec)
        for spec, below, unsigned in self._bounded:
            array = checked.get(spec.name, _NOTHING)
            # As unsigned integers negative values are the greatest, so that one pass finds both ends.
            if array.size and np.maximum.reduce(array.view(unsigned), axis=None) >= below:
                _refuse_values(array, spec)
        if self._cached is not None:
            _check_cached(self._cached, sizes)
        if self._keeps and KEEP in checked:
            _check_kept(checked[KEEP], sizes[NEW])
        return checked

    def without_rows(self, checked: Mapping[str, Array]) -> dict[str, Array] | None:
        """Give what the graph would, were it run on a batch of no rows, which onnxruntime's kernels refuse.

        Args:
            checked: What the checks returned.

        Returns:
            Every output by name, of zero rows; None where there are rows to run.
        """
        if self._batch is None or checked[self._inputs[0][0]].shape[0] > 0:
            return None
        sizes: dict[str, int] = {}
        for name, _, _, spec in self._inputs:
            if name in checked:
                self._measure(checked[name], spec, sizes)
        sizes |= _derived(sizes, checked)
        return empty_outputs(self._signature, sizes)

    def _measure(self, array: Array, spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
        """Compare an array's shape with the sizes known so far, and add to them."""
        shape: tuple[int, ...] = array.shape
        if len(shape) != len(spec.shape):
            raise InputError(
                f"{spec.name} has shape {shape}, but must have {len(spec.shape)} dimensions, {describe(spec)}"
            )
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            # Who comes first says how large a named dimension is; all that follow must agree.
            expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            if size != expected:
                _refuse_size(array, spec, axis, expected)
            if size == 0 and dim not in _EMPTY and dim != self._batch:
                raise InputError(f"{spec.name} has shape {shape}: {dim} must be at least 1")
        return shape

    def _refuse_sum(self, checked: Mapping[str, Array], dim: str, sizes: list[int]) -> NoReturn:
        spec = next(spec for spec in self._signature.inputs if dim in spec.shape)
        shape, axis = checked[spec.name].shape, spec.shape.index(dim)
        raise InputError(
            f"{spec.name} has shape {shape}, but must be {describe(spec)}: "
            f"axis {axis} is {shape[axis]} and must be {SUM.join(map(str, sizes))}"
        )


def empty_outputs(signature: Signature, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Make the outputs of a graph whose batch has no rows; `sizes` has its inputs' dimensions by name."""
    return {
        spec.name: np.zeros(
            [dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(SUM)) for dim in spec.shape],
            spec.dtype,
        )
        for spec in signature.outputs
    }


def nearest(name: object, known: Iterable[str]) -> str:
    """Say what is known, the nearest name first: "the nearest is 'b' (known: a, b)"."""
    known = sorted(known)
    # Without a cutoff, so that there is always one to name.
    near = difflib.get_close_matches(name if isinstance(name, str) else brief(name), known, n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r} (known: {', '.join(known)})" if near else "there is none"


def _batch_of(signature: Signature, dims: Iterable[str]) -> str | None:
    """Name the dimension whose size may be 0: every input's first, every output's too, where all their sizes follow."""
    batch = signature.inputs[0].shape[:1] if signature.inputs else ()
    if any(spec.shape[:1] != batch for spec in signature.inputs if spec.default is None):
        return None
    known = {*dims, *_DERIVED}
    for spec in signature.outputs:
        parts = {part for dim in spec.shape if isinstance(dim, str) for part in dim.split(SUM)}
        if spec.shape[:1] != batch or not parts <= known:
            return None
    return batch[0] if batch and isinstance(batch[0], str) else None


_NOTHING = np.zeros(0, np.int64)
_DERIVED = ("present_sequence", "logits_length")
"""Of a decoder's outputs, what follows from its inputs' sizes."""


def _derived(sizes: Mapping[str, int], checked: Mapping[str, Array]) -> dict[str, int]:
    present = max(sizes.get(TOTAL, 0), sizes.get(MAY_BE_EMPTY, 0))
    kept = int(checked[KEEP]) if KEEP in checked else 0
    return dict(zip(_DERIVED, (present, kept or sizes.get(NEW, 0)), strict=True))


def _refuse_names(arrays: Mapping[str, Any], known: Iterable[str], required: Collection[str]) -> NoReturn:
    for name in arrays:
        if name not in known:
            raise InputError(f"there is no input {brief(name)}; {nearest(name, known)}")
    missing = [name for name in known if name in required and name not in arrays]
    raise InputError(f"the input {missing[0]!r} is missing; the model takes {', '.join(known)}")


def _gathered(array: Array, spec: TensorSpec) -> Array:
    """Copy a view whose items do not lie one after the other, as onnxruntime would, whose errors are its own."""
    try:
        return np.require(array, requirements=["C", "A"])
    except MemoryError as error:
        raise InputError(
            f"{spec.name} has shape {array.shape}, whose {array.nbytes} bytes do not fit into memory; pass fewer rows"
        ) from error


def _check_cached(mask: str, sizes: Mapping[str, int]) -> None:
    """Check that the mask is of past and new tokens, and that the past has as many as it says."""
    total, new, room = sizes[TOTAL], sizes[NEW], sizes[MAY_BE_EMPTY]
    past = total - new
    if not 0 <= past <= room or past < room < total:
        raise InputError(
            f"{mask} tells of {total} tokens ({TOTAL}), but must be of the past and the new ones: there are {new} new "
            f"({NEW}), and the past has {room} ({MAY_BE_EMPTY}): all of them are told of, or so many that there is "
            "room for the new ones"
        )
    if past and new > 1 and sizes["batch"] > 1:
        raise InputError(
            f"{sizes['batch']} rows of {new} new tokens follow on a past, where several rows go on by one token each, "
            "and one row by any number; pass rows one by one, or tokens"
        )


def _check_kept(keep: Array, new: int) -> None:
    """Check how many logits are wanted: of a negative number others than the last ones would be."""
    if not 0 <= keep <= new:
        raise InputError(
            f"{KEEP} is {keep}, but must be in [0, {new}], as there are {new} new tokens ({NEW}); 0 is all"
        )


def _refuse_dtype(array: Array, spec: TensorSpec) -> NoReturn:
    if array.dtype.newbyteorder("=") == np.dtype(spec.dtype):
        raise InputError(
            f"{spec.name} is {array.dtype} in the other byte order, which onnxruntime reads as garbage; "
            f'convert it with .astype("{spec.dtype}")'
        )
    raise InputError(f"{spec.name} is {array.dtype}, but must be {describe(spec)}")


def _refuse_size(array: Array, spec: TensorSpec, axis: int, expected: int) -> NoReturn:
    why = "" if isinstance(spec.shape[axis], int) else f", as the {spec.shape[axis]} of what comes before it"
    raise InputError(
        f"{spec.name} has shape {array.shape}, but must be {describe(spec)}: "
        f"axis {axis} is {array.shape[axis]} and must be {expected}{why}"
    )


def _refuse_values(array: Array, spec: TensorSpec) -> NoReturn:
    assert spec.below is not None
    position = np.argwhere((array < 0) | (array >= spec.below))[0].tolist()
    what = "ids" if spec.name.endswith("ids") else "values"
    raise InputError(f"{spec.name}{position} is {array[tuple(position)]}; {what} must be in [0, {spec.below})")
