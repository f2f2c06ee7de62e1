"""A model of one graph that takes many inputs at once: planned into batches, spread over threads, list or stream.

Shapes: B batch, S sequence.
"""

import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict, TypeVar, cast

from tfm.bundle import Signature, TensorSpec
from tfm.errors import InputError

from ..control import CancelToken, Control
from ..model import Model, as_iterator, as_list
from ..open_bundle import OpenBundle
from ..parallel import parallel_map
from ..progress import Progress, reporter
from ..sessions.session import Session
from ..tasks.base import Task
from .batches import BATCH_TOKENS, check_count
from .checks import Array, nearest
from .cut import LongTexts, check_long_texts, tell_of_cut
from .pixels import PixelReader, read_preparation
from .reader import Reader, TextReader
from .sounds import SoundReader, read_hearing

R = TypeVar("R")
Inputs = str | Iterable[str] | Iterable[tuple[str, str]] | Iterable[Sequence[int]]
"""Texts, pairs of texts that are read together, or rows of ids; one str is as a list of one."""

WINDOW = 256
"""How many inputs of a stream are read ahead: enough that those of a batch are of similar length."""

_HANDFUL = 16
"""Batches below which a graph for one thread is not opened where none is: that takes as long as a sentence 10 (MiniLM
in int8) to 14 times (in fp32)."""

_SINGLE = "model on one thread"


class CallOptions(TypedDict, total=False):
    """What every task takes besides, and every stream of one.

    Attributes:
        batch_tokens: Most tokens of a batch, padding included; None: each input alone in a quantized precision, and
            `BATCH_TOKENS` in fp32 and fp16.
        cancel: Ends the call with RunCancelledError.
        timeout: Seconds for the whole call, after which it ends with RunTimeoutError.
        long_texts: What becomes of a text that has more tokens than the model reads: "warn", it is cut, and a
            `TextWarning` says so; "cut", without a word; "refuse", an InputError.
    """

    batch_tokens: int | None
    cancel: CancelToken | None
    timeout: float | None
    long_texts: LongTexts


class TaskOptions(CallOptions, total=False):
    """What every task takes besides; more is in `CallOptions`.

    Attributes:
        progress: Called with how many inputs are done, and of how many; True: a line on stderr.
    """

    progress: Progress


class StreamOptions(CallOptions, total=False):
    """What every task's stream takes besides; more is in `CallOptions`.

    Attributes:
        window: How many inputs are read ahead.
    """

    window: int


@dataclass(frozen=True)
class _Call:
    """What one call is bound by: the size of its batches, and what ends it, where the caller or a part of it does."""

    batch_tokens: int | None
    stop: CancelToken
    control: Control
    long_texts: LongTexts


