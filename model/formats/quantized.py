"""Weights that are stored in fewer bits by a library of its own, which are told by their names."""

from collections.abc import Iterable
from pathlib import Path

from tfm.errors import CheckpointError

from ..fields import shown

_METHODS = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "fp8",
    "absmax": "bitsandbytes (4 bits)",
    "SCB": "bitsandbytes (8 bits)",
    "B_q": "Marlin",
}
"""The last part of a name → whose it is."""


def refuse_quantized(file: Path, names: Iterable[object]) -> None:
    """Refuse weights that are quantized already.

    Raises:
        CheckpointError: They are; it says by what, and which checkpoint to export in their place.
    """
    for name in names:
        last = name.rpartition(".")[2] if isinstance(name, str) else ""
        if method := _METHODS.get(last):
            raise CheckpointError(
                f"{file} is quantized by {method}: it holds {shown(name)} in place of a weight. Export the checkpoint "
                "that it was made of, with --precision int8 or int4; or load it by transformers where that library is "
                "installed, and save model.dequantize()"
            )
