"""What callers pass as an array: lists, tensors, subclasses of ndarray; turned into numpy arrays without loss."""

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tfm.bundle import TensorSpec, brief, kind_of
from tfm.errors import InputError

Array: TypeAlias = npt.NDArray[Any]

# dlpack.h, DLDeviceType: memory that the processor reads
_HOST = (1, 3, 11)
_DEVICES = {2: "a CUDA device", 4: "an OpenCL device", 7: "a Vulkan device", 8: "a Metal device", 10: "a ROCm device"}


def to_array(value: Any, spec: TensorSpec) -> Array:
    """Convert an input that is no plain numpy array.

    Args:
        value: A subclass of ndarray, or a tensor: anything with `__array__` or DLPack's `__dlpack__`, whose memory is
            shared where it allows that, and whose dtype stays; or a list or number, which becomes spec's dtype where
            that holds every value.
        spec: What the graph takes.

    Returns:
        A numpy array; of a list, in spec's dtype.
    """
    if isinstance(value, (list, tuple, int, float, np.number, np.bool_)):
        return _from_list(value, spec)
    return foreign_array(spec.name, value, describe(spec))


def foreign_array(name: str, value: Any, wanted: str) -> Array:
    """Convert a subclass of ndarray or a tensor, whose memory is shared where it allows that; its dtype stays.

    An error names it, and says what is wanted.
    """
    kind = type(value)
    if not hasattr(kind, "__array__") and not hasattr(kind, "__dlpack__"):
        raise InputError(f"{name} is {kind_of(value)}, but must be a numpy array or a list or a tensor, {wanted}")
    try:
        # Where it lies is asked before anything reads it; numpy would not say what to do about it.
        device = int(value.__dlpack_device__()[0]) if hasattr(kind, "__dlpack_device__") else _HOST[0]
        if device in _HOST:
            # Not asarray, which would drop a mask before anyone has seen it.
            array: Any = np.asanyarray(value) if hasattr(kind, "__array__") else np.from_dlpack(value)
    except Exception as error:  # of somebody else's code: any class
        raise InputError(
            f"{name} is {kind_of(value)} that does not become a numpy array: {error}; convert it to one, {wanted}"
        ) from error
    if device not in _HOST:
        where = _DEVICES.get(device, f"a device of DLPack's type {device}")
        raise InputError(
            f"{name} is {kind_of(value)} in the memory of {where}; copy it to the processor's first, as by .cpu()"
        )
    if is_masked(array):
        raise InputError(f"{name} is a masked array, whose mask would be lost; pass {wanted} and no mask")
    return np.asarray(array)


def look_through(value: Any, depth: int) -> bool:
    """Refuse lists that numpy would take for arrays, though they are none: one that contains itself takes it forever.

    Returns:
        Whether a bool is in it, which numpy takes for 0 or 1 where it is among numbers.
    """
    if not isinstance(value, (list, tuple)):
        return False
    if depth == 0:
        raise ValueError("it is nested too deeply")
    found = False
    for item in value:
        if is_masked(item):
            raise ValueError("a masked array is in it, whose mask would be lost")
        if isinstance(item, (list, tuple)):
            found |= look_through(item, depth - 1)
        elif isinstance(item, (bool, np.bool_)) or (isinstance(item, np.ndarray) and item.dtype.kind == "b"):
            found = True
    return found


def is_masked(value: Any) -> bool:
    """Tell numpy's masked arrays, without importing them: that takes 30 ms, and there is none where nobody did."""
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def describe(spec: TensorSpec) -> str:
    """Say what an input must be: "int64 [batch, sequence]"."""
    return f"{spec.dtype} [{', '.join(str(dim) for dim in spec.shape)}]"


def _from_list(value: Any, spec: TensorSpec) -> Array:
    try:
        # Before numpy sees it: a list that contains itself would keep numpy busy for ever.
        has_bool = look_through(value, len(spec.shape))
        raw = np.asarray(value)
        if has_bool and raw.dtype != bool:
            raise ValueError("it mixes bool with numbers")
    except Exception as error:  # the items may be somebody else's tensors: any class
        raise InputError(f"{spec.name} is no rectangular list of numbers: {error}; pass {describe(spec)}") from error
    found = _without_loss(raw, np.dtype(spec.dtype))
    if found is not None:
        return found
    what = (
        f"a list of {raw.dtype}"
        if isinstance(value, (list, tuple))
        else f"the {type(value).__name__} {brief(raw.item())}"
    )
    raise InputError(
        f"{spec.name} is {what}, which {spec.dtype} cannot hold without loss; "
        f"convert it to a numpy array, {describe(spec)}"
    )


def _without_loss(raw: Array, target: "np.dtype[Any]") -> Array | None:
    # Of an empty list numpy makes float64, whatever it was to hold.
    if raw.dtype == target or (raw.size == 0 and raw.dtype.kind in "iuf"):
        return raw.astype(target, copy=False)
    # A conversion that overflows is found by the comparisons below, and needs no warning.
    with np.errstate(all="ignore"):
        if raw.dtype.kind in "iu" and target.kind in "iuf":
            array = raw.astype(target)
            # Compared as Python's numbers, which is exact; numpy would make float64 of both first.
            return array if array.ravel().tolist() == raw.ravel().tolist() else None
        if raw.dtype.kind == "f" and target.kind == "f":
            array = raw.astype(target)
            return array if np.array_equal(array, raw, equal_nan=True) else None
    return None
