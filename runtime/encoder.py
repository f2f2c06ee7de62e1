"""Encoder bundles: token states and sentence embeddings.

Shapes: B batch, S sequence, D model size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError

from .batches import batches, check_count, check_rows, length_limit
from .checks import Array
from .model import Model, as_list


class Encoder(Model):
    """A bundle that encodes: token states, and sentence embeddings where it has them."""

    def run(self, **arrays: Any) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            **arrays: input_ids, attention_mask and, where the model has segments, token_type_ids: each int64 (B, S).

        Returns:
            last_hidden_state, float32 (B, S, D), and what else the manifest's signature names.

        Raises:
            InputError: An input that the graph must not see.
        """
        return self._sessions["model"].run(**arrays)

    def embed(self, texts: str | Sequence[str], batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Embed texts, each truncated to the model's greatest length.

        Args:
            texts: Texts; one str is as a list of one.
            batch_size: How many texts go into the graph at once, at least 1; None: one in a quantised precision, whose
                activations have scales that batch-mates and padding would share, and eight in fp32 and fp16.

        Returns:
            One row per text, float32 (len(texts), D).

        Raises:
            InputError: The bundle has no sentence embedding or no tokenizer, or a text has no tokens.
        """
        session = self._sessions["model"]
        output = next((spec for spec in session.signature.outputs if spec.name == "sentence_embedding"), None)
        if output is None:
            raise InputError(
                f"{self.manifest.folder} has no sentence_embedding: its checkpoint does not say how to pool; "
                "run() gives last_hidden_state"
            )
        if batch_size is None:
            batch_size = 8 if self.precision in ("fp32", "fp16") else 1
        size = check_count("batch_size", batch_size)
        texts = as_list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{index}] must be a str, but is a {type(text).__name__}; run() takes token ids")
        embeddings_BD = np.empty((len(texts), int(output.shape[-1])), np.float32)
        if texts:
            rows = check_rows(self._tokenizer.encode(texts), session.signature)
            segments = any(spec.name == "token_type_ids" for spec in session.signature.inputs)
            for places, ids_BS, mask_BS in batches(rows, size):
                feeds = {"input_ids": ids_BS, "attention_mask": mask_BS}
                if segments:
                    feeds["token_type_ids"] = np.zeros_like(ids_BS)
                embeddings_BD[places] = session.run(outputs=[output.name], control=None, **feeds)[output.name]
        return embeddings_BD

    def _max_text_tokens(self) -> int | None:
        limits = [self.manifest.max_text_tokens, length_limit(self._sessions["model"].signature)]
        return min((limit for limit in limits if limit is not None), default=None)
