"""What every opened bundle has in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from tfm.bundle import TOKENIZER, Generation, Signature, kind_of
from tfm.errors import BundleError, InputError, MissingTaskError

from .control import CancelToken, Control
from .inputs.batches import check_count, check_rows
from .inputs.checks import Array
from .inputs.tokenizer import Tokenizer
from .open_bundle import OpenBundle
from .sessions.options import Tuning
from .sessions.providers import DEVICES

_TASKS = frozenset(
    {
        "answer",
        "classify",
        "classify_audio",
        "classify_audio_stream",
        "classify_images",
        "classify_images_stream",
        "classify_stream",
        "classify_tokens",
        "classify_tokens_stream",
        "classify_zero_shot",
        "classify_zero_shot_stream",
        "conversation",
        "embed",
        "embed_stream",
        "fill_mask",
        "fill_mask_stream",
        "generate",
        "image_to_text",
        "rank",
        "similarity",
        "stream",
        "transcribe",
        "transcribe_stream",
        "translate",
    }
)
"""Methods that some kind of model has."""

M = TypeVar("M", bound="Model")
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """What `load` was asked for: enough to open the same again in another process.

    Attributes:
        bundle: Absolute path of the folder or .zip.
        provider: As `load` takes it; so are `precision` and `threads`.
        precision: See `provider`.
        threads: See `provider`, and the number where None was given.
        tuning: What else.
    """

    bundle: str
    provider: str | tuple[str, ...]
    precision: str
    threads: int
    tuning: Tuning


class Model:
    """An opened bundle, made by `load`. Safe to use from many threads at once.

    Attributes:
        manifest: What the bundle says of itself.
        precision: Of the graphs that were opened, e.g. "int8".
        provider: Where they run: "cpu" or "cuda".
        device: The same with its number: "cpu" or "cuda:0".
        skipped: Provider that was to be preferred, and does not run here → why not.
        threads: Number of threads within an operator.
    """

    def __init__(self, opened: OpenBundle) -> None:
        self.manifest = opened.manifest
        self.precision = opened.precision
        self._opened, self._sessions, self._companions = opened, opened.sessions, opened.companions
        # All sessions of a bundle run on one provider, with one number of threads.
        first = next(iter(self._sessions.values()))
        self.provider = first.provider
        self.threads = first.threads
        self.device = DEVICES[self.provider]
        self.skipped: Mapping[str, str] = {}
        self._source: Source | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the methods that the bundle is for, beside `run`."""
        return ()

    def __repr__(self) -> str:
        tasks = ", ".join([*self.tasks, "run"])
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        what = f"{self.precision} on {self.device}, {threads}; {tasks}"
        return f"<{type(self).__name__} {self.manifest.folder.name!r}: {what}>"

    def __getattr__(self, name: str) -> Any:
        """Say what to do instead where a task is asked for that another kind of model has."""
        if name in _TASKS:
            raise MissingTaskError(
                f"{self.manifest.folder} is of kind {self.manifest.kind!r} and has no {name}(); "
                f"it has {', '.join([*self.tasks, 'run'])}"
            )
        # Of any other name it must be AttributeError, which hasattr(), copy and pickle rely on.
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was asked of `load`, which another process then does itself."""
        if self._source is None:
            raise InputError(f"{self!r} was not made by load(), so nobody knows how to open it again")
        return _load_again, (self._source, self.manifest.digest)

    def close(self) -> None:
        """Let go of the graphs: runs that have begun finish, new ones raise ClosedError; closing twice does no harm.

        A call of many runs, such as `embed` of many texts, ends with ClosedError at its next run.
        """
        for session in self._sessions.values():
            session.close()
        self._opened.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        arrays: Mapping[str, Any] | None = None,
        /,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            arrays: Every input that the manifest's signature names, by name.
            cancel: A token that ends the run.
            timeout: Seconds after which it is ended; None: never.
            **named: Inputs too, but those that have the name of one of these parameters.

        Returns:
            Every output that it names.

        Raises:
            InputError: An input that the graph must not see.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._sessions["model"].run(arrays, control=Control(cancel, timeout), **named)

    async def run_async(self, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Do what `run` does without holding up the event loop; cancelling the task ends the run."""
        return await self._async(self.run, *arrays, **named)

    async def _async(
        self, function: Callable[..., T], /, *args: Any, cancel: CancelToken | None = None, **named: Any
    ) -> T:
        """Call a function of this model that takes `cancel` in a thread of the running loop's default executor.

        Cancelling the task that awaits this cancels the call, within one node's time, and nothing else of `cancel`.
        """
        import asyncio  # not at the top: it takes longer to import than all of this package

        token = CancelToken(cancel)
        call = partial(function, *args, cancel=token, **named)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, call)
        # The thread cannot be ended from here: its run ends by the token, and then the thread does.
        except asyncio.CancelledError:
            token.cancel()
            raise

    def tokenize(self, texts: str | Iterable[str]) -> list[list[int]]:
        """Turn texts into token ids as `embed` and `generate` do, special tokens and truncation included.

        Args:
            texts: Texts, or pairs of them, `(a, b)`; one str is as a list of one.

        Returns:
            Per text its ids.

        Raises:
            InputError: The bundle has no tokenizer, or a text is none or has no tokens.
        """
        return self._tokenizer.encode(as_list(texts))

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Turn token ids into the texts that `generate` gives for them: without special tokens.

        Raises:
            InputError: The bundle has no tokenizer.
            BundleError: The tokenizer cannot tell them.
        """
        return self._tokenizer.decode([list(row) for row in rows])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if TOKENIZER not in self.manifest.files:
            raise InputError(f"{self.manifest.folder} has no {TOKENIZER}, so it takes no texts; pass token ids")
        generation = self.manifest.generation
        # A tokenizer by character knows all that its model was trained on, so what it does not know is
        # a mistake in the text. To a tokenizer of words, unknown words are normal.
        by_character = generation is not None and generation.split_on_whitespace
        tokenizer = Tokenizer(
            self.manifest.folder / TOKENIZER,
            content=self._companions.content(TOKENIZER),
            max_tokens=self._max_text_tokens(),
            most_tokens=self._most_text_tokens(),
            refuse_unknown=by_character,
            truncation_side=self.manifest.text.truncation_side,
            lower_case=self.manifest.text.lower_case,
        )
        # It is parsed now, and its bytes, megabytes of some tokenizers, are not needed again.
        self._companions.forget(TOKENIZER)
        return tokenizer

    def _max_text_tokens(self) -> int | None:
        """How many tokens texts are truncated to; None: they are not."""
        return None

    def _most_text_tokens(self) -> int | None:
        """Above how many tokens texts are refused; None: they are not."""
        return None

    def _generation(self, max_new_tokens: int | None) -> tuple[Generation, int]:
        generation = self.manifest.generation
        if generation is None:
            raise BundleError(
                f"{self.manifest.folder} does not say how to generate (generation is null in its manifest.json); "
                "export it again with a generation_config.json beside the checkpoint"
            )
        if max_new_tokens is None:
            return generation, generation.max_new_tokens
        return generation, check_count("max_new_tokens", max_new_tokens)

    def _to_rows(self, inputs: Any, signature: Signature, control: Control) -> tuple[list[list[int]], bool]:
        """Turn texts or rows of ids into checked rows of ids, and tell whether they were texts."""
        inputs = as_list(inputs)
        texts = [item for item in inputs if isinstance(item, str)]
        if texts and len(texts) < len(inputs):
            raise InputError("inputs mix texts with token ids; pass all as one or the other")
        return check_rows(self._tokenizer.encode(texts, control) if texts else inputs, signature), bool(texts)


def _load_again(source: Source, digest: str) -> "Model":
    """Open what another process had open."""
    from .loading import load

    tuning = source.tuning
    model = load(
        source.bundle,
        source.provider,
        source.precision,
        source.threads,
        spin=tuning.spin,
        arena=tuning.arena,
        mapped=tuning.mapped,
        options=dict(tuning.options),
    )
    if model.manifest.digest != digest:
        raise BundleError(
            f"{source.bundle} is not the bundle that was pickled: it was replaced; load it in the first process again"
        )
    return model


def as_list(inputs: Any) -> list[Any]:
    """List inputs; one str is a list of one."""
    return list(as_iterator(inputs))


def as_iterator(inputs: Any) -> Iterator[Any]:
    """Go through inputs, one after the other; one str is as a list of one."""
    if isinstance(inputs, str):
        return iter([inputs])
    if isinstance(inputs, (set, frozenset, Mapping)):
        raise InputError(f"inputs must be in order, but are {kind_of(inputs)}; pass a list of its items")
    try:
        # Bytes could be gone through as well, as integers: they are a text that nobody decoded.
        if not isinstance(inputs, (bytes, bytearray, memoryview)):
            return iter(inputs)
    except TypeError:  # an array of no dimensions has __iter__, and yet cannot be gone through
        pass
    raise InputError(f"inputs must be texts or rows of token ids, but are {kind_of(inputs)}")
