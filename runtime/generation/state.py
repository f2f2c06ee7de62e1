"""What a decoder has read: rows of tokens, kept as keys and values in a cache that grows in place.

Rows stand at the right: each has its padding, if any, before its first token, and none behind. So all go on at the same
place, and the logits of the next token are those after the last one.

Shapes: B rows, S new tokens, W of them whose logits are wanted, T all tokens, C length of the cache, K key/value heads,
H head size, V vocabulary.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from tfm.bundle import Signature

from ..control import Control
from ..inputs.batches import length_limit, pad_rows
from ..inputs.checks import BRANCH, KEEP, MASKS, POSITIONS, TOTAL, Array
from ..sessions.binding import Binding
from ..sessions.session import Session

_BLOCK = 32
"""A cache is made longer by so many tokens at a time, or by an eighth, so that it is rarely copied."""

_PART, _TOGETHER = 256, 1024
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
            decoder: Takes input_ids, perhaps a mask of all tokens and position_ids, the context and past_key_values.…;
                gives logits (B, S, V), of the last tokens if asked for fewer, and present.….
            rows: B.
            context: Inputs that stay the same at every step, each (B, …).
        """
        self._decoder, self._context = decoder, dict(context or {})
        signature = decoder.signature
        self._names = {spec.name for spec in signature.inputs}
        # A graph that fills its mask in takes none: the name is then no input's.
        self._mask_name = next(filter(self._names.__contains__, MASKS), MASKS[0])
        self._outputs = _outputs_beside(signature, self._context)
        self._vocabulary = int(next(spec.shape[-1] for spec in signature.outputs if spec.name == "logits"))
        self._most = length_limit(signature)
        # A graph that makes a longer cache each time has no room in it.
        self._in_place = any(TOTAL in spec.shape for spec in signature.inputs)
        self.length_B = np.zeros(rows, np.int64)
        self._used = self._room = 0
        self._values: dict[str, Any] = {}
        if not self._in_place:
            self._keep(_empty_caches(signature, rows, 0))
        self._step: _Step | None = None

    def read(self, rows: Sequence[Sequence[int]], control: Control | None = None) -> Array:
        """Read new tokens of every row.

        Args:
            rows: Ids, at least one in each.
            control: What may end it before its time; the state is then as it was before.

        Returns:
            Logits of the token that follows each row, (B, V).
        """
        batch, longest = len(rows), max(map(len, rows))
        if longest == 1 and (self._most is None or self.length_B.max() < self._most):
            # Bound once for all that follow.
            return self.step(np.array(rows)[:, 0], control).copy()
        if batch > 1 and (self._used or batch * longest > _TOGETHER):
            return self._read_one_by_one(rows, control)
        ids_BS, real_BS = pad_rows(rows, left=True)
        had, whole, part = self._used, self._used + longest, _PART if batch == 1 else longest
        try:
            for start in range(0, longest, part):
                end = start + part
                self._reserve(min(whole, _up(had + end, _PART)))
                logits_BV = self._run(ids_BS[:, start:end], real_BS[:, start:end], control)[:, 0]
        except BaseException:
            # What was written lies behind, and is written over by the next.
            self.rewind(had)
            raise
        return logits_BV

    def step(self, token_B: Array, control: Control | None = None) -> Array:
        """Read one new token of every row; where the model's limit is reached, at its last position.

        Args:
            token_B: Ids, int64.
            control: As for `read`.

        Returns:
            Logits of the token that follows each, (B, V); the next step writes over them.
        """
        self._reserve(self._used + 1)
        if self._step is None:
            self._step = _Step(np.empty((len(self.length_B), 1), np.int64), self._vocabulary)
            self._binding = self._bind(self._step) if self._in_place else None
        self._step.ids_BS[:, 0] = token_B
        self._place(self._step, np.ones((len(self.length_B), 1), np.int64))
        if self._binding is not None:
            self._binding.put(self._mask_name, self._step.mask_BT)
        self._execute(self._step, self._binding, control)
        self._used += 1
        self.length_B += 1
        if self._most is not None:
            np.minimum(self.length_B, self._most, out=self.length_B)
        return self._step.logits_BWV[:, 0]

    @property
    def room_ahead(self) -> int:
        """How many guesses `read_ahead` takes beside the next token; of several rows none."""
        if len(self.length_B) != 1:
            return 0
        return sys.maxsize if self._most is None else max(0, self._most - int(self.length_B[0]) - 1)

    def read_ahead(self, ids: Sequence[int], control: Control | None = None) -> Array:
        """Read the next token of the only row, and guesses of what follows; `rewind` forgets those that are wrong.

        Args:
            ids: At most 1 + `room_ahead`.
            control: As for `read`.

        Returns:
            Logits of the token that follows each, (S, V).
        """
        had, ids_1S = self._used, np.array([ids], np.int64)
        self._reserve(had + len(ids))
        try:
            return self._run(ids_1S, np.ones_like(ids_1S), control, wanted=len(ids))[0]
        except BaseException:
            self.rewind(had)
            raise

    def rewind(self, length: int) -> None:
        """Forget all but the first places, so many, of every row; what lies behind is unseen until it is written over.

        Of one row places are tokens.
        """
        forgotten = self._used - length
        if forgotten > 0:
            self._used = length
            np.maximum(self.length_B - forgotten, 0, out=self.length_B)
            if not self._in_place:
                self._keep({name: array[:, :, :length] for name, array in self._arrays().items()})

    def reorder(self, parent_B: Array) -> None:
        """Let every row go on from a row of the same context, which may be another: indices (B,)."""
        # Beams mostly go on from themselves: only what moves is copied, and only as far as it is filled.
        moved = np.flatnonzero(parent_B != np.arange(len(parent_B)))
        if not len(moved):
            return
        source = parent_B[moved]
        self.length_B = self.length_B[parent_B]
        arrays = self._arrays()
        for array in arrays.values():
            # numpy copies the right side first, so that rows may change places.
            array[moved, :, : self._used] = array[source, :, : self._used]
        # There `_arrays` gave copies, which go back to the device.
        if self._decoder.provider != "cpu":
            self._keep(arrays)

    def select(self, rows: Array) -> None:
        """Go on with some of the rows, in an order, any of them more than once: indices (B',)."""
        self.length_B = self.length_B[rows]
        self._context = {name: array[rows] for name, array in self._context.items()}
        # Padding that all have left is padding no more.
        padding = self._used - int(self.length_B.max(initial=0))
        self._used -= padding
        self._room = max(self._room - padding, 0)
        self._keep({name: array[rows, :, padding:] for name, array in self._arrays().items()})

    def _read_one_by_one(self, rows: Sequence[Sequence[int]], control: Control | None) -> Array:
        """Read each row alone, and put them side by side again: long ones gain nothing from company.

        Nor does the graph take several rows that go on by several tokens.
        """
        states: list[DecoderState] = []
        found = []
        for row, ids in enumerate(rows):
            alone = DecoderState(self._decoder, 1, {name: x[row : row + 1] for name, x in self._context.items()})
            length = int(self.length_B[row])
            if length:
                place = self._used - length
                alone._take({name: x[row : row + 1, :, place : self._used] for name, x in self._arrays().items()})
            found.append(alone.read([ids], control))
            states.append(alone)
        self._take_rows(states)
        return np.concatenate(found)

    def join(self, others: Sequence["DecoderState"]) -> None:
        """Let the rows of other states of this decoder go on beside these, behind them; those states are used up.

        A decoder alone: what has a context is of one source.
        """
        mine = [self] if len(self.length_B) else []
        if mine or others:
            self._take_rows([*mine, *others])

    def _take_rows(self, states: Sequence["DecoderState"]) -> None:
        """Put rows of several states side by side, all of them at the right."""
        # Each row ends at the same place: what a longer one has more is padding before a shorter one.
        used = int(max(state.length_B.max() for state in states))
        lengths = np.concatenate([state.length_B for state in states])
        arrays, row = _empty_caches(self._decoder.signature, len(lengths), used), 0
        for state in states:
            # Padding that all have is none.
            count, kept = len(state.length_B), min(state._used, used)
            for name, array in state._arrays().items():
                arrays[name][row : row + count, :, used - kept :] = array[:, :, state._used - kept : state._used]
            row += count
        self.length_B, self._used, self._room = lengths, used, used
        self._keep(arrays)

    def _take(self, arrays: Mapping[str, Array]) -> None:
        """Go on from caches of rows without padding."""
        self._used = self._room = next(iter(arrays.values())).shape[2]
        self.length_B[:] = self._used
        self._keep(arrays)

    def _run(self, ids_BS: Array, real_BS: Array, control: Control | None, wanted: int = 1) -> Array:
        """Read some tokens of every row at once: logits after the last ones, (B, W, V)."""
        step = _Step(ids_BS.copy(), self._vocabulary, wanted)
        self._place(step, real_BS)
        self._execute(step, self._bind(step) if self._in_place else None, control)
        self._used += ids_BS.shape[1]
        self.length_B += real_BS.sum(1)
        return step.logits_BWV

    def _place(self, step: "_Step", real_BS: Array) -> None:
        """Tell new tokens their positions, and which of all tokens are real."""
        total = self._used + real_BS.shape[1]
        length_B1 = self.length_B[:, None]
        step.mask_BT = np.ones((len(real_BS), total), np.int64)
        # Of rows that have begun all that is before them; of others what is said here.
        step.mask_BT[:, : self._used] = np.arange(self._used) >= self._used - length_B1
        step.mask_BT[:, self._used :] = real_BS
        place_BS = np.maximum(length_B1 + real_BS.cumsum(1) - 1, 0)
        np.minimum(place_BS, self._most - 1 if self._most else place_BS, out=step.place_BS)

    def _execute(self, step: "_Step", binding: Binding | None, control: Control | None) -> None:
        if binding is not None:
            binding.run(control)
            return
        feeds = {**self._inputs_of(step), **self._context, **self._arrays()}
        found = self._decoder.run(feeds, outputs=self._outputs, control=control)
        step.logits_BWV[:] = found.pop("logits")
        self._keep({name.replace("present.", "past_key_values."): array for name, array in found.items()}, step)

    def _reserve(self, length: int) -> None:
        """Make room for so many tokens; keep those used so far."""
        if length <= self._room or not self._in_place:
            return
        room = _up(length, max(_BLOCK, length // 8))
        # One row never has more; of several the padding comes on top.
        if self._most is not None and length <= self._most:
            room = min(room, self._most)
        old = self._arrays()
        arrays = _empty_caches(self._decoder.signature, len(self.length_B), room)
        # (B, K, C, H): what is used of the old one is its beginning, along C.
        for name, array in old.items():
            arrays[name][:, :, : self._used] = array[:, :, : self._used]
        self._room = room
        self._keep(arrays)

    def _arrays(self) -> dict[str, Array]:
        """The caches as arrays: where the graph runs on the CPU, they are its own memory."""
        return {name: value.numpy() for name, value in self._values.items()}

    def _keep(self, arrays: Mapping[str, Array], step: "_Step | None" = None) -> None:
        """Take arrays as the caches; what was bound to those that were must not write into them any more."""
        device = self._decoder.provider
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
            for name, array in arrays.items()
        }
        self._step = step if step is None or step.ids_BS.shape[1] == 1 else None

    def _inputs_of(self, step: "_Step") -> dict[str, Array]:
        known = {"input_ids": step.ids_BS, self._mask_name: step.mask_BT, POSITIONS: step.place_BS}
        known |= {KEEP: step.wanted, BRANCH: _TRUE}
        return {name: array for name, array in known.items() if name in self._names}

    def _bind(self, step: "_Step") -> Binding:
        # Past and present are one piece of memory: the graph writes new tokens in place.
        presents = {name.replace("past_key_values.", "present."): value for name, value in self._values.items()}
        inputs = {**self._inputs_of(step), **self._context, **self._values}
        return Binding(self._decoder, inputs, {"logits": step.logits_BWV, **presents})


def from_nothing(signature: Signature, batch: int, length: int) -> dict[str, Array]:
    """Make what a decoder takes beside its ids to give all logits of rows of which nothing has been read.

    Args:
        signature: The decoder's.
        batch: B.
        length: S.

    Returns:
        By input name: caches (B, K, 0, H), the mask of all tokens, (B, S), and their positions, (B, S); of a graph that
        chooses, that keys and values of the source are given.
    """
    names = {spec.name for spec in signature.inputs}
    feeds = {name: np.ones((batch, length), np.int64) for name in MASKS if name in names}
    if POSITIONS in names:
        feeds[POSITIONS] = np.tile(np.arange(length, dtype=np.int64), (batch, 1))
    if BRANCH in names:
        feeds[BRANCH] = _TRUE
    return {**feeds, **_empty_caches(signature, batch, 0)}


def _outputs_beside(signature: Signature, context: Mapping[str, Any]) -> list[str]:
    """List what a decoder gives, but what it is given again at each step and would only give back."""
    given = {name.replace("past_key_values.", "present.") for name in context}
    return [spec.name for spec in signature.outputs if spec.name not in given]


def _empty_caches(signature: Signature, batch: int, length: int) -> dict[str, Array]:
    """Make a decoder's own caches, by name (B, K, C, H)."""
    sizes = {"batch": batch, "past_sequence": length}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in signature.inputs
        if "past_sequence" in spec.shape
    }


def _up(length: int, block: int) -> int:
    """Round a length up to whole blocks."""
    return -(-length // block) * block


_TRUE = np.array([True])
"""That keys and values of the source are given, from the first step on."""


class _Step:
    """What changes from run to run: new ids, their positions, what of all is real, and the logits that are wanted."""

    def __init__(self, ids_BS: Array, vocabulary: int, wanted: int = 1) -> None:
        self.ids_BS, self.place_BS = ids_BS, np.zeros_like(ids_BS)
        self.mask_BT = np.ones((len(ids_BS), 1), np.int64)
        self.wanted = np.array(wanted, np.int64)
        self.logits_BWV = np.empty((len(ids_BS), wanted, vocabulary), np.float32)
