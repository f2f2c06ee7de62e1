"""Attention maps of one sample input, eager above ONNX."""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError

from . import numbers, png

_MOST_TOKENS = 64
_MOST_LABELS = 32
_CELL = 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """What every head of one attention looks at.

    Attributes:
        op: The attention, as the certificate names it.
        tokens: Labels of the keys, the queries' too where S = T; may be empty.
        eager: The weights, float32 (N, S, T).
        onnx: The same, as the ONNX graph computes them.

    Raises:
        VerificationError: The two differ in shape, or are no maps.
    """

    op: str
    tokens: tuple[str, ...]
    eager: npt.NDArray[np.float32]
    onnx: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.eager.ndim != 3 or 0 in self.eager.shape or self.eager.shape != self.onnx.shape:
            raise VerificationError(
                f"{self.op}: attention maps of shapes {self.eager.shape} and {self.onnx.shape}, "
                "(heads, queries, keys) twice was expected"
            )
        if self.tokens and len(self.tokens) != self.eager.shape[2]:
            raise VerificationError(f"{self.op}: {len(self.tokens)} tokens label {self.eager.shape[2]} keys")

    @functools.cached_property
    def difference(self) -> npt.NDArray[np.float64]:
        """|eager - ONNX| (N, S, T); infinite where only one is NaN or infinite, 0 where both are the same of these."""
        eager, onnx = self.eager.astype(np.float64), self.onnx.astype(np.float64)
        # NaN is not equal to itself, and yet both may be NaN at one place.
        same = (eager == onnx) | (np.isnan(eager) & np.isnan(onnx))
        finite = np.isfinite(eager) & np.isfinite(onnx)
        # Zeros in the place of what is not finite: ∞ − ∞ would warn, and is replaced anyway.
        far = np.where(finite, np.abs(np.where(finite, eager, 0) - np.where(finite, onnx, 0)), np.inf)
        return np.where(same, 0.0, far)

    @property
    def max_abs(self) -> float:
        """The largest difference."""
        return float(self.difference.max())


@dataclasses.dataclass(frozen=True)
class Label:
    """A token beside a map: its text, short, and where it stands."""

    text: str
    at: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """One head: both maps as pictures."""

    head: int
    eager: str
    onnx: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One attention: every head small, and the one that differs most large.

    Attributes:
        difference: The largest difference.
        words: The largest difference in words.
        cut: What of the maps is shown, "" where all.
        width: Of a large map, in its own units.
        height: Likewise.
        margin: Room for the labels, on the left and above; on the right, half of it, as those above lean.
    """

    op: str
    difference: str
    words: str
    cut: str
    heads: tuple[Picture, ...]
    shape: tuple[int, int]
    large: Picture
    width: float
    height: float
    margin: float
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]


def panel(attention: AttentionMap) -> Panel:
    """Draw one attention's maps; of very long inputs the first tokens only, and it says so."""
    count, queries, keys = attention.eager.shape
    # (N, S, T): the head, query and key of the largest difference.
    head, query, key = (int(i) for i in np.unravel_index(int(attention.difference.argmax()), attention.eager.shape))
    worst = attention.max_abs
    if worst == 0:
        words = f"All {count} heads agree to the last bit."
    else:
        names = _name(attention, query, queries == keys), _name(attention, key, True)
        words = f"Largest difference {numbers.error(worst)}, in head {head + 1}, where {names[0]} looks at {names[1]}."
    s, t = min(queries, _MOST_TOKENS), min(keys, _MOST_TOKENS)
    cut = "" if (s, t) == (queries, keys) else f"Shown: the first {s} of {queries} queries and {t} of {keys} keys."
    heads = []
    for index in range(count):
        eager, onnx = attention.eager[index, :s, :t], attention.onnx[index, :s, :t]
        # Both pictures by eager's largest weight, so that equal weights look alike.
        largest = float(np.max(eager, where=np.isfinite(eager), initial=0.0))
        heads.append(Picture(index + 1, png.data_uri(eager, largest), png.data_uri(onnx, largest)))
    labels = tuple(_short(token) for token in attention.tokens[:t])
    labeled = bool(labels) and t <= _MOST_LABELS
    # A long text gets smaller cells, not a larger picture.
    cell = _CELL if t <= _MOST_LABELS else _CELL * _MOST_LABELS / t
    columns = tuple(Label(text, (i + 0.5) * cell) for i, text in enumerate(labels)) if labeled else ()
    return Panel(
        op=attention.op,
        difference=numbers.error(worst),
        words=words,
        cut=cut,
        heads=tuple(heads),
        shape=(s, t),
        large=heads[head],
        width=t * cell,
        height=s * cell,
        margin=6.0 * max(map(len, labels), default=0) + 6 if labeled else 0,
        # Tokens label the keys; the queries are the same ones only in self-attention.
        rows=columns if queries == keys else (),
        columns=columns,
    )


def _name(attention: AttentionMap, index: int, labeled: bool) -> str:
    return f"“{attention.tokens[index]}”" if attention.tokens and labeled else f"position {index + 1}"


def _short(token: str) -> str:
    return token if len(token) <= 10 else token[:9] + "…"
