"""Decoder bundles: they continue a sequence.

Shapes: B batch, S sequence, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from .checks import Array
from .generate import generate_greedily
from .model import Model


class Decoder(Model):
    """A bundle that continues a sequence."""

    def run(self, **arrays: Any) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            **arrays: input_ids, int64 (B, S), and the cache past_key_values.…, of past_sequence 0 at the start.

        Returns:
            logits, float32 (B, S, V), and the cache present.….

        Raises:
            InputError: An input that the graph must not see.
        """
        return self._sessions["model"].run(**arrays)

    @overload
    def generate(self, inputs: str | Sequence[str], max_new_tokens: int | None = None) -> list[str]: ...
    @overload
    def generate(self, inputs: Sequence[Sequence[int]], max_new_tokens: int | None = None) -> list[list[int]]: ...
    def generate(self, inputs: Any, max_new_tokens: int | None = None) -> list[str] | list[list[int]]:
        """Continue prompts greedily, one prompt at a time.

        Args:
            inputs: Texts, or rows of token ids; one str is as a list of one.
            max_new_tokens: At most so many new tokens; None: as the manifest says. The model's limit may come first.

        Returns:
            What follows each prompt, as texts where the inputs are: without the end token, and without the prompt.

        Raises:
            InputError: A prompt that the model must not see, or texts without a tokenizer.
            BundleError: The bundle does not say how to generate.
        """
        generation, most = self._generation(max_new_tokens)
        session = self._sessions["model"]
        rows, are_texts = self._to_rows(inputs, session.signature)
        prompts = [np.array([row], np.int64) for row in rows]
        generated = [generate_greedily(session, prompt_BS, {}, generation, most)[0] for prompt_BS in prompts]
        return self._tokenizer.decode(generated) if are_texts else generated
