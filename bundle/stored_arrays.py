"""Arrays that a bundle holds, as `numpy.savez` writes them."""

import io
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import BundleError

from .manifest import Manifest, read_proved

ARRAYS = "golden.npz"
_MOST = 1 << 30
"""Bytes of all arrays; goldens are a few samples of one model."""


def read_arrays(manifest: Manifest, name: str, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays in a bundle's .npz file.

    Args:
        manifest: The bundle's.
        name: The file, one of `manifest.files`.
        names: Of the arrays to read; None: all.

    Raises:
        BundleError: It is altered, is not what numpy.savez writes, or its arrays are too large.
    """
    path = manifest.folder / name
    # What is read is what was proved: the file is not opened by its path again.
    content = io.BytesIO(read_proved(manifest, name))
    try:
        with zipfile.ZipFile(content) as archive:
            # zipfile gives no more of an entry than it says here, so that the sum is a bound.
            size = sum(info.file_size for info in archive.infolist())
        if size > _MOST:  # a small file may unpack to far more than there is memory
            raise ValueError(f"its arrays have {size} bytes, more than {_MOST}")
        content.seek(0)
        with np.load(content, allow_pickle=False) as stored:
            return {key: stored[key] for key in (stored.files if names is None else names)}
    except Exception as error:  # those of numpy, zipfile and zlib share no narrower base
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from error
