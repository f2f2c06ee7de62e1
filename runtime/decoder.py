"""Decoder bundles: they continue a sequence.

Shapes: B batch, S new tokens, P past tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, overload

from .batches import batches, check_count
from .checks import Array
from .generate import generate_greedily
from .model import Model


class Decoder(Model):
    """A bundle that continues a sequence."""

    def run(self, **arrays: Any) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            **arrays: input_ids, int64 (B, S); attention_mask, which of the past and new tokens are real, int64
                (B, P + S) of 0 and 1; position_ids of the new tokens in their rows, int64 (B, S); and the cache
                past_key_values.…, of P = 0 at the start.

        Returns:
            logits, float32 (B, S, V), and the cache present.….

        Raises:
            InputError: An input that the graph must not see.
        """
        return self._sessions["model"].run(**arrays)

    @overload
    def generate(
        self, inputs: str | Sequence[str], max_new_tokens: int | None = None, batch_size: int = 16
    ) -> list[str]: ...
    @overload
    def generate(
        self, inputs: Sequence[Sequence[int]], max_new_tokens: int | None = None, batch_size: int = 16
    ) -> list[list[int]]: ...
    def generate(
        self, inputs: Any, max_new_tokens: int | None = None, batch_size: int = 16
    ) -> list[str] | list[list[int]]:
        """Continue prompts greedily.

        Args:
            inputs: Texts, or rows of token ids; one str is as a list of one.
            max_new_tokens: At most so many new tokens; None: as the manifest says. The model's limit may come first.
            batch_size: How many prompts go into the graph at once, padded on the left, at least 1.

        Returns:
            What follows each prompt, as texts where the inputs are: without the end token, and without the prompt.

        Raises:
            InputError: A prompt that the model must not see, or texts without a tokenizer.
            BundleError: The bundle does not say how to generate.
        """
        generation, most = self._generation(max_new_tokens)
        batch_size = check_count("batch_size", batch_size)
        session = self._sessions["model"]
        rows, are_texts = self._to_rows(inputs, session.signature)
        generated: list[list[int]] = [[] for _ in rows]
        for places, ids_BS, mask_BS in batches(rows, batch_size, generation.pad_token_id or 0, left=True):
            continued = generate_greedily(session, ids_BS, {}, generation, most, mask_BS)
            for place, row in zip(places, continued, strict=True):
                generated[place] = row
        return self._tokenizer.decode(generated) if are_texts else generated
