"""What decoders and encoder-decoders have in common: they generate.

Shapes: B batch, S new tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from tfm.bundle import TEMPLATE, Signature
from tfm.errors import BundleError, InputError

from ..control import CancelToken, Control
from ..inputs.batches import check_count, length_limit
from ..inputs.chat_template import ChatTemplate, Messages, is_messages, special_tokens
from ..inputs.checks import nearest
from ..model import Model
from ..progress import Progress, reporter
from ..sessions.session import Session
from .constraint import Constraint, grammar_of, vocabulary_of
from .defaults import Limit, check_defaults, merged_settings
from .loop import Begun, continue_rows, search_beams
from .sampling import Sampler
from .settings import GenerationSettings
from .stopping import Stopping


class Generator(Model):
    """A bundle that generates."""

    _batch_size = 16
    """How many go into the graphs at once, unless asked otherwise."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the methods that take texts, what the bundle is for first."""
        return ("generate",)

    @property
    def _decoder(self) -> Session:
        """What gives the next token."""
        raise NotImplementedError

    @property
    def _reads(self) -> Signature:
        """Of the graph that inputs go into."""
        raise NotImplementedError

    def _most_text_tokens(self) -> int | None:
        return length_limit(self._reads)

    def _begin(self, rows: list[list[int]], limit: Limit, control: Control) -> Begun:
        """Read prompts or sources, to go on from as far as the limit."""
        raise NotImplementedError

    @overload
    def generate(
        self,
        inputs: str | Sequence[str],
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[list[int]]: ...
    def generate(
        self,
        inputs: Any,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        progress: Progress = False,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> list[Any]:
        """Generate: what follows each prompt, or what each source becomes.

        What no setting says is as in the checkpoint's generation_config.json; where that says nothing, it is greedy.

        Args:
            inputs: Texts, rows of token ids, or chats, each a list of `{"role": …, "content": …}`; one str or one chat
                is as a list of one.
            max_new_tokens: At most so many new tokens; None: as the manifest says, which may limit the prompt and
                them together. The model's limit may come first.
            batch_size: How many go into the graphs at once, at least 1; None: 16, or 64 into an encoder-decoder; with
                prompt_lookup_num_tokens, and where a text's length changes how it is read (LongRoPE), 1.
            progress: Whether to count inputs on stderr, or a function to tell (done, total).
            cancel: Ends the call from elsewhere.
            timeout: Seconds after which the call ends.
            **settings: Of `GenerationSettings`: do_sample, temperature, top_k, top_p, seed, num_beams, stop, ….

        Returns:
            For each input its output, as text but where the inputs are ids: without prompt, start and end tokens. With
            num_return_sequences > 1, a list of so many.

        Raises:
            InputError: An input that the model must not see, texts without a tokenizer, or a setting that is off.
            BundleError: The bundle does not say how to generate.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        control = Control(cancel, timeout)
        chosen, limit = self._settings(max_new_tokens, settings)
        size = self._size(chosen, batch_size)
        rows, are_texts = self._to_rows(self._written(inputs), self._reads, control)
        each = chosen.num_return_sequences
        results: list[list[Any]] = [[] for _ in rows]
        # Rows of like length go together, so that little of a batch is padding.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        with reporter(progress, len(order)) as tell:
            for start in range(0, len(order), size):
                places = order[start : start + size]
                found = self._generate([rows[place] for place in places], places, chosen, limit, are_texts, control)
                for place, outputs in zip(places, found, strict=True):
                    results[place] = outputs
                tell(len(places))
        return [outputs if each > 1 else outputs[0] for outputs in results]

    def stream(
        self,
        input: Any,
        max_new_tokens: int | None = None,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> Iterator[Any]:
        """Generate for one text or one row of token ids, and give out what there is while it is made.

        Args:
            input: A text, token ids, or a chat.
            max_new_tokens: As for `generate`.
            cancel: Ends the stream from elsewhere.
            timeout: Seconds after which it ends.
            **settings: As for `generate`; one output, and no beams: where those are the bundle's default, a stream
                goes without.

        Yields:
            Parts of the text, none of them empty, which together are what `generate` gives; or the ids.

        Raises:
            InputError: As for `generate`, before the first part.
        """
        control = Control(cancel, timeout)
        chosen, limit = self._stream_settings(max_new_tokens, settings)
        [row], are_texts = self._to_rows(self._written([input]), self._reads, control)
        # The prompt is read now, not in the iterator: what is wrong with it raises in this call.
        return self._parts(self._begin([row], limit, control), chosen, are_texts, control)

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write a chat as the text that the model was trained on, by the checkpoint's own template.

        `generate(messages)` does so by itself; this is for what else a template can be told.

        Args:
            messages: `{"role": "user", "content": …}` and so on, the first one first.
            tools: JSON Schemas of functions that the model may call.
            documents: What it is to answer by.
            add_generation_prompt: Whether the text ends with the beginning of an answer.
            **variables: What else the template is told, such as enable_thinking.

        Returns:
            The text as `apply_chat_template` of transformers gives it; what reads it here adds no special tokens.

        Raises:
            InputError: The bundle has no chat template, or it refuses the messages.
            BundleError: jinja2 is not installed, or the template is malformed.
        """
        if self._chat_template is None:
            raise InputError(
                f"{self.manifest.folder} has no chat_template.jinja, so it takes no messages; pass texts or token ids"
            )
        told = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt, **variables}
        return self._chat_template.render(messages, **told)

    @cached_property
    def _chat_template(self) -> ChatTemplate | None:
        source = self._companions.content(TEMPLATE)
        if source is None:
            return None
        return ChatTemplate(source.decode(), special_tokens(self._companions.json("tokenizer_config.json")))

    def _written(self, inputs: Any) -> Any:
        """Write chats among inputs as texts; all else stays."""
        if is_messages(inputs):
            inputs = [inputs]
        if not isinstance(inputs, list | tuple):
            return inputs
        return [self.apply_chat_template(item) if is_messages(item) else item for item in inputs]

    def _parts(self, begun: Begun, settings: GenerationSettings, are_texts: bool, control: Control) -> Iterator[Any]:
        """Continue one row: parts of its text, or its ids."""
        begun.constraint = self._constraint(settings)
        stopping = self._stopping(begun, settings, are_texts)
        sampler = Sampler(settings.seed, [0]) if settings.do_sample else None
        given = 0
        for [text] in continue_rows(begun, settings, stopping, self._ends, sampler, control):
            if are_texts and text:
                yield text
            elif not are_texts:
                yield from stopping.rows[0][given:]
                given = len(stopping.rows[0])

    async def generate_async(self, *args: Any, **named: Any) -> list[Any]:
        """Do what `generate` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.generate, *args, **named)

    def _generate(
        self,
        rows: list[list[int]],
        places: list[int],
        settings: GenerationSettings,
        limit: Limit,
        are_texts: bool,
        control: Control,
    ) -> list[list[Any]]:
        """Generate for one batch: per row its outputs, num_return_sequences of them."""
        each, begun = settings.num_return_sequences, self._begin(rows, limit, control)
        begun.constraint = self._constraint(settings)
        if settings.num_beams > 1:
            found = search_beams(begun, settings, self._ends, control)
            best = [[tokens for tokens, _ in texts] for texts in found]
            return [self._tokenizer.decode(outputs) for outputs in best] if are_texts else best
        if each > 1:
            begun = _repeated(begun, each)
        # Numbered by the caller's order, not by the batch: batches do not change what is drawn.
        numbers = [place * each + copy for place in places for copy in range(each)]
        outputs = self._draw(begun, settings, numbers, are_texts, control)
        return [outputs[start : start + each] for start in range(0, len(outputs), each)]

    def _draw(
        self, begun: Begun, settings: GenerationSettings, numbers: list[int], are_texts: bool, control: Control
    ) -> list[Any]:
        """Continue each row, by the likeliest token or one that is drawn; give its text or ids."""
        # Texts are made token by token only to find stop strings in them; else once, at the end.
        stopping = self._stopping(begun, settings, are_texts and bool(settings.stop))
        sampler = Sampler(settings.seed, numbers) if settings.do_sample else None
        steps = list(continue_rows(begun, settings, stopping, self._ends, sampler, control))
        # A stop string may end within a token.
        if are_texts and settings.stop:
            return ["".join(parts) for parts in zip(*steps, strict=True)]
        return self._tokenizer.decode(stopping.rows) if are_texts else stopping.rows

    def _stopping(self, begun: Begun, settings: GenerationSettings, are_texts: bool) -> Stopping:
        ends = {*self._ends, *settings.stop_token_ids}
        if not (are_texts or settings.stop):
            return Stopping(begun.limits, end_ids=ends)
        tokenizer = self._tokenizer
        return Stopping(
            begun.limits,
            end_ids=ends,
            stop=settings.stop,
            decode=lambda row: tokenizer.decode([row])[0],
            byte_tokens=tokenizer.byte_tokens,
        )

    def _size(self, settings: GenerationSettings, batch_size: int | None) -> int:
        """How many rows go together."""
        looks = bool(settings.prompt_lookup_num_tokens)
        size = check_count("batch_size", batch_size) if batch_size is not None else 1 if looks else self._batch_size
        if looks and size > 1:
            raise InputError(
                f"prompt_lookup_num_tokens reads guesses of one text at a time, but batch_size is {size}; leave it out"
            )
        # A graph that reads short texts in another way than long ones reads all of a batch in one.
        generation = self.manifest.generation
        return size if generation is None or generation.short_length is None else 1

    def _settings(
        self, max_new_tokens: int | None, settings: dict[str, Any], *, one_text: bool = False
    ) -> tuple[GenerationSettings, Limit]:
        """Put together what is asked for and the bundle's defaults, and tell how far a text goes."""
        generation, most = self._generation(max_new_tokens)
        # Else the dataclass would raise TypeError, and name no setting that is near.
        known = [field.name for field in dataclasses.fields(GenerationSettings)]
        for name in settings:
            if name not in known:
                raise InputError(f"there is no setting {name!r}; {nearest(name, known)}")
        # A length that counts the prompt holds only where nobody asks for a number of new tokens.
        limit = Limit(None, generation.max_length) if max_new_tokens is None and generation.max_length else Limit(most)
        asked = settings if limit.new is None else {"max_new_tokens": most, **settings}
        chosen = GenerationSettings(**merged_settings(self._defaults, asked, one_text=one_text))
        # Here, as a stream's prompt is read before its first part is made.
        self._constraint(chosen)
        return chosen, limit

    def _constraint(self, settings: GenerationSettings) -> Constraint | None:
        """What forbids all that has not the form that is asked for, from the beginning."""
        grammar = grammar_of(settings.json_schema, settings.regex)
        if grammar is None:
            return None
        ends = frozenset({*self._ends, *settings.stop_token_ids})
        if ends not in self._vocabularies:
            self._vocabularies[ends] = vocabulary_of(self._tokenizer.json, self._vocabulary_size, ends)
        return Constraint(self._vocabularies[ends], grammar, ends)

    @cached_property
    def _vocabularies(self) -> dict[frozenset[int], Any]:
        """What llguidance has read of the tokenizer, by the tokens that end a text."""
        return {}

    @property
    def _vocabulary_size(self) -> int:
        return int(next(spec for spec in self._decoder.signature.outputs if spec.name == "logits").shape[-1])

    @cached_property
    def _defaults(self) -> Mapping[str, Any]:
        """The bundle's settings, checked."""
        defaults = self._generation(None)[0].defaults
        try:
            check_defaults(defaults, self._vocabulary_size)
        except InputError as error:
            raise BundleError(
                f"{self.manifest.folder}: generation.defaults in its manifest.json: {error}; "
                "upgrade tfm-export, or export the bundle again"
            ) from error
        return defaults

    def _stream_settings(
        self, max_new_tokens: int | None, settings: dict[str, Any]
    ) -> tuple[GenerationSettings, Limit]:
        """Check settings of what is given out early: they must not make several texts side by side."""
        chosen, limit = self._settings(max_new_tokens, settings, one_text=True)
        if chosen.num_beams > 1 or chosen.num_return_sequences > 1:
            raise InputError(
                "a stream is one text of which nothing is taken back; leave num_beams and num_return_sequences out, or "
                "use generate()"
            )
        return chosen, limit

    def _limits(self, lengths: Sequence[int], limit: Limit) -> list[int]:
        """How many new tokens rows may get."""
        return limit.of(lengths, length_limit(self._decoder.signature))

    @property
    def _ends(self) -> tuple[int, ...]:
        return self._generation(None)[0].eos_token_ids


def _repeated(begun: Begun, count: int) -> Begun:
    """Go on from each prompt so many times; it was read once."""
    rows = np.repeat(np.arange(len(begun.tokens)), count)
    begun.state.select(rows)
    return Begun(
        state=begun.state,
        logits_BV=begun.logits_BV[rows],
        tokens=[list(begun.tokens[row]) for row in rows],
        limits=[begun.limits[row] for row in rows],
        constraint=begun.constraint,
    )
