"""The bundles of a server, each with its queue."""

import contextlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.runtime import Decoder, EncoderDecoder, Model, load

from .batcher import Batcher
from .decoding import Decoding, Part
from .refusals import RefusedError, refused
from .serve_options import ServeOptions, name_of

_PER_TOKEN = 4
"""Characters of a token, roughly: costs are compared by them before anything is tokenized."""


class Served:
    """One bundle.

    Attributes:
        name: In requests.
        model: Open.
        created: When it was opened, in seconds since 1970.
    """

    def __init__(self, bundle: Path, options: ServeOptions) -> None:
        self.name, self.created = name_of(bundle), int(time.time())
        self.model: Model = load(bundle, precision=options.precision, threads=options.threads)
        self._folder = str(self.model.manifest.folder)
        self._batcher = Batcher(self._run, batch_tokens=options.batch_tokens, most_waiting=options.most_waiting)
        self._decoding: Decoding | None = None
        if isinstance(self.model, Decoder):
            # A prompt and its answer have about a thousand tokens.
            waiting = max(1, options.most_waiting // 1024)
            self._decoding = Decoding(self.model, most_rows=options.most_rows, most_waiting=waiting)

    @property
    def draws(self) -> bool:
        """Whether the bundle draws tokens where nothing is said."""
        generation = self.model.manifest.generation
        return bool(generation and generation.defaults.get("do_sample"))

    @property
    def load(self) -> Mapping[str, int]:
        """How much waits, and how many texts are being generated."""
        decoding = self._decoding
        return {
            "waiting": self._batcher.waiting if decoding is None else decoding.waiting,
            "running": 0 if decoding is None else decoding.rows,
        }

    async def call(self, task: str, inputs: Sequence[Any], **settings: Any) -> list[tuple[Any, int]]:
        """Do a task that does not generate.

        Args:
            task: The name of a method of the model.
            inputs: Texts, pairs or rows of ids.
            **settings: As the task has them; values that can be compared.

        Returns:
            For each input its result and its number of tokens.

        Raises:
            RefusedError: The bundle lacks the task, an input is refused, or too much is waiting.
        """
        if task not in self.model.tasks:
            raise RefusedError(
                400,
                f"the model {self.name} does not {task}; it has: {', '.join(self.model.tasks) or 'no task'}",
                "wrong_model",
                parameter="model",
            )
        with self._refusing():
            return await self._batcher.submit((task, _key(settings)), list(inputs), _cost(inputs))

    async def generate(self, input: Any, most: int, settings: Mapping[str, Any]) -> AsyncGenerator[Part]:
        """Generate one text; parts as they are made by a decoder, else all at once.

        Raises:
            RefusedError: The bundle does not generate, the input is refused, or too much is waiting.
        """
        with self._refusing():
            if self._decoding is not None:
                parts = self._decoding.generate(input, most, settings)
                async with contextlib.aclosing(parts):
                    async for part in parts:
                        yield part
            elif isinstance(self.model, EncoderDecoder):
                key = ("generate", _key({"max_new_tokens": most, **settings}))
                [(row, count)] = await self._batcher.submit(key, [input], _cost([input]))
                yield Part(self.model.detokenize([row])[0], "length" if len(row) >= most else "stop", count, len(row))
            else:
                raise self._no_generator()

    def written(self, messages: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> str:
        """Write a chat by the bundle's template.

        Raises:
            RefusedError: It has none, or that refuses the chat.
        """
        if not isinstance(self.model, Decoder | EncoderDecoder):
            raise self._no_generator()
        with self._refusing():
            return self.model.apply_chat_template(messages, **told)

    def _no_generator(self) -> RefusedError:
        return RefusedError(400, f"the model {self.name} does not generate", "wrong_model", parameter="model")

    async def close(self) -> None:
        """Finish what runs."""
        await self._batcher.close()
        if self._decoding is not None:
            await self._decoding.close()

    def _run(self, key: Any, inputs: list[Any]) -> list[tuple[Any, int]]:
        task, options = key[0], json.loads(key[1])
        # Of several clients: the model ranks the documents of one query at a time.
        if task == "rank":
            return list(zip(self._scores(inputs), self._count(inputs), strict=True))
        # By ids, as a text that is given back cannot be counted in tokens.
        if task == "generate":
            rows = [self.model.tokenize([item])[0] if isinstance(item, str) else item for item in inputs]
            return list(zip(getattr(self.model, task)(rows, **options), map(len, rows), strict=True))
        return list(zip(getattr(self.model, task)(inputs, **options), self._count(inputs), strict=True))

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs of a query and a document, those of one query at once."""
        found: list[float] = []
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            texts = [text for _, text in group]
            ranked = {one["index"]: one["score"] for one in getattr(self.model, "rank")(query, texts)}  # noqa: B009 - not every Model's
            found += [ranked[place] for place in range(len(texts))]
        return found

    def _count(self, inputs: list[Any]) -> list[int]:
        """Count tokens, those of texts by the tokenizer."""
        texts: list[Any] = [item for item in inputs if isinstance(item, str | tuple)]
        counted = iter(map(len, self.model.tokenize(texts)) if texts else ())
        return [next(counted) if isinstance(item, str | tuple) else len(item) for item in inputs]

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (GeneratorExit, RefusedError):
            raise
        except Exception as error:
            raise refused(error, self._folder, self.name) from error


class Models:
    """All bundles of a server."""

    def __init__(self, options: ServeOptions) -> None:
        """Open them.

        Raises:
            TfmError: One does not open.
        """
        self.served = {name_of(bundle): Served(bundle, options) for bundle in options.bundles}

    def __getitem__(self, name: str | None) -> Served:
        """Give a bundle by its name; without one the only one.

        Raises:
            RefusedError: There is none of that name.
        """
        known = ", ".join(self.served)
        if name is None and len(self.served) == 1:
            return next(iter(self.served.values()))
        if name is None:
            raise RefusedError(400, f"model is missing; there are: {known}", parameter="model")
        if name not in self.served:
            raise RefusedError(
                404, f"there is no model {name!r}; there are: {known}", "model_not_found", parameter="model"
            )
        return self.served[name]

    async def close(self) -> None:
        """Finish what runs."""
        for one in self.served.values():
            await one.close()


def _key(settings: Mapping[str, Any]) -> str:
    """Write settings so that equal ones are equal, and can be read again."""
    return json.dumps(settings, sort_keys=True)


def _cost(inputs: Sequence[Any]) -> int:
    """Guess how many tokens inputs have."""
    return sum(_length(item) for item in inputs)


def _length(item: Any) -> int:
    if isinstance(item, str):
        return 2 + len(item) // _PER_TOKEN
    if isinstance(item, tuple):
        return sum(map(_length, item))
    return len(item)
