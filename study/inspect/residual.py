"""How large the residual stream is, and how much each sub-layer adds to it.

Shapes: S tokens, D model size.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SubLayer:
    """One residual connection on one text, float64.

    Attributes:
        path: The module whose result is added.
        norm_S: Euclidean length of what goes on, per token; behind the norm, where one follows on the sum.
        added_S: Length of what is added by the length of what it is added to, per token; infinite where that is 0.
    """

    path: str
    norm_S: npt.NDArray[np.float64]
    added_S: npt.NDArray[np.float64]


def lengths(x_SD: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Euclidean length of each token's state, (S, D) → float64 (S,).

    Raises:
        VerificationError: It is not (S, D), or not finite.
    """
    if x_SD.ndim != 2 or not np.isfinite(x_SD).all():
        raise VerificationError(f"the residual stream, of shape {x_SD.shape}, is not (tokens, size) or not finite")
    # In float64, as float16's squares overflow at 256.
    return np.sqrt((x_SD.astype(np.float64) ** 2).sum(axis=-1))


def measure_sublayer(
    path: str,
    before_SD: npt.NDArray[np.floating],
    added_SD: npt.NDArray[np.floating],
    after_SD: npt.NDArray[np.floating],
) -> SubLayer:
    """Measure one residual connection.

    Args:
        path: The module whose result is added.
        before_SD: The stream that it is added to.
        added_SD: What is added.
        after_SD: What goes on.

    Raises:
        VerificationError: A value is not (S, D), or not finite.
    """
    before_S, added_S = lengths(before_SD), lengths(added_SD)
    share_S = np.full_like(added_S, np.inf)
    # Infinite where there was nothing before, without a warning.
    np.divide(added_S, before_S, out=share_S, where=before_S > 0)
    return SubLayer(path=path, norm_S=lengths(after_SD), added_S=share_S)