class Batched(Model):
    """A model whose graph "model" takes ids, and gives something for each of many inputs."""

    def __init__(self, opened: OpenBundle) -> None:
        super().__init__(opened)
        self._opening = threading.Lock()

    @cached_property
    def _reader(self) -> Reader:
        """How the inputs of this model's tasks are read."""
        signature = self._sessions["model"].signature
        if {spec.name for spec in signature.inputs} in ({"input_values"}, {"input_features"}):
            [spec] = signature.inputs
            least = next(iter(signature.min_length.values()), 1)
            return SoundReader(spec, read_hearing(self._companions), least)
        # A model of images has no other input.
        if signature.inputs[0].name == "pixel_values":
            return PixelReader(signature.inputs[0], read_preparation(self._companions))
        return self._text_reader(signature)

    def _text_reader(self, signature: Signature) -> TextReader:
        below = next((spec.below for spec in signature.inputs if spec.name == "input_ids"), None)
        pad = self.manifest.config.get("pad_token_id")
        # It matters where a model looks for the last token that is none.
        pad = pad if isinstance(pad, int) and not isinstance(pad, bool) and 0 <= pad < (below or 0) else 0
        # transformers' tokenizers give no types where this does not name them, whatever their
        # template says.
        names = self._companions.texts("tokenizer_config.json", "model_input_names")
        # Not this model itself, which holds the reader: a model that is dropped goes at once, graphs and all.
        model = weakref.ref(self)
        return TextReader(
            signature,
            lambda: cast(Batched, model())._tokenizer,  # whoever reads by it holds the model
            pad=pad,
            has_types=names is None or "token_type_ids" in names,
        )

    def feeds(self, inputs: Any, long_texts: LongTexts = "warn") -> dict[str, Array]:
        """Make of texts, pairs of texts, rows of ids or images what `run` takes: one batch, padded.

        Args:
            inputs: As of the tasks, at least one.
            long_texts: As of the tasks.

        Returns:
            The graph's inputs by name.

        Raises:
            InputError: There is none, or one that a task would refuse.
        """
        items = as_list(inputs)
        if not items:
            raise InputError("inputs are none; run() has nothing to do")
        rows = self._reader.rows(items, Control(None), keep=False)
        tell_of_cut(rows, self._max_text_tokens(), check_long_texts(long_texts))
        return self._reader.feeds(rows)

    def _require(self, task: str, why: str) -> None:
        if task not in self.tasks:
            has = f"it has {', '.join(self.tasks)}, and run()" if self.tasks else "run() gives what it has"
            raise InputError(f"{self.manifest.folder} has no task {task!r}: {why}; {has}")

    @property
    def _outputs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self._sessions["model"].signature.outputs}

    def _list(self, task: Task[R], inputs: Any, options: TaskOptions) -> list[R]:
        items = as_list(inputs)
        results: list[Any] = [None] * len(items)
        self._fill(results, task, items, options)
        return results

    def _fill(self, results: Any, task: Task[Any], items: list[Any], options: TaskOptions) -> None:
        call = self._call(options, TaskOptions)
        with reporter(options.get("progress", False), len(items)) as advance:
            for count in self._compute(results, task, items, call):
                advance(count)

    def _stream(self, task: Task[R], inputs: Any, options: StreamOptions) -> Iterator[R]:
        source = as_iterator(inputs)
        size = check_count("window", options.get("window", WINDOW))
        call = self._call(options, StreamOptions)

        # Apart, so that what is checked above is checked when the stream is made.
        def results() -> Iterator[R]:
            for start in itertools.count(0, size):
                items = list(itertools.islice(source, size))
                if not items:
                    return
                # One window at a time, of which inputs and results are let go of as they are used:
                # a stream takes no more memory the longer it is.
                found: list[Any] = [None] * len(items)
                for _ in self._compute(found, task, items, call, start):
                    pass
                del items
                while found:
                    yield found.pop(0)

        return results()

    def _call(self, options: Mapping[str, Any], known: type[Any]) -> _Call:
        names: frozenset[str] = known.__optional_keys__
        for name in options:
            if name not in names:
                raise InputError(f"there is no option {name!r}; {nearest(name, names)}")
        cancel, budget = options.get("cancel"), options.get("batch_tokens")
        # Refuses another thing by the caller's name for it.
        Control(cancel)
        if budget is not None:
            budget = check_count("batch_tokens", budget)
        elif self.precision in ("fp32", "fp16"):
            budget = BATCH_TOKENS
        # Of this call alone, which ends when the caller's does.
        stop = CancelToken(cancel)
        long_texts = check_long_texts(options.get("long_texts", "warn"))
        return _Call(budget, stop, Control(stop, options.get("timeout")), long_texts)

    def _compute(self, results: Any, task: Task[Any], items: list[Any], call: _Call, start: int = 0) -> Iterator[int]:
        """Put a task's result on each item, items[0] being input number `start`, into `results`; yield counts done."""
        # All of the rows before the first batch: their lengths decide what goes together.
        rows = self._rows(items, task, call, start)
        batches = self._reader.plan(rows, call.batch_tokens)
        session, threads = self._lanes(len(batches))

        def work(places: list[int]) -> None:
            feeds = self._reader.feeds([rows[place] for place in places])
            found = session.run(feeds, outputs=task.outputs, control=call.control)
            for share, place in enumerate(places):
                # A view: whoever keeps it copies it.
                values = {name: value[share] for name, value in found.items()}
                # No lock: each place is written once, by the thread that has its batch.
                results[place] = task.finish(items[place], rows[place], values)

        for places in parallel_map(work, batches, threads, call.stop.cancel):
            yield len(places)

    def _rows(self, items: list[Any], task: Task[Any], call: _Call, start: int) -> list[Any]:
        """Turn inputs into checked rows."""
        try:
            rows = self._reader.rows(items, call.control, keep=task.keep)
            for place, row in enumerate(rows):
                task.check(place, row)
            tell_of_cut(rows, self._max_text_tokens(), call.long_texts, start)
        except InputError as error:
            if start:
                raise InputError(f"from the stream's input {start} on, {error}") from error
            raise
        return rows

    def _lanes(self, batches: int) -> tuple[Session, int]:
        """Choose the graph for so many batches, and on how many threads to run it at once."""
        main = self._sessions["model"]
        few = 2 if _SINGLE in self._sessions else _HANDFUL
        if batches < few or self.threads == 1 or self.provider != "cpu":
            return main, 1
        # Threads that come at once must not open it twice.
        with self._opening:
            # A closed model opens no graph again.
            main.opened()
            if _SINGLE not in self._sessions:
                session = self._opened.open_again("model", threads=1)
                # Anew, since close() may be going through it.
                self._sessions = {**self._sessions, _SINGLE: session}
                # close() may have gone through the sessions before this one was among them.
                main.opened()
        return self._sessions[_SINGLE], self.threads
