"""What every opened bundle has in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

from tfm.errors import BundleError, InputError

from .batches import check_count, check_rows
from .checks import Array
from .control import CancelToken
from .manifest import Generation, Manifest, Signature
from .messages import kind_of
from .providers import DEVICES
from .session import Session
from .tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"

M = TypeVar("M", bound="Model")
T = TypeVar("T")


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

    run: Callable[..., dict[str, Array]]

    def __init__(self, manifest: Manifest, precision: str, sessions: dict[str, Session]) -> None:
        self.manifest = manifest
        self.precision = precision
        self._sessions = sessions
        first = next(iter(sessions.values()))
        self.provider = first.provider
        self.threads = first.threads
        self.device = DEVICES[self.provider]
        self.skipped: Mapping[str, str] = {}

    def close(self) -> None:
        """Let go of the graphs: runs that have begun finish, new ones raise ClosedError; closing twice does no harm.

        A call of many runs, such as `embed` of many texts, ends with ClosedError at its next run.
        """
        for session in self._sessions.values():
            session.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        except asyncio.CancelledError:
            token.cancel()
            raise

    def tokenize(self, texts: str | Iterable[str]) -> list[list[int]]:
        """Turn texts into token ids as `embed` and `generate` do, special tokens and truncation included.

        Args:
            texts: Texts; one str is as a list of one.

        Returns:
            Per text its ids.

        Raises:
            InputError: The bundle has no tokenizer, or a text is none or has no tokens.
        """
        return self._tokenizer.encode(as_list(texts))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if TOKENIZER not in self.manifest.files:
            raise InputError(f"{self.manifest.folder} has no {TOKENIZER}, so it takes no texts; pass token ids")
        generation = self.manifest.generation
        by_character = generation is not None and generation.split_on_whitespace
        path = self.manifest.folder / TOKENIZER
        return Tokenizer(path, max_tokens=self._max_text_tokens(), refuse_unknown=by_character)

    def _max_text_tokens(self) -> int | None:
        """How many tokens texts are truncated to; None: they are not."""
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

    def _to_rows(self, inputs: Any, signature: Signature) -> tuple[list[list[int]], bool]:
        """Turn texts or rows of ids into checked rows of ids, and tell whether they were texts."""
        inputs = as_list(inputs)
        texts = [item for item in inputs if isinstance(item, str)]
        if texts and len(texts) < len(inputs):
            raise InputError("inputs mix texts with token ids; pass all as one or the other")
        return check_rows(self._tokenizer.encode(texts) if texts else inputs, signature), bool(texts)


def as_list(inputs: Any) -> list[Any]:
    """List inputs; one str is a list of one.

    Raises:
        InputError: They cannot be listed.
    """
    return list(as_iterator(inputs))


def as_iterator(inputs: Any) -> Iterator[Any]:
    """Go through inputs, one after the other; one str is as a list of one.

    Raises:
        InputError: They are none, or in no order: what comes out is in the order of what goes in.
    """
    if isinstance(inputs, str):
        return iter([inputs])
    if isinstance(inputs, (set, frozenset, Mapping)):
        raise InputError(f"inputs must be in order, but are {kind_of(inputs)}; pass a list of its items")
    try:
        if not isinstance(inputs, (bytes, bytearray, memoryview)):
            return iter(inputs)
    except TypeError:  # an array of no dimensions has __iter__, and yet cannot be gone through
        pass
    raise InputError(f"inputs must be texts or rows of token ids, but are {kind_of(inputs)}")
