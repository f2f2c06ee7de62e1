"""Encoder bundles: token states, sentence embeddings, labels and masked tokens.

Shapes: B batch, S sequence, D model size, L labels, V vocabulary.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError

from .batches import BATCH_TOKENS, check_count, check_rows, length_limit, pad_rows, plan
from .checks import Array
from .control import CancelToken, Control
from .heads import Entity, Fill, Label, Task, labelling, mask_filling, token_labelling
from .manifest import Manifest, TensorSpec, check_digests
from .model import Model, as_list
from .progress import Progress, reporter
from .session import Session
from .spread import spread

R = TypeVar("R")
Inputs = str | Iterable[str] | Iterable[Sequence[int]]

WINDOW = 256
"""How many inputs of a stream are read ahead: enough that those of a batch are of similar length."""

_HANDFUL = 16
"""Batches below which a graph for one thread is not opened: that takes as long as a sentence 10 (MiniLM in int8) to 14
times (in fp32)."""

_SINGLE = "model on one thread"


class Encoder(Model):
    """A bundle that encodes: token states, and sentence embeddings, labels or masked tokens where it has them.

    Each task takes texts, truncated to the model's greatest length, or rows of token ids; one str is as a list of one.
    Inputs are sorted by length and put into batches of similar length; in a quantised precision each runs alone, since
    activations have scales that batch-mates and padding would share. More than a handful of batches run side by side,
    each on one thread, as many as the model has threads; results are the same to the last bit. So that threads do not
    take turns at one graph's threads, that opens the graph once more.

    What every task takes besides:
        batch_tokens: Most tokens of a batch, padding included; None: each input alone in a quantised precision, and
            `BATCH_TOKENS` in fp32 and fp16.
        progress: Called with how many inputs are done, and of how many; True: a line on stderr.
        cancel: Ends the call with RunCancelledError.
        timeout: Seconds for the whole call, after which it ends with RunTimeoutError.
    A task's stream takes any iterable, of any length, and yields the results in order. It holds no more than `window`
    inputs and their results, which it reads before it yields the first of theirs.
    """

    def __init__(self, manifest: Manifest, precision: str, sessions: dict[str, Session]) -> None:
        super().__init__(manifest, precision, sessions)
        self._opening = threading.Lock()

    def run(
        self, *, cancel: CancelToken | None = None, timeout: float | None = None, **arrays: Any
    ) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            cancel: Ends the run.
            timeout: Seconds after which it ends.
            **arrays: input_ids, attention_mask and, where the model has segments, token_type_ids: each int64 (B, S).

        Returns:
            last_hidden_state, float32 (B, S, D), and what else the manifest's signature names.

        Raises:
            InputError: An input that the graph must not see.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._sessions["model"].run(control=Control(cancel, timeout), **arrays)

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
            found["classify"] = len(logits.shape) == 2
            found["fill_mask"] = len(logits.shape) == 3 and head == "masked-lm"
            found["classify_tokens"] = len(logits.shape) == 3 and head != "masked-lm"
        return tuple(task for task, has in found.items() if has)

    def embed(
        self,
        inputs: Inputs,
        *,
        batch_tokens: int | None = None,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embed texts or rows of ids.

        Returns:
            One row per input, float32 (len(inputs), D).

        Raises:
            InputError: The bundle has no sentence embedding or no tokenizer, or an input has no tokens.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        task = self._embedding()
        items = as_list(inputs)
        embeddings_BD = np.empty((len(items), int(self._outputs[task.output].shape[-1])), np.float32)
        self._fill(embeddings_BD, task, items, batch_tokens, progress, cancel, timeout)
        return embeddings_BD

    def embed_stream(
        self,
        inputs: Inputs,
        *,
        window: int = WINDOW,
        batch_tokens: int | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Embed a stream; yields float32 (D,) for each input, and raises as `embed` does."""
        return self._stream(self._embedding(), inputs, window, batch_tokens, cancel, timeout)

    def classify(
        self,
        inputs: Inputs,
        top_k: int | None = 1,
        *,
        batch_tokens: int | None = None,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> list[list[Label]]:
        """Label texts or rows of ids, as Hugging Face's text-classification pipeline does.

        Args:
            inputs: What to label.
            top_k: How many labels of each, the likeliest first; None: all.
            batch_tokens: As of every task.
            progress: As of every task.
            cancel: As of every task.
            timeout: As of every task.

        Returns:
            For each input {"label", "score"}. Scores are probabilities, which add up to 1 over all labels, unless
            problem_type in the bundle's config.json says that each stands for itself, or that they are a regression.

        Raises:
            InputError: The bundle has no labels for texts or no tokenizer, or an input has no tokens.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._list(self._labelling(top_k), inputs, batch_tokens, progress, cancel, timeout)

    def classify_stream(
        self,
        inputs: Inputs,
        top_k: int | None = 1,
        *,
        window: int = WINDOW,
        batch_tokens: int | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Iterator[list[Label]]:
        """Label a stream; yields and raises as `classify` does."""
        return self._stream(self._labelling(top_k), inputs, window, batch_tokens, cancel, timeout)

    def fill_mask(
        self,
        inputs: Inputs,
        top_k: int | None = 5,
        *,
        batch_tokens: int | None = None,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> list[list[Fill]]:
        """Find tokens for the masks in texts ("Paris is the [MASK] of France."), as Hugging Face's pipeline does.

        Args:
            inputs: Texts or rows of ids, with at least one mask in each.
            top_k: How many tokens for each mask, the likeliest first; None: all.
            batch_tokens: As of every task.
            progress: As of every task.
            cancel: As of every task.
            timeout: As of every task.

        Returns:
            For each input {"score", "token", "token_str", "sequence", "index"}: those of its first mask, then those of
            the next. In each sequence only that one mask is filled.

        Raises:
            InputError: The bundle predicts no masked tokens or has no tokenizer, or an input has no mask.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._list(self._mask_filling(top_k), inputs, batch_tokens, progress, cancel, timeout)

    def fill_mask_stream(
        self,
        inputs: Inputs,
        top_k: int | None = 5,
        *,
        window: int = WINDOW,
        batch_tokens: int | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Iterator[list[Fill]]:
        """Find tokens for the masks in a stream; yields and raises as `fill_mask` does."""
        return self._stream(self._mask_filling(top_k), inputs, window, batch_tokens, cancel, timeout)

    def classify_tokens(
        self,
        inputs: str | Iterable[str],
        ignore_labels: Sequence[str] = ("O",),
        *,
        batch_tokens: int | None = None,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> list[list[Entity]]:
        """Label the tokens of texts, as Hugging Face's token-classification pipeline does without aggregation.

        Args:
            inputs: Texts; not rows of ids, whose places in a text are unknown.
            ignore_labels: Tokens of these labels are left out.
            batch_tokens: As of every task.
            progress: As of every task.
            cancel: As of every task.
            timeout: As of every task.

        Returns:
            For each text {"entity", "score", "index", "word", "start", "end"} of its tokens but the special ones.

        Raises:
            InputError: The bundle has no labels for tokens or no tokenizer, or a text has no tokens.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        task = self._token_labelling(ignore_labels)
        return self._list(task, inputs, batch_tokens, progress, cancel, timeout)

    def classify_tokens_stream(
        self,
        inputs: str | Iterable[str],
        ignore_labels: Sequence[str] = ("O",),
        *,
        window: int = WINDOW,
        batch_tokens: int | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> Iterator[list[Entity]]:
        """Label the tokens of a stream of texts; yields and raises as `classify_tokens` does."""
        task = self._token_labelling(ignore_labels)
        return self._stream(task, inputs, window, batch_tokens, cancel, timeout)

    def _embedding(self) -> Task[npt.NDArray[np.float32]]:
        self._require("embed", "it has no sentence_embedding, since its checkpoint does not say how to pool")
        return Task("sentence_embedding", lambda item, row, values: values.copy())  # not a view of the whole batch's

    def _labelling(self, top_k: int | None) -> Task[list[Label]]:
        self._require("classify", "it has no labels for texts")
        return labelling(self.manifest, self._outputs["logits"], _check_top_k(top_k))

    def _mask_filling(self, top_k: int | None) -> Task[list[Fill]]:
        self._require("fill_mask", "it predicts no masked tokens")
        return mask_filling(self.manifest, self._tokenizer, _check_top_k(top_k))

    def _token_labelling(self, ignore_labels: Sequence[str]) -> Task[list[Entity]]:
        self._require("classify_tokens", "it has no labels for tokens")
        if isinstance(ignore_labels, str):
            raise InputError(f"ignore_labels must be a list of labels, but is the str {ignore_labels!r}")
        return token_labelling(self.manifest, self._outputs["logits"], self._tokenizer, ignore_labels)

    def _require(self, task: str, why: str) -> None:
        if task not in self.tasks:
            has = f"it has {', '.join(self.tasks)}, and run()" if self.tasks else "run() gives what it has"
            raise InputError(f"{self.manifest.folder} has no task {task!r}: {why}; {has}")

    def _list(
        self,
        task: Task[R],
        inputs: Inputs,
        batch_tokens: int | None,
        progress: Progress,
        cancel: CancelToken | None,
        timeout: float | None,
    ) -> list[R]:
        items = as_list(inputs)
        results: list[Any] = [None] * len(items)
        self._fill(results, task, items, batch_tokens, progress, cancel, timeout)
        return results

    def _fill(
        self,
        results: Any,
        task: Task[Any],
        items: list[Any],
        batch_tokens: int | None,
        progress: Progress,
        cancel: CancelToken | None,
        timeout: float | None,
    ) -> None:
        stop, control = _controls(cancel, timeout)
        budget = self._budget(batch_tokens)
        with reporter(progress, len(items)) as advance:
            for count in self._compute(results, task, items, budget, stop, control):
                advance(count)

    def _stream(
        self,
        task: Task[R],
        inputs: Inputs,
        window: int,
        batch_tokens: int | None,
        cancel: CancelToken | None,
        timeout: float | None,
    ) -> Iterator[R]:
        lazy = isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes))
        source = iter(inputs if lazy else as_list(inputs))
        size, budget = check_count("window", window), self._budget(batch_tokens)
        stop, control = _controls(cancel, timeout)

        def results() -> Iterator[R]:  # apart, so that what is checked above is checked when the stream is made
            for start in itertools.count(0, size):
                items = list(itertools.islice(source, size))
                if not items:
                    return
                found: list[Any] = [None] * len(items)
                for _ in self._compute(found, task, items, budget, stop, control, start):
                    pass
                del items
                while found:
                    yield found.pop(0)

        return results()

    def _compute(
        self,
        results: Any,
        task: Task[Any],
        items: list[Any],
        batch_tokens: int | None,
        stop: CancelToken,
        control: Control,
        start: int = 0,
    ) -> Iterator[int]:
        """Put a task's result on each item, items[0] being input number `start`, into `results`; yield counts done."""
        rows = self._rows(items, task, control, start)
        batches = plan([len(row) for row in rows], batch_tokens)
        session, threads = self._lanes(len(batches))
        segments = any(spec.name == "token_type_ids" for spec in session.signature.inputs)

        def work(places: list[int]) -> None:
            ids_BS, mask_BS = pad_rows([rows[place] for place in places])
            feeds = {"input_ids": ids_BS, "attention_mask": mask_BS}
            if segments:
                feeds["token_type_ids"] = np.zeros_like(ids_BS)
            values = session.run(outputs=[task.output], control=control, **feeds)[task.output]
            for place, value in zip(places, values, strict=True):
                results[place] = task.finish(items[place], rows[place], value)

        for places in spread(work, batches, threads, stop.cancel):
            yield len(places)

    def _rows(self, items: list[Any], task: Task[Any], control: Control, start: int) -> list[list[int]]:
        """Turn texts or rows of ids into checked rows of ids."""
        texts = sum(isinstance(item, str) for item in items)
        if 0 < texts < len(items):
            raise InputError("inputs mix texts with token ids; pass all as one or the other")
        rows: list[Any] = []
        for item in items:
            control.check()
            rows += self._tokenizer.encode([item]) if texts else [item]
        try:
            rows = check_rows(rows, self._sessions["model"].signature)
            for place, row in enumerate(rows):
                task.check(place, row)
        except InputError as error:
            if start:
                raise InputError(f"from the stream's input {start} on, {error}") from error
            raise
        return rows

    def _budget(self, batch_tokens: int | None) -> int | None:
        if batch_tokens is not None:
            return check_count("batch_tokens", batch_tokens)
        return BATCH_TOKENS if self.precision in ("fp32", "fp16") else None

    def _lanes(self, batches: int) -> tuple[Session, int]:
        """Choose the graph for so many batches, and on how many threads to run it at once."""
        main = self._sessions["model"]
        if batches < _HANDFUL or self.threads == 1 or self.provider != "cpu":
            return main, 1
        with self._opening:
            main.opened()  # a closed model opens no graph again
            if _SINGLE not in self._sessions:
                path = self.manifest.graphs[self.precision]["model"]
                check_digests(self.manifest, [name for name in (path, path + ".data") if name in self.manifest.files])
                session = Session(self.manifest.folder / path, main.signature, self.provider, 1)
                self._sessions = {**self._sessions, _SINGLE: session}  # anew, since close() may be going through it
                main.opened()
        return self._sessions[_SINGLE], self.threads

    @property
    def _outputs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self._sessions["model"].signature.outputs}

    def _max_text_tokens(self) -> int | None:
        limits = [self.manifest.max_text_tokens, length_limit(self._sessions["model"].signature)]
        return min((limit for limit in limits if limit is not None), default=None)


def _check_top_k(top_k: int | None) -> int | None:
    return None if top_k is None else check_count("top_k", top_k)


def _controls(cancel: CancelToken | None, timeout: float | None) -> tuple[CancelToken, Control]:
    """Make a token of one call, which ends when the caller's does, and what hands it to every run."""
    Control(cancel)  # refuses another thing by the caller's name for it
    stop = CancelToken(cancel)
    return stop, Control(stop, timeout)
