"""Encoder-decoder bundles: they turn one sequence into another.

Shapes: B batch, T source sequence, S target sequence, D model size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tfm.bundle import Signature
from tfm.errors import InputError

from .control import CancelToken, Control
from .generation.defaults import Limit
from .generation.generator import Generator
from .generation.loop import Begun
from .generation.state import DecoderState, from_nothing
from .inputs.batches import length_limit, pad_rows
from .inputs.checks import HIDDEN, Array, InputChecks
from .model import as_list
from .open_bundle import OpenBundle
from .sessions.session import Session


class EncoderDecoder(Generator):
    """A bundle that turns one sequence into another."""

    def __init__(self, opened: OpenBundle) -> None:
        super().__init__(opened)
        signature = opened.manifest.signature
        # Both graphs' ids are checked as the inputs of one, so that batches of different sizes are
        # refused before the encoder has run.
        ids = _signature_of_ids(signature["encoder"], signature["decoder"])
        self._check_ids = InputChecks(ids, empty_batch=True)

    _batch_size = 64

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the methods that take texts, what the bundle is for first."""
        return ("generate", "translate")

    def run(  # type: ignore[override]  # two graphs, of which this is neither's
        self,
        input_ids: Any,
        decoder_input_ids: Any,
        attention_mask: Any = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run the encoder, then the decoder from an empty cache (teacher forcing).

        Args:
            input_ids: Source ids, int64 (B, T).
            decoder_input_ids: Target ids, int64 (B, S).
            attention_mask: Which source ids are real, int64 (B, T) of 0 and 1; None: all.
            cancel: Ends the run from elsewhere.
            timeout: Seconds after which the run ends.

        Returns:
            logits, float32 (B, S, V), and last_hidden_state of the encoder, float32 (B, T, D).

        Raises:
            InputError: An input that the graphs must not see.
        """
        ids = self._check_ids({"input_ids": input_ids, "decoder_input_ids": decoder_input_ids})
        ids_BT, target_BS = ids["input_ids"], ids["decoder_input_ids"]
        if attention_mask is None:
            attention_mask = np.ones_like(ids_BT)
        encoder, decoder = self._sessions["encoder"], self._sessions["decoder"]
        mask_BT = encoder.check({"input_ids": ids_BT, "attention_mask": attention_mask})["attention_mask"]
        control = Control(cancel, timeout)
        hidden_BTD, context = self._encode(ids_BT, mask_BT, control)
        feeds = {"input_ids": target_BS, **from_nothing(decoder.signature, *target_BS.shape), **context}
        logits = decoder.run(feeds, outputs="logits", control=control)
        return {**logits, "last_hidden_state": hidden_BTD}

    def translate(self, texts: str | Sequence[str], max_new_tokens: int | None = None, **options: Any) -> list[Any]:
        """Do what `generate` does, for texts alone.

        Args:
            texts: What to translate; one str is as a list of one.
            max_new_tokens: As for `generate`.
            **options: As for `generate`: batch_size, progress, cancel, timeout, and the settings.

        Returns:
            For each text what it becomes; with num_return_sequences > 1, a list of so many.

        Raises:
            InputError: As for `generate`; or there is something else than a text.
        """
        items = as_list(texts)
        for place, item in enumerate(items):
            if not isinstance(item, str):
                raise InputError(
                    f"texts[{place}] must be a str, but is a {type(item).__name__}; generate() takes token ids too"
                )
        return self.generate(items, max_new_tokens, **options)

    @property
    def _decoder(self) -> Session:
        return self._sessions["decoder"]

    @property
    def _reads(self) -> Signature:
        return self._sessions["encoder"].signature

    def _begin(self, rows: list[list[int]], limit: Limit, control: Control) -> Begun:
        generation, _ = self._generation(None)
        _, context = self._encode(*pad_rows(rows, generation.pad_token_id or 0), control)
        state = DecoderState(self._decoder, len(rows), context)
        # A manifest of this kind must name a start token; `or 0` is for the type checker.
        start = [[generation.bos_token_id or 0] for _ in rows]
        limits = self._limits([1] * len(rows), limit)
        return Begun(state=state, logits_BV=state.read(start, control), tokens=start, limits=limits)

    def _encode(self, ids_BT: Array, mask_BT: Array, control: Control) -> tuple[Array, dict[str, Array]]:
        """Run the encoder; return its last_hidden_state, and what the decoder needs of the source."""
        found = self._sessions["encoder"].run(input_ids=ids_BT, attention_mask=mask_BT, control=control)
        hidden_BTD = found.pop("last_hidden_state")
        # What is left are the cross-attention's keys and values: computed once per source here, and
        # read by the decoder, in every step, under the names of its inputs.
        context = {name.replace("present.", "past_key_values."): array for name, array in found.items()}
        # The decoder of a pack for other readers takes it, and looks at it only where keys and values are not given.
        if any(spec.name == HIDDEN for spec in self._decoder.signature.inputs):
            context[HIDDEN] = hidden_BTD
        return hidden_BTD, {"encoder_attention_mask": mask_BT, **context}


def _signature_of_ids(encoder: Signature, decoder: Signature) -> Signature:
    """Describe both graphs' input_ids as the inputs of one."""
    source = next(spec for spec in encoder.inputs if spec.name == "input_ids")
    target = next(spec for spec in decoder.inputs if spec.name == "input_ids")
    target = replace(target, name="decoder_input_ids", shape=("batch", "decoder_sequence"))
    limits = {"sequence": length_limit(encoder), "decoder_sequence": length_limit(decoder)}
    max_length = {name: most for name, most in limits.items() if most is not None}
    return Signature(inputs=(source, target), outputs=(), max_length=max_length)
