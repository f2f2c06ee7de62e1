"""Give back the memory of a mapped file's pages: what was copied from them is not needed twice."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.overrides import TorchFunctionMode

from .files import sniff

_DONTNEED = 4
"""Linux's MADV_DONTNEED: drop the pages; those of a file come back, as the file has them, when they are touched."""

_COPYING = ("__getitem__", "any", "cat", "clone", "contiguous", "equal", "flatten", "reshape", "stack")
"""Functions that read weights."""


class GivingBack(TorchFunctionMode):
    """While this is entered, give back the pages of weights that were mapped since, whenever torch has read some.

    Packing projections copies most of a large checkpoint; without this, the copies and the pages they were read from
    would both stay in memory until the last weight is packed. Meanwhile nothing may be written into mapped weights: it
    would be lost. Files that were mapped before, by a model that may have been trained since, are left alone. On other
    systems than Linux this does nothing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        found = [folder / "any", *folder.iterdir()]  # a cache has links; realpath, unlike resolve, bears one to itself
        self.folders = {Path(os.path.realpath(path)).parent for path in found}
        self.earlier = list(self._mapped())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _COPYING:
            self.give_back()
        return result

    def give_back(self) -> None:
        """Give back all pages at once."""
        # Read anew each time: weights are mapped all along, file after file.
        for start, end in self._mapped():
            if not any(start < last and first < end for first, last in self.earlier):
                madvise = ctypes.CDLL(None).madvise
                madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
                madvise(start, end - start, _DONTNEED)

    def _mapped(self) -> Iterator[tuple[int, int]]:
        """Addresses at which files of weights in the folder are mapped."""
        if sys.platform != "linux":
            return
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            path = Path(fields[5]) if len(fields) == 6 else None
            if path is None or path.parent not in self.folders or not path.is_file():
                continue
            if sniff(path) in ("zip", "safetensors", "gguf"):
                start, end = fields[0].split("-")
                yield int(start, 16), int(end, 16)
