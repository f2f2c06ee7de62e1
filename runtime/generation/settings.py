"""How to generate: the settings, checked, and the logits processors that they ask for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tfm.bundle import brief
from tfm.errors import InputError

from ..inputs.checks import Array
from .constraint import Constraint, schema_text
from .logits import (
    ForcedTokens,
    LogitsProcessor,
    MinLength,
    MinP,
    NoBadWords,
    NoRepeatNGram,
    RepetitionPenalty,
    SuppressAtLength,
    SuppressTokens,
    Temperature,
    TopK,
    TopP,
)

_MOST_FACTOR = 1000.0  # of logits, which float32 must hold
_MOST_BEAMS = 1024  # as many rows as that go into the graph for each prompt
LENGTH_PENALTY_LIMIT = 5.0  # beyond it, the power of a long text's length leaves float32
ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
ONLY_BEAMS = ("length_penalty", "early_stopping")
_OF_IDS = ("suppress_tokens", "begin_suppress_tokens", "stop_token_ids", "forced_eos_token_id")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How to generate. Names are those of Hugging Face's GenerationConfig; so are meanings, unless said otherwise.

    Defaults leave the model's distribution as it is: sampling takes every token into account, where transformers keeps
    the 50 likeliest unless told otherwise (`top_k=50`). A setting that would have no effect is refused, not ignored.

    Attributes:
        max_new_tokens: At most so many; None: as the bundle says.
        min_new_tokens: No end token before so many.
        min_length: No end token before a row has so many tokens, those of its prompt included.
        do_sample: Draw tokens, rather than take the likeliest.
        temperature: Divides the logits; greater than 0.
        top_k: Keep so many of the likeliest tokens; None or 0: all.
        top_p: Keep the likeliest tokens that together have this probability, in (0, 1].
        min_p: Keep tokens at least so many times as likely as the likeliest, in [0, 1]; None: all.
        seed: Equal seeds give equal texts; None: a fresh one. (transformers uses torch's global generator.)
        repetition_penalty: Divides positive logits of tokens that the row has, and multiplies negative ones.
        no_repeat_ngram_size: So many tokens in a row occur only once; 0: no such rule.
        bad_words_ids: Sequences of ids that must not occur.
        suppress_tokens: Ids that must not occur.
        begin_suppress_tokens: Ids that must not come first; after a forced first token, not after it.
        forced_bos_token_id: What follows a prompt of one token, as an encoder-decoder's start token is.
        forced_eos_token_id: Id or ids, one of which comes last where the greatest length is reached.
        num_beams: 1: no beam search.
        length_penalty: Power of a beam's length by which its score is divided.
        early_stopping: When a prompt's beam search ends: True: as soon as num_beams texts have ended; False: when the
            running beams are unlikely to do better; "never": when they cannot.
        num_return_sequences: How many texts per prompt: the best beams, or independent samples.
        stop: Text ends where one of these strings appears, and does not contain it. (transformers' stop_strings
            leaves it there.)
        stop_token_ids: More ids that end a row, beside the bundle's own.
        prompt_lookup_num_tokens: Read at most so many guesses along with each token, and keep those that are right:
            what followed the last tokens when they were there before. The text is the same, sooner where it repeats
            what it has. Of one row at a time. None or 0: none.
        json_schema: The text is JSON of this schema, a mapping or its text; {}: any JSON. Needs llguidance, as regex
            does. A text that its greatest length ends is the beginning of one.
        regex: The whole text matches it, in the syntax of Rust's regex, which has no look-around.
        logits_processors: Callables `(tokens, logits) -> logits`, applied before temperature and what follows it.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    prompt_lookup_num_tokens: int | None = None
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    logits_processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        """Check each setting, then which go together; sequences become tuples.

        Raises:
            InputError: A setting is malformed, or would have no effect beside the others.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_integer(name, value, least)
        for name in ("temperature", "repetition_penalty"):
            wanted = f"a number in [{1 / _MOST_FACTOR:g}, {_MOST_FACTOR:g}]"
            _check_number(name, getattr(self, name), wanted, lambda value: 1 / _MOST_FACTOR <= value <= _MOST_FACTOR)
        if self.num_beams > _MOST_BEAMS:
            raise InputError(f"num_beams must be at most {_MOST_BEAMS}, but is {brief(self.num_beams)}")
        _check_number("top_p", self.top_p, "a number in (0, 1]", lambda value: 0 < value <= 1)
        if self.min_p is not None:
            _check_number("min_p", self.min_p, "a number in [0, 1], or None", lambda value: 0 <= value <= 1)
        bound = LENGTH_PENALTY_LIMIT
        _check_number(
            "length_penalty", self.length_penalty, f"a number in [-{bound}, {bound}]", lambda value: abs(value) <= bound
        )
        if type(self.do_sample) is not bool:
            raise InputError(f"do_sample must be True or False, but is {self.do_sample!r}")
        if type(self.early_stopping) is not bool and self.early_stopping != "never":
            raise InputError(f"early_stopping must be True, False or 'never', but is {self.early_stopping!r}")
        self._freeze()
        self._check_form()
        self._check_together()
        self._check_lookup()

    def check_ids(self, vocabulary: int) -> None:
        """Check that all ids are of a model with so many.

        Raises:
            InputError: One is not.
        """
        named: dict[str, Any] = {f"bad_words_ids[{i}]": word for i, word in enumerate(self.bad_words_ids)}
        named |= {name: getattr(self, name) for name in _OF_IDS}
        named["forced_bos_token_id"] = None if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        for name, ids in named.items():
            for token in ids or ():
                if token >= vocabulary:
                    raise InputError(f"{name} names the id {token}; this model's ids are in [0, {vocabulary})")

    def _freeze(self) -> None:
        for name, items in self._frozen():
            # The class is frozen; what it was given as lists is frozen here as well.
            object.__setattr__(self, name, items)

    def _frozen(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Each field that is a sequence, checked, as a tuple."""
        words = _sequence("bad_words_ids", self.bad_words_ids, "lists of token ids")
        yield "bad_words_ids", tuple(_ids(f"bad_words_ids[{i}]", word, "leave it out") for i, word in enumerate(words))
        yield "suppress_tokens", _ids("suppress_tokens", self.suppress_tokens)
        yield "begin_suppress_tokens", _ids("begin_suppress_tokens", self.begin_suppress_tokens)
        yield "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids)
        ends = self.forced_eos_token_id
        if ends is not None:
            ends = (ends,) if isinstance(ends, (int, np.integer)) else ends
            yield "forced_eos_token_id", _ids("forced_eos_token_id", ends, "leave it out, or None")
        stop = (self.stop,) if isinstance(self.stop, str) else _sequence("stop", self.stop, "strings")
        for i, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise InputError(f"stop[{i}] must be a string that is not empty, but is {text!r}")
        yield "stop", stop
        calls = _sequence("logits_processors", self.logits_processors, "callables")
        for i, call in enumerate(calls):
            if not callable(call):
                raise InputError(f"logits_processors[{i}] must be callable, but is {call!r}")
        yield "logits_processors", calls

    def _check_together(self) -> None:
        if not self.do_sample:
            self._refuse(ONLY_SAMPLING, "without do_sample=True; set do_sample=True")
        if self.num_beams == 1:
            self._refuse(ONLY_BEAMS, "without num_beams of at least 2; set num_beams")
        elif self.do_sample:
            raise InputError("do_sample=True and num_beams > 1 exclude each other; leave one of them out")
        elif self.stop:
            raise InputError("stop is not available with num_beams > 1; use stop_token_ids, or num_beams=1")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams}, the "
                "number of texts there are to choose from; raise num_beams, or set do_sample=True"
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}; lower it"
            )

    def _check_form(self) -> None:
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        if self.regex is not None and not (isinstance(self.regex, str) and self.regex):
            raise InputError(f"regex must be a string that is not empty, but is {self.regex!r}")

    def _check_lookup(self) -> None:
        if self.prompt_lookup_num_tokens and (self.num_beams > 1 or self.num_return_sequences > 1):
            raise InputError(
                "prompt_lookup_num_tokens reads guesses of one text at a time; leave num_beams and "
                "num_return_sequences out, or prompt_lookup_num_tokens"
            )

    def _refuse(self, names: Sequence[str], why: str) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name in names:
            value = getattr(self, name)
            # top_k=0 keeps all tokens, as None does.
            if value != defaults[name] and not (name == "top_k" and value == 0):
                raise InputError(f"{name}={value!r} has no effect {why}, or leave {name} out")


def processors(
    settings: GenerationSettings,
    *,
    prompt_lengths: Sequence[int],
    limits: Sequence[int],
    eos_token_ids: Sequence[int],
    vocabulary: int,
    constraint: Constraint | None = None,
) -> list[LogitsProcessor]:
    """Make the logits processors that settings ask for, in transformers' order.

    They keep no state: where rows leave the batch or are reordered, make them again for the rows that are there.

    Args:
        settings: The settings.
        prompt_lengths: Per row, how many tokens its prompt has (an encoder-decoder's start token is one).
        limits: Per row, how many new tokens it may have at most.
        eos_token_ids: The bundle's end tokens; those of `settings.stop_token_ids` are added here.
        vocabulary: V, the number of logits.
        constraint: What json_schema or regex asks for.

    Returns:
        The processors; none at all for plain greedy search, which then needs no copy of the logits.
    """
    # Only here, as settings are made before any model is known.
    settings.check_ids(vocabulary)
    prompt_B, limit_B = np.array(prompt_lengths, np.int64), np.array(limits, np.int64)
    ends = {*eos_token_ids, *settings.stop_token_ids}
    made: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        made.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        made.append(NoRepeatNGram(settings.no_repeat_ngram_size))
    if settings.bad_words_ids:
        made.append(NoBadWords(settings.bad_words_ids, ends))
    if ends and (settings.min_length or settings.min_new_tokens):
        # Forced tokens come after it: what they allow, it cannot forbid any more.
        made.append(MinLength(np.maximum(settings.min_length, prompt_B + settings.min_new_tokens), ends))
    if settings.forced_bos_token_id is not None:
        made.append(ForcedTokens(np.ones_like(prompt_B), [settings.forced_bos_token_id]))
    if settings.forced_eos_token_id is not None:
        made.append(ForcedTokens(prompt_B + limit_B - 1, _ids("forced_eos_token_id", settings.forced_eos_token_id)))
    made += _suppressing(settings, prompt_B)
    # The form is last of what forbids: nobody takes back what it needs.
    form = () if constraint is None else (constraint.after(prompt_lengths),)
    return [*made, *settings.logits_processors, *form, *_warpers(settings)]


def _suppressing(settings: GenerationSettings, prompt_B: Array) -> Iterator[LogitsProcessor]:
    """What forbids tokens everywhere, and at the beginning."""
    if settings.suppress_tokens:
        yield SuppressTokens(settings.suppress_tokens)
    if settings.begin_suppress_tokens:
        # Where a prompt of one token is followed by a forced one, the text begins behind that.
        forced_B = (prompt_B == 1) & (settings.forced_bos_token_id is not None)
        yield SuppressAtLength(prompt_B + forced_B, settings.begin_suppress_tokens)


def _warpers(settings: GenerationSettings) -> Iterator[LogitsProcessor]:
    """What changes how likely tokens are drawn."""
    if settings.temperature != 1:
        yield Temperature(settings.temperature)
    if settings.top_k:
        yield TopK(settings.top_k)
    if settings.top_p < 1:
        yield TopP(settings.top_p)
    if settings.min_p:
        yield MinP(settings.min_p)


_LEAST = {
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "top_k": 0,
    "seed": 0,
    "no_repeat_ngram_size": 0,
    "prompt_lookup_num_tokens": 0,
    "forced_bos_token_id": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
}
_OPTIONAL = ("max_new_tokens", "top_k", "seed", "forced_bos_token_id", "prompt_lookup_num_tokens")


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        optional = ", or None" if name in _OPTIONAL else ""
        raise InputError(f"{name} must be an integer of at least {least}{optional}, but is {brief(value)}")


def _check_number(name: str, value: Any, wanted: str, holds: Callable[[float], bool]) -> None:
    # True is an int to Python, but no number that anybody means.
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        hint = "; for the likeliest token, leave do_sample out" if name == "temperature" and value == 0 else ""
        raise InputError(f"{name} must be {wanted}, but is {brief(value)}{hint}")


def _sequence(name: str, value: Any, of: str) -> tuple[Any, ...]:
    try:
        if isinstance(value, (str, bytes)):
            # A str is a sequence too, but of characters; it goes the way of what is none.
            raise TypeError
        return tuple(value)
    except TypeError as error:
        raise InputError(f"{name} must be a sequence of {of}, but is {brief(value)}") from error


def _ids(name: str, value: Any, if_empty: str | None = None) -> tuple[int, ...]:
    ids = _sequence(name, value, "token ids")
    if if_empty is not None and not ids:
        raise InputError(f"{name} is empty; {if_empty}")
    for i, token in enumerate(ids):
        _check_integer(f"{name}[{i}]", token, 0)
    return tuple(map(int, ids))
