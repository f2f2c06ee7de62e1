"""Inputs are checked against a graph's signature before onnxruntime sees them.

onnxruntime lets some errors pass: an id of -1 wraps around, a sequence past the position table may be cut short, and
big-endian arrays are read as garbage.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError

from .manifest import Signature, TensorSpec

Array = npt.NDArray[Any]
MAY_BE_EMPTY = "past_sequence"
SUM = " + "

_UNSIGNED = {size: np.dtype(f"uint{8 * size}") for size in (1, 2, 4, 8)}


class InputChecks:
    """The checks of one signature, prepared so that good input costs microseconds."""

    def __init__(self, signature: Signature) -> None:
        self._inputs = {spec.name: (np.dtype(spec.dtype), len(spec.shape), spec) for spec in signature.inputs}
        dims = dict.fromkeys(dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str))
        self._sums = [(dim, tuple(dim.split(SUM))) for dim in dims if SUM in dim]
        self._max_length = [(tuple(key.split(SUM)), most) for key, most in signature.max_length.items()]

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """Check arrays.

        Args:
            arrays: By input name; numpy arrays of exactly the signature's dtype, or lists that convert without loss.

        Returns:
            The same as numpy arrays, by input name.

        Raises:
            InputError: A name, dtype, byte order, rank, size, value or length that the graph must not see.
        """
        if arrays.keys() != self._inputs.keys():
            _refuse_names(arrays, self._inputs)
        checked: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for name, (dtype, rank, spec) in self._inputs.items():
            array = arrays[name]
            if type(array) is not np.ndarray:
                array = _to_array(array, spec)
            if array.dtype != dtype:
                _refuse_dtype(array, spec)
            if array.ndim != rank:
                raise InputError(f"{name} has shape {array.shape}, but must have {rank} dimensions, {_describe(spec)}")
            for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
                expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
                if size != expected:
                    _refuse_size(array, spec, axis, expected)
                if size == 0 and dim != MAY_BE_EMPTY:
                    raise InputError(f"{name} has shape {array.shape}: {dim} must be at least 1")
            # As unsigned integers negative values are the greatest, so that one pass finds both ends.
            bounded = spec.below is not None and array.size > 0
            if bounded and array.view(_UNSIGNED[array.itemsize]).max() >= spec.below:
                _refuse_values(array, spec)
            checked[name] = array
        for dim, parts in self._sums:
            if sizes[dim] != sum([sizes[part] for part in parts]):
                self._refuse_sum(checked, dim, [sizes[part] for part in parts])
        for dims, most in self._max_length:
            total = sum([sizes[dim] for dim in dims])
            if total > most:
                raise InputError(f"{SUM.join(dims)} is {total}, but this model takes at most {most}; shorten the input")
        return checked

    def _refuse_sum(self, checked: Mapping[str, Array], dim: str, sizes: list[int]) -> NoReturn:
        spec = next(spec for _, _, spec in self._inputs.values() if dim in spec.shape)
        shape, axis = checked[spec.name].shape, spec.shape.index(dim)
        raise InputError(
            f"{spec.name} has shape {shape}, but must be {_describe(spec)}: "
            f"axis {axis} is {shape[axis]} and must be {SUM.join(map(str, sizes))}"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Say what is known, the nearest name first: "the nearest is 'b' (known: a, b)"."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r} (known: {', '.join(known)})" if near else "there is none"


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(str(dim) for dim in spec.shape)}]"


def _refuse_names(arrays: Mapping[str, Any], known: Iterable[str]) -> NoReturn:
    for name in arrays:
        if name not in known:
            raise InputError(f"there is no input {name!r}; {nearest(name, known)}")
    missing = [name for name in known if name not in arrays]
    raise InputError(f"the input {missing[0]!r} is missing; the model takes {', '.join(known)}")


def _to_array(value: Any, spec: TensorSpec) -> Array:
    """Convert a list without loss, or a subclass of ndarray to itself; refuse anything else."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{spec.name} is a masked array, whose mask would be lost; pass {_describe(spec)} and no mask")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not isinstance(value, (list, tuple)):
        raise InputError(
            f"{spec.name} is a {type(value).__name__}, but must be a numpy array or a list, {_describe(spec)}"
        )
    try:
        raw = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{spec.name} is no rectangular list of numbers: {error}; pass {_describe(spec)}") from error
    target = np.dtype(spec.dtype)
    with np.errstate(all="ignore"):
        if raw.size == 0 and raw.dtype.kind in "iuf":
            return raw.astype(target)
        if raw.dtype == target:
            return raw.astype(target, copy=False)
        if raw.dtype.kind in "iu" and target.kind in "iuf":
            array = raw.astype(target)
            if all(a == b for a, b in zip(array.ravel().tolist(), raw.ravel().tolist(), strict=True)):
                return array
        if raw.dtype.kind == "f" and target.kind == "f":
            array = raw.astype(target)
            if np.array_equal(array, raw, equal_nan=True):
                return array
    raise InputError(
        f"{spec.name} is a list of {raw.dtype}, which {spec.dtype} cannot hold without loss; "
        f"convert it to a numpy array, {_describe(spec)}"
    )


def _refuse_dtype(array: Array, spec: TensorSpec) -> NoReturn:
    if array.dtype.newbyteorder("=") == np.dtype(spec.dtype):
        raise InputError(
            f"{spec.name} is {array.dtype} in the other byte order, which onnxruntime reads as garbage; "
            f'convert it with .astype("{spec.dtype}")'
        )
    raise InputError(f"{spec.name} is {array.dtype}, but must be {_describe(spec)}")


def _refuse_size(array: Array, spec: TensorSpec, axis: int, expected: int) -> NoReturn:
    why = "" if isinstance(spec.shape[axis], int) else f", as the {spec.shape[axis]} of what comes before it"
    raise InputError(
        f"{spec.name} has shape {array.shape}, but must be {_describe(spec)}: "
        f"axis {axis} is {array.shape[axis]} and must be {expected}{why}"
    )


def _refuse_values(array: Array, spec: TensorSpec) -> NoReturn:
    assert spec.below is not None
    position = np.argwhere((array < 0) | (array >= spec.below))[0].tolist()
    what = "ids" if spec.name.endswith("ids") else "values"
    raise InputError(f"{spec.name}{position} is {array[tuple(position)]}; {what} must be in [0, {spec.below})")
