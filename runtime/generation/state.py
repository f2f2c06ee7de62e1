"""What a decoder has read: rows of tokens, kept as keys and values in a cache that grows in place.

Shapes: B rows, S new tokens, C length of the cache, K key/value heads, H head size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from ..batches import length_limit, pad_rows
from ..binding import Binding
from ..checks import Array
from ..control import Control
from ..manifest import Signature
from ..session import Session

_BLOCK = 32
"""A cache is made longer by so many tokens at a time, or by an eighth, so that it is rarely copied."""

_MOST_LOGITS = 1 << 24
"""So many logits one run may give: a graph gives them after every token, so that long prompts go in parts."""


class DecoderState:
    """Rows that a decoder continues.

    Attributes:
        length_B: How many tokens of each row have been read, int64.
    """

    def __init__(self, decoder: Session, rows: int, context: Mapping[str, Array] | None = None) -> None:
        """Begin with nothing read.

        Args:
            decoder: Takes input_ids, cache_position, the context and past_key_values.…; gives logits (B, S, V) and
                present.….
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
        self._reserve(int(self.length_B.max()) + longest)
        logits_BV = np.empty((batch, self._vocabulary), np.float32)
        part = max(1, _MOST_LOGITS // (batch * self._vocabulary))
        for start in range(0, longest, part):
            size = min(part, longest - start)
            step = _Step(ids_BS[:, start : start + size].copy(), self.length_B + start, self._vocabulary)
            self._bind(step).run(control)
            for b, row in enumerate(rows):
                if start < len(row) <= start + size:
                    logits_BV[b] = step.logits_BSV[b, len(row) - 1 - start]
        self.length_B += [len(row) for row in rows]
        return logits_BV

    def step(self, token_B: Array, control: Control | None = None) -> Array:
        """Read one new token of every row; where the model's limit is reached, in place of the last one.

        Args:
            token_B: Ids, int64.
            control: As for `read`.

        Returns:
            Logits of the token that follows each, (B, V); the next step writes over them.
        """
        self._reserve(int(self.length_B.max()) + 1)
        if self._step is None:
            batch = len(self.length_B)
            self._step = _Step(np.empty((batch, 1), np.int64), np.empty(batch, np.int64), self._vocabulary)
            self._binding = self._bind(self._step)
        self._step.ids_BS[:, 0] = token_B
        np.minimum(self.length_B, self._room - 1, out=self._step.place_B)
        self._binding.run(control)
        np.add(self._step.place_B, 1, out=self.length_B)
        return self._step.logits_BSV[:, 0]

    def reorder(self, parent_B: Array) -> None:
        """Let every row go on from a row of the same context, which may be another: indices (B,)."""
        moved = np.flatnonzero(parent_B != np.arange(len(parent_B)))
        if not len(moved):
            return
        used, source = int(self.length_B.max()), parent_B[moved]
        self.length_B = self.length_B[parent_B]
        arrays = self._arrays()
        for array in arrays.values():
            array[moved, :, :used] = array[source, :, :used]
        if self._decoder.provider != "cpu":
            self._keep(arrays)

    def select(self, rows: Array) -> None:
        """Go on with some of the rows, in an order, any of them more than once: indices (B',)."""
        self.length_B = self.length_B[rows]
        self._context = {name: array[rows] for name, array in self._context.items()}
        self._keep({name: array[rows] for name, array in self._arrays().items()})

    def _reserve(self, length: int) -> None:
        """Make room for so many tokens, or as many as the model can have."""
        if length <= self._room or self._room == self._most:
            return
        block = max(_BLOCK, length // 8)
        room = -(-length // block) * block
        room = room if self._most is None else min(room, self._most)
        used, old = int(self.length_B.max()), self._arrays()
        empty = empty_caches(self._decoder.signature, len(self.length_B), room)
        arrays = {name: array for name, array in empty.items() if name.startswith("past_key_values.")}
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
        self._step = None

    def _bind(self, step: "_Step") -> Binding:
        inputs = {"input_ids": step.ids_BS, "cache_position": step.place_B, **self._context, **self._values}
        presents = {name.replace("past_key_values.", "present."): value for name, value in self._values.items()}
        return Binding(self._decoder, inputs, {"logits": step.logits_BSV, **presents})


def empty_caches(signature: Signature, batch: int, length: int) -> dict[str, Array]:
    """Make what a decoder takes beside its ids where nothing has been read: by name, caches (B, K, C, H) and places.

    Args:
        signature: The decoder's.
        batch: B.
        length: C.
    """
    sizes = {"batch": batch, "cache_length": length}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in signature.inputs
        if sizes.keys() >= {dim for dim in spec.shape if isinstance(dim, str)}
    }


class _Step:
    """What changes from run to run: new ids, the place of the first in each row, and the logits after each."""

    def __init__(self, ids_BS: Array, place_B: Array, vocabulary: int) -> None:
        self.ids_BS, self.place_B = ids_BS, place_B
        self.logits_BSV = np.empty((*ids_BS.shape, vocabulary), np.float32)
