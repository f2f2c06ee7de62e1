"""Encoder bundles: token states, sentence embeddings, labels and masked tokens.

Shapes: B batch, S sequence, D model size, L labels, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from tfm.bundle import TensorSpec
from tfm.errors import InputError

from .heads import Entity, Fill, Label, Squash, Task, find_mask, labeling, mask_filling, read_squash, token_labeling
from .inputs.batched import Batched, Inputs, StreamOptions, TaskOptions
from .inputs.batches import check_count, length_limit
from .model import as_iterator


class Encoder(Batched):
    """A bundle that encodes: token states, and sentence embeddings, labels or masked tokens where it has them.

    Each task takes texts, truncated to the model's greatest length, or rows of token ids; one str is as a list of one.
    Inputs are sorted by length and put into batches of similar length; in a quantized precision each runs alone, since
    activations have scales that batch-mates and padding would share. More than a handful of batches run side by side,
    each on one thread, as many as the model has threads; results are the same to the last bit. So that threads do not
    take turns at one graph's threads, that opens the graph once more.

    What every task takes besides is in `TaskOptions`. A task's stream takes any iterable, of any length, and yields
    the results in order. It holds no more than `window` inputs and their results, which it reads before it yields the
    first of theirs; what it takes besides is in `StreamOptions`.

    `run` takes input_ids, attention_mask and, where the model has segments, token_type_ids, each int64 (B, S); it gives
    last_hidden_state, float32 (B, S, D), and what else the manifest's signature names.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the methods that the bundle's graph has an output for; where images come in, there are none."""
        signature = self._sessions["model"].signature
        if all(spec.name != "input_ids" for spec in signature.inputs):
            return ()
        found = {"embed": "sentence_embedding" in self._outputs}
        logits = self._outputs.get("logits")
        if logits is not None:
            head = self.manifest.config.get("head")
            # (B, L) are labels of texts. (B, S, L) and (B, S, V) have one rank: the configuration says
            # whether they are labels of tokens or masked tokens.
            found["classify"] = len(logits.shape) == 2
            found["fill_mask"] = len(logits.shape) == 3 and head == "masked-lm"
            found["classify_tokens"] = len(logits.shape) == 3 and head != "masked-lm"
        return tuple(task for task, has in found.items() if has)

    def embed(
        self, inputs: Inputs, prompt: str | None = None, **options: Unpack[TaskOptions]
    ) -> npt.NDArray[np.float32]:
        """Embed texts or rows of ids.

        Args:
            inputs: What to embed.
            prompt: What goes in front of each text: the name of one of the bundle's prompts (`manifest.text.prompts`),
                such as "query", or the words themselves, "" for none; None: the one that the checkpoint names as its
                default, if any, as sentence-transformers does. Rows of ids are taken as they are.
            **options: As of every task.

        Returns:
            One row per input, float32 (len(inputs), D).

        Raises:
            InputError: The bundle has no sentence embedding or no tokenizer, or an input has no tokens.
        """
        task = self._embedding()
        items = list(self._prompted(inputs, prompt))
        # Batches write their rows here: they end in any order, and rows stand in the caller's.
        embeddings_BD = np.empty((len(items), int(self._outputs[task.output].shape[-1])), np.float32)
        self._fill(embeddings_BD, task, items, options)
        return embeddings_BD

    def embed_stream(
        self, inputs: Inputs, prompt: str | None = None, **options: Unpack[StreamOptions]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Embed a stream; yields float32 (D,) for each input, and raises as `embed` does."""
        return self._stream(self._embedding(), self._prompted(inputs, prompt), options)

    def classify(self, inputs: Inputs, top_k: int | None = 1, **options: Unpack[TaskOptions]) -> list[list[Label]]:
        """Label texts or rows of ids, as Hugging Face's text-classification pipeline does.

        Args:
            inputs: What to label.
            top_k: How many labels of each, the likeliest first; None: all.
            **options: As of every task.

        Returns:
            For each input {"label", "score"}. Scores are probabilities, which add up to 1 over all labels, unless
            problem_type in the bundle's config.json says that each stands for itself, or that they are a regression.

        Raises:
            InputError: The bundle has no labels for texts or no tokenizer, or an input has no tokens.
        """
        return self._list(self._labeling(top_k), inputs, options)

    def classify_stream(
        self, inputs: Inputs, top_k: int | None = 1, **options: Unpack[StreamOptions]
    ) -> Iterator[list[Label]]:
        """Label a stream; yields and raises as `classify` does."""
        return self._stream(self._labeling(top_k), inputs, options)

    def fill_mask(self, inputs: Inputs, top_k: int | None = 5, **options: Unpack[TaskOptions]) -> list[list[Fill]]:
        """Find tokens for the masks in texts ("Paris is the [MASK] of France."), as Hugging Face's pipeline does.

        Args:
            inputs: Texts or rows of ids, with at least one mask in each.
            top_k: How many tokens for each mask, the likeliest first; None: all.
            **options: As of every task.

        Returns:
            For each input {"score", "token", "token_str", "sequence", "index"}: those of its first mask, then those of
            the next. In each sequence only that one mask is filled.

        Raises:
            InputError: The bundle predicts no masked tokens or has no tokenizer, or an input has no mask.
        """
        return self._list(self._mask_filling(top_k), inputs, options)

    def fill_mask_stream(
        self, inputs: Inputs, top_k: int | None = 5, **options: Unpack[StreamOptions]
    ) -> Iterator[list[Fill]]:
        """Find tokens for the masks in a stream; yields and raises as `fill_mask` does."""
        return self._stream(self._mask_filling(top_k), inputs, options)

    def classify_tokens(
        self, inputs: str | Iterable[str], ignore_labels: Sequence[str] = ("O",), **options: Unpack[TaskOptions]
    ) -> list[list[Entity]]:
        """Label the tokens of texts, as Hugging Face's token-classification pipeline does without aggregation.

        Args:
            inputs: Texts; not rows of ids, whose places in a text are unknown.
            ignore_labels: Tokens of these labels are left out.
            **options: As of every task.

        Returns:
            For each text {"entity", "score", "index", "word", "start", "end"} of its tokens but the special ones.

        Raises:
            InputError: The bundle has no labels for tokens or no tokenizer, or a text has no tokens.
        """
        task = self._token_labeling(ignore_labels)
        return self._list(task, inputs, options)

    def classify_tokens_stream(
        self, inputs: str | Iterable[str], ignore_labels: Sequence[str] = ("O",), **options: Unpack[StreamOptions]
    ) -> Iterator[list[Entity]]:
        """Label the tokens of a stream of texts; yields and raises as `classify_tokens` does."""
        task = self._token_labeling(ignore_labels)
        return self._stream(task, inputs, options)

    async def embed_async(self, inputs: Inputs, **options: Any) -> npt.NDArray[np.float32]:
        """Do what `embed` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.embed, inputs, **options)

    async def classify_async(self, inputs: Inputs, **options: Any) -> list[list[Label]]:
        """Do what `classify` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.classify, inputs, **options)

    async def fill_mask_async(self, inputs: Inputs, **options: Any) -> list[list[Fill]]:
        """Do what `fill_mask` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.fill_mask, inputs, **options)

    def _prompted(self, inputs: Inputs, prompt: str | None) -> Iterator[Any]:
        """Put a prompt in front of texts, one after the other."""
        text = self.manifest.text
        if prompt is None:
            prompt = "" if text.default_prompt is None else text.default_prompt
        elif not isinstance(prompt, str):
            raise InputError(f"prompt must be the name of a prompt or its words, but is {prompt!r}")
        words = text.prompts.get(prompt, prompt)
        return (words + item if words and isinstance(item, str) else item for item in as_iterator(inputs))

    def _embedding(self) -> Task[npt.NDArray[np.float32]]:
        self._require("embed", "it has no sentence_embedding, since its checkpoint does not say how to pool")
        return Task("sentence_embedding", lambda item, row, values: values.copy())  # not a view of the whole batch's

    def _labeling(self, top_k: int | None) -> Task[list[Label]]:
        self._require("classify", "it has no labels for texts")
        return labeling(self.manifest, self._outputs["logits"], self._squash, _check_top_k(top_k))

    def _mask_filling(self, top_k: int | None) -> Task[list[Fill]]:
        self._require("fill_mask", "it predicts no masked tokens")
        return mask_filling(self._tokenizer, *self._mask, _check_top_k(top_k))

    def _token_labeling(self, ignore_labels: Sequence[str]) -> Task[list[Entity]]:
        self._require("classify_tokens", "it has no labels for tokens")
        if isinstance(ignore_labels, str):
            raise InputError(f"ignore_labels must be a list of labels, but is the str {ignore_labels!r}")
        return token_labeling(self.manifest, self._outputs["logits"], self._tokenizer, ignore_labels)

    @cached_property
    def _squash(self) -> Squash:  # cached, as is _mask, since their files are read and compared with their digests
        return read_squash(self._companions, int(self._outputs["logits"].shape[-1]))

    @cached_property
    def _mask(self) -> tuple[str, int]:
        return find_mask(self._companions, self._tokenizer)

    def _require(self, task: str, why: str) -> None:
        if task not in self.tasks:
            has = f"it has {', '.join(self.tasks)}, and run()" if self.tasks else "run() gives what it has"
            raise InputError(f"{self.manifest.folder} has no task {task!r}: {why}; {has}")

    @property
    def _outputs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self._sessions["model"].signature.outputs}

    def _max_text_tokens(self) -> int | None:
        # Where the checkpoint says that texts are cut, or where its positions end, if that is earlier.
        limits = [self.manifest.max_text_tokens, length_limit(self._sessions["model"].signature)]
        return min((limit for limit in limits if limit is not None), default=None)


def _check_top_k(top_k: int | None) -> int | None:
    return None if top_k is None else check_count("top_k", top_k)
