"""What a decoder has read: rows of tokens, kept as keys and values in a cache that grows in place.

Shapes: B rows, S new tokens, P positions with logits, C length of the cache, K key/value heads, H head size, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from tfm.bundle import Signature

from ..control import Control
from ..inputs.batches import length_limit, pad_rows
from ..inputs.checks import Array
from ..sessions.binding import Binding
from ..sessions.session import Session

_BLOCK = 32
"""A cache is made longer by so many tokens at a time, or by an eighth, so that it is rarely copied."""

_PART, _ROWS = 256, 1024
"""So many tokens of a row, and so many of all rows, one run reads: in parts, attention looks at no more of the cache
than is filled by then. SmolLM2 in int8 reads 1,024 tokens in 1.60 s on one thread, rather than in 1.79 s at once."""


class DecoderState:
    """Rows that a decoder continues.

    Attributes:
        length_B: How many tokens of each row have been read, int64.
    """

    def __init__(self, decoder: Session, rows: int, context: Mapping[str, Array] | None = None) -> None:
        """Begin with nothing read.

        Args:
            decoder: Takes input_ids, cache_position, logits_position, the context and past_key_values.…; gives logits
                (B, P, V) and present.….
            rows: B.
            context: Inputs that stay the same at every step, each (B, …).
        """
        self._decoder, self._context = decoder, dict(context or {})
        self._vocabulary = int(next(spec.shape[-1] for spec in decoder.signature.outputs if spec.name == "logits"))
        self._most = length_limit(decoder.signature)
        self.length_B = np.zeros(rows, np.int64)
        self._room = 0
        self._values: dict[str, Any] = {}
        self._step: _Step | None = None

    def read(self, rows: Sequence[Sequence[int]], control: Control | None = None) -> Array:
        """Read new tokens of every row.

        Args:
            rows: Ids, at least one in each; where rows of different length follow on what was read before, the longest
                must fit in after the longest.
            control: What may end it before its time; the state is then as it was before.

        Returns:
            Logits of the token that follows each row, (B, V).
        """
        ids_BS, _ = pad_rows(rows)  # the keys of padding are written over before they are seen
        batch, longest = ids_BS.shape
        if longest == 1 and (self._most is None or self.length_B.max() < self._most):  # bound once for all that follow
            return self.step(ids_BS[:, 0], control).copy()
        logits_BV = np.empty((batch, self._vocabulary), np.float32)
        length_B = np.array([len(row) for row in rows])
        part = max(1, min(_PART, _ROWS // batch))
        had, whole = int(self.length_B.max()), int(self.length_B.max()) + longest
        for start in range(0, longest, part):
            self._reserve(min(whole, _up(had + start + part, _PART)), had + start)
            step = _Step(ids_BS[:, start : start + part].copy(), self.length_B + start, self._vocabulary)
            # Where in this part each row's last token is; below 0 or beyond it where it is in another.
            last_B = length_B - 1 - start
            # Every row must name some token of this part. The logits of rows that end elsewhere are
            # not read.
            np.clip(last_B, 0, step.ids_BS.shape[1] - 1, out=step.wanted_B1[:, 0])
            self._bind(step).run(control)
            here_B = last_B == step.wanted_B1[:, 0]
            logits_BV[here_B] = step.logits_B1V[here_B, 0]
        # Only when all is read: a run that was ended leaves the state as it was. What it wrote lies
        # behind these lengths, and is written over by the next.
        self.length_B += length_B
        return logits_BV

    def step(self, token_B: Array, control: Control | None = None) -> Array:
        """Read one new token of every row; where the model's limit is reached, in place of the last one.

        Args:
            token_B: Ids, int64.
            control: As for `read`.

        Returns:
            Logits of the token that follows each, (B, V); the next step writes over them.
        """
        used = int(self.length_B.max())
        self._reserve(used + 1, used)
        if self._step is None:
            batch = len(self.length_B)
            self._step = _Step(np.empty((batch, 1), np.int64), np.empty(batch, np.int64), self._vocabulary)
            self._binding = self._bind(self._step)
        self._step.ids_BS[:, 0] = token_B
        # A row at the limit writes into its last place, so that the others can go on.
        np.minimum(self.length_B, self._room - 1, out=self._step.place_B)
        self._binding.run(control)
        np.add(self._step.place_B, 1, out=self.length_B)
        return self._step.logits_B1V[:, 0]

    def reorder(self, parent_B: Array) -> None:
        """Let every row go on from a row of the same context, which may be another: indices (B,)."""
        # Beams mostly go on from themselves: only what moves is copied, and only as far as it is filled.
        moved = np.flatnonzero(parent_B != np.arange(len(parent_B)))
        if not len(moved):
            return
        used, source = int(self.length_B.max()), parent_B[moved]
        self.length_B = self.length_B[parent_B]
        arrays = self._arrays()
        for array in arrays.values():
            # numpy copies the right side first, so that rows may change places.
            array[moved, :, :used] = array[source, :, :used]
        # There `_arrays` gave copies, which go back to the device.
        if self._decoder.provider != "cpu":
            self._keep(arrays)

    def select(self, rows: Array) -> None:
        """Go on with some of the rows, in an order, any of them more than once: indices (B',)."""
        self.length_B = self.length_B[rows]
        self._context = {name: array[rows] for name, array in self._context.items()}
        self._keep({name: array[rows] for name, array in self._arrays().items()})

    def _reserve(self, length: int, used: int) -> None:
        """Make room for so many tokens, or as many as the model can have; keep those used so far."""
        if length <= self._room or self._room == self._most:
            return
        room = _up(length, max(_BLOCK, length // 8))
        room = room if self._most is None else min(room, self._most)
        old = self._arrays()
        arrays = _empty_caches(self._decoder.signature, len(self.length_B), room)
        # (B, K, C, H): what is used of the old one is its beginning, along C.
        for name, array in old.items():
            arrays[name][:, :, :used] = array[:, :, :used]
        self._room = room
        self._keep(arrays)

    def _arrays(self) -> dict[str, Array]:
        """The caches as arrays: where the graph runs on the CPU, they are its own memory."""
        return {name: value.numpy() for name, value in self._values.items()}

    def _keep(self, arrays: Mapping[str, Array]) -> None:
        """Take arrays as the caches."""
        device = self._decoder.provider
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in arrays.items()
        }
        # It is bound to the caches that were, and must not write into them any more.
        self._step = None

    def _bind(self, step: "_Step") -> Binding:
        new = {"input_ids": step.ids_BS, "cache_position": step.place_B, "logits_position": step.wanted_B1}
        # Past and present are one piece of memory: the graph writes new tokens in place.
        presents = {name.replace("past_key_values.", "present."): value for name, value in self._values.items()}
        inputs = {**new, **self._context, **self._values}
        return Binding(self._decoder, inputs, {"logits": step.logits_B1V, **presents})


def from_nothing(signature: Signature, batch: int, length: int) -> dict[str, Array]:
    """Make what a decoder takes beside its ids to give all logits of rows of which nothing has been read.

    Args:
        signature: The decoder's.
        batch: B.
        length: S; the caches have room for just so many.

    Returns:
        By input name: caches (B, K, S, H), places (B,), and every position, (B, S).
    """
    return {
        "cache_position": np.zeros(batch, np.int64),
        "logits_position": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
        **_empty_caches(signature, batch, length),
    }


def _empty_caches(signature: Signature, batch: int, length: int) -> dict[str, Array]:
    """Make a decoder's own caches, by name (B, K, C, H)."""
    sizes = {"batch": batch, "cache_length": length}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in signature.inputs
        if "cache_length" in spec.shape
    }


def _up(length: int, block: int) -> int:
    """Round a length up to whole blocks."""
    return -(-length // block) * block


class _Step:
    """What changes from run to run: new ids, the place of the first in each row, and the logits after one of them."""

    def __init__(self, ids_BS: Array, place_B: Array, vocabulary: int) -> None:
        self.ids_BS, self.place_B = ids_BS, place_B
        self.wanted_B1 = np.zeros((len(ids_BS), 1), np.int64)
        self.logits_B1V = np.empty((len(ids_BS), 1, vocabulary), np.float32)
