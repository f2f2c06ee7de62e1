"""Encoder-decoder bundles: they turn one sequence into another.

Shapes: B batch, T source sequence, S target sequence, D model size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from .batches import batches, check_count, length_limit
from .checks import Array, InputChecks
from .generate import empty_caches, generate_greedily
from .manifest import Manifest, Signature
from .model import Model
from .session import Session


class EncoderDecoder(Model):
    """A bundle that turns one sequence into another."""

    def __init__(self, manifest: Manifest, precision: str, sessions: dict[str, Session]) -> None:
        super().__init__(manifest, precision, sessions)
        self._check_ids = InputChecks(_signature_of_ids(manifest.signature["encoder"], manifest.signature["decoder"]))

    def run(self, input_ids: Any, decoder_input_ids: Any, attention_mask: Any = None) -> dict[str, Array]:
        """Run the encoder, then the decoder from an empty cache (teacher forcing).

        Args:
            input_ids: Source ids, int64 (B, T).
            decoder_input_ids: Target ids, int64 (B, S).
            attention_mask: Which source ids are real, int64 (B, T) of 0 and 1; None: all.

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
        hidden, context = self._encode(ids_BT, mask_BT)
        feeds = {"input_ids": target_BS, **context}
        logits = decoder.run_bound({**feeds, **empty_caches(decoder, feeds)}, ["logits"])[0]
        return {"logits": logits.numpy(), "last_hidden_state": hidden.numpy()}

    @overload
    def generate(
        self, inputs: str | Sequence[str], max_new_tokens: int | None = None, batch_size: int = 64
    ) -> list[str]: ...
    @overload
    def generate(
        self, inputs: Sequence[Sequence[int]], max_new_tokens: int | None = None, batch_size: int = 64
    ) -> list[list[int]]: ...
    def generate(
        self, inputs: Any, max_new_tokens: int | None = None, batch_size: int = 64
    ) -> list[str] | list[list[int]]:
        """Turn sources into targets greedily.

        Args:
            inputs: Texts, or rows of token ids; one str is as a list of one.
            max_new_tokens: At most so many new tokens; None: as the manifest says. The model's limit may come first.
            batch_size: How many sources go into the graphs at once, at least 1.

        Returns:
            Each source's target, as texts where the inputs are: without the start and end tokens.

        Raises:
            InputError: A source that the model must not see, or texts without a tokenizer.
            BundleError: The bundle does not say how to generate.
        """
        generation, most = self._generation(max_new_tokens)
        batch_size = check_count("batch_size", batch_size)
        rows, are_texts = self._to_rows(inputs, self._sessions["encoder"].signature)
        generated: list[list[int]] = [[] for _ in rows]
        for places, ids_BT, mask_BT in batches(rows, batch_size, generation.pad_token_id or 0):
            _, context = self._encode(ids_BT, mask_BT)
            start_B1 = np.full((len(places), 1), generation.bos_token_id, np.int64)
            targets = generate_greedily(self._sessions["decoder"], start_B1, context, generation, most)
            for place, target in zip(places, targets, strict=True):
                generated[place] = target
        return self._tokenizer.decode(generated) if are_texts else generated

    def _encode(self, ids_BT: Array, mask_BT: Array) -> tuple[Any, dict[str, Any]]:
        """Run the encoder; return its last_hidden_state, and what the decoder needs of the source."""
        encoder = self._sessions["encoder"]
        caches = [spec.name for spec in encoder.signature.outputs if spec.name.startswith("present.")]
        feeds = {"input_ids": ids_BT, "attention_mask": mask_BT}
        hidden, *presents = encoder.run_bound(feeds, ["last_hidden_state", *caches])
        context = {
            name.replace("present.", "past_key_values."): value for name, value in zip(caches, presents, strict=True)
        }
        return hidden, {"encoder_attention_mask": mask_BT, **context}


def _signature_of_ids(encoder: Signature, decoder: Signature) -> Signature:
    """Describe both graphs' input_ids as the inputs of one."""
    source = next(spec for spec in encoder.inputs if spec.name == "input_ids")
    target = next(spec for spec in decoder.inputs if spec.name == "input_ids")
    target = replace(target, name="decoder_input_ids", shape=("batch", "decoder_sequence"))
    limits = {"sequence": length_limit(encoder), "decoder_sequence": length_limit(decoder)}
    max_length = {name: most for name, most in limits.items() if most is not None}
    return Signature(inputs=(source, target), outputs=(), max_length=max_length)
