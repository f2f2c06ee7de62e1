"""Encoder bundles: token states, sentence embeddings, labels and masked tokens.

Shapes: B batch, S sequence, D model size, L labels, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Unpack, cast

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError

from .image_tasks import ImageTasks
from .inputs.batched import Inputs, StreamOptions, TaskOptions
from .inputs.batches import length_limit
from .pair_tasks import PairTasks
from .tasks.base import Task
from .tasks.embeddings import SIMILARITIES, VectorForm, VectorOptions, read_similarity, vector_form
from .tasks.entities import Aggregation, check_aggregation, token_labeling
from .tasks.labeling import Label, check_top_k, labeling
from .tasks.masks import Fill, find_mask, mask_filling, read_special
from .tasks.which import tasks_of


class EmbedOptions(VectorOptions, TaskOptions, total=False):
    """What `embed` takes besides: in what form, and what every task does."""


class EmbedStreamOptions(VectorOptions, StreamOptions, total=False):
    """What a stream of embeddings takes besides: in what form, and what every stream does."""


class Encoder(PairTasks, ImageTasks):
    """A bundle that encodes: token states, and sentence embeddings, labels or masked tokens where it has them.

    Each task takes texts, truncated to the model's greatest length, pairs of texts that are read together, `(a, b)`,
    the longer of which is truncated first, or rows of token ids; one str is as a list of one. Which text of a pair a
    token is of reaches the model as the tokenizer's own template says it.
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
        """Names of the methods that the bundle's graph has an output for."""
        return tasks_of(self.manifest)

    def embed(self, inputs: Inputs, prompt: str | None = None, **options: Unpack[EmbedOptions]) -> npt.NDArray[Any]:
        """Embed texts or rows of ids.

        Args:
            inputs: What to embed.
            prompt: What goes in front of each text: the name of one of the bundle's prompts (`manifest.text.prompts`),
                such as "query", or the words themselves, "" for none; None: the one that the checkpoint names as its
                default, if any, as sentence-transformers does. Rows of ids are taken as they are.
            **options: In what form embeddings are given, `VectorOptions`, and those of every task.

        Returns:
            One row per input, float32 (len(inputs), D) unless another form is asked for.

        Raises:
            InputError: The bundle has no sentence embedding or no tokenizer, or an input has no tokens.
        """
        task, (form, others) = self._embedding(), self._form(options)
        items = list(self._prompted(inputs, prompt))
        # Batches write their rows here: they end in any order, and rows stand in the caller's.
        embeddings_BD = np.empty((len(items), self._width), np.float32)
        self._fill(embeddings_BD, task, items, cast(TaskOptions, others))
        return form.of(embeddings_BD)

    def embed_stream(
        self, inputs: Inputs, prompt: str | None = None, **options: Unpack[EmbedStreamOptions]
    ) -> Iterator[npt.NDArray[Any]]:
        """Embed a stream; yields (D,) for each input, and raises as `embed` does."""
        task, (form, others) = self._embedding(), self._form(options)
        found = self._stream(task, self._prompted(inputs, prompt), cast(StreamOptions, others))
        return (form.of(row_D[None])[0] for row_D in found)

    def similarity(self, a: Any, b: Any, prompt: str | None = None) -> npt.NDArray[np.float32]:
        """Say how near each of `a` is to each of `b`, by the measure that the checkpoint names, as cosine.

        Args:
            a: Texts, which are embedded first, or their embeddings (N, D).
            b: Texts or embeddings (M, D).
            prompt: As of `embed`.

        Returns:
            (N, M): the greater, the nearer; distances are negative.
        """
        one, other = (self._embedded(side, prompt) for side in (a, b))
        if one.shape[1] != other.shape[1]:
            raise InputError(f"embeddings of {one.shape[1]} and {other.shape[1]} dimensions cannot be compared")
        return SIMILARITIES[self._similarity](one, other).astype(np.float32)

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
        self,
        inputs: str | Iterable[str],
        ignore_labels: Sequence[str] = ("O",),
        aggregation: Aggregation = "none",
        **options: Unpack[TaskOptions],
    ) -> list[list[Any]]:
        """Label the tokens of texts, as Hugging Face's token-classification pipeline does.

        Args:
            inputs: Texts; not rows of ids, whose places in a text are unknown.
            ignore_labels: Tokens of these labels are left out.
            aggregation: "none": each token alone; "simple": neighbors of one label are one; "first", "average", "max":
                so are whole words before that, whose label is that of their first token, of the mean of their tokens'
                scores, or of the token that is surest.
            **options: As of every task.

        Returns:
            For each text an `Entity`, {"entity", "score", "index", "word", "start", "end"}, of each of its tokens but
            the special ones; aggregated an `EntityGroup`, {"entity_group", "score", "word", "start", "end"}.

        Raises:
            InputError: The bundle has no labels for tokens or no tokenizer, or a text has no tokens.
        """
        task = self._token_labeling(ignore_labels, aggregation)
        return self._list(task, inputs, options)

    def classify_tokens_stream(
        self,
        inputs: str | Iterable[str],
        ignore_labels: Sequence[str] = ("O",),
        aggregation: Aggregation = "none",
        **options: Unpack[StreamOptions],
    ) -> Iterator[list[Any]]:
        """Label the tokens of a stream of texts; yields and raises as `classify_tokens` does."""
        task = self._token_labeling(ignore_labels, aggregation)
        return self._stream(task, inputs, options)

    async def embed_async(self, inputs: Inputs, **options: Any) -> npt.NDArray[Any]:
        """Do what `embed` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.embed, inputs, **options)

    async def classify_async(self, inputs: Inputs, **options: Any) -> list[list[Label]]:
        """Do what `classify` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.classify, inputs, **options)

    async def fill_mask_async(self, inputs: Inputs, **options: Any) -> list[list[Fill]]:
        """Do what `fill_mask` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.fill_mask, inputs, **options)

    def _embedding(self) -> Task[npt.NDArray[np.float32]]:
        self._require("embed", "it has no sentence_embedding, since its checkpoint does not say how to pool")
        name = "sentence_embedding"
        return Task((name,), lambda item, row, values: values[name].copy())  # not a view of the whole batch's

    @property
    def _width(self) -> int:
        return int(self._outputs["sentence_embedding"].shape[-1])

    def _form(self, options: Mapping[str, Any]) -> tuple[VectorForm, dict[str, Any]]:
        """Divide options into the form of embeddings and the rest."""
        asked = {name: value for name, value in options.items() if name in VectorOptions.__optional_keys__}
        rest = {name: value for name, value in options.items() if name not in asked}
        return vector_form(cast(VectorOptions, asked), self._width), rest

    def _embedded(self, side: Any, prompt: str | None) -> npt.NDArray[np.float32]:
        if isinstance(side, np.ndarray) and side.ndim == 2 and side.dtype.kind == "f":
            return side.astype(np.float32, copy=False)
        return self.embed(side, prompt)

    def _labeling(self, top_k: int | None) -> Task[list[Label]]:
        self._require("classify", "it has no labels for texts")
        return labeling(self.manifest, self._outputs["logits"], self._squash, check_top_k(top_k))

    def _mask_filling(self, top_k: int | None) -> Task[list[Fill]]:
        self._require("fill_mask", "it predicts no masked tokens")
        return mask_filling(self._tokenizer, *self._mask, check_top_k(top_k))

    def _token_labeling(self, ignore_labels: Sequence[str], aggregation: Aggregation) -> Task[list[Any]]:
        self._require("classify_tokens", "it has no labels for tokens")
        if isinstance(ignore_labels, str):
            raise InputError(f"ignore_labels must be a list of labels, but is the str {ignore_labels!r}")
        unknown = read_special(self._companions, "unk_token")
        return token_labeling(
            self.manifest,
            self._outputs["logits"],
            self._tokenizer,
            ignore_labels,
            aggregation=check_aggregation(aggregation),
            unknown_id=self._tokenizer.unknown_id if unknown is None else self._tokenizer.id_of(unknown),
        )

    @cached_property
    def _similarity(self) -> str:
        self._require("embed", "it has no sentence_embedding, since its checkpoint does not say how to pool")
        return read_similarity(self._companions)

    @cached_property
    def _mask(self) -> tuple[str, int]:
        return find_mask(self._companions, self._tokenizer)

    def _max_text_tokens(self) -> int | None:
        # Where the checkpoint says that texts are cut, or where its positions end, if that is earlier.
        limits = [self.manifest.max_text_tokens, length_limit(self._sessions["model"].signature)]
        return min((limit for limit in limits if limit is not None), default=None)
