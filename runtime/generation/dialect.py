"""How Whisper is asked (Radford et al. 2022, arXiv:2212.04356): the tokens that it begins with, and its times.

A target begins with a language, a task and whether times are wanted; times are tokens of their own, 20 ms apart, which
stand in pairs around what is said. The rules are those of transformers' WhisperGenerationMixin and
WhisperTimeStampLogitsProcessor.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tfm.bundle import GENERATION_CONFIG, CheckedJson, Companions
from tfm.errors import InputError

from ..inputs.checks import Array
from .logits import Tokens

TASKS = ("transcribe", "translate")

_PRECISION = 0.02
"""Seconds from a time to the next."""

_STRIDE, _FEATURE = 2, 0.01
"""Features that become one place of the encoder, and seconds from a feature to the next."""


@dataclass(frozen=True)
class Asked:
    """What is asked for: see `tfm.runtime.Whisper.transcribe`.

    Attributes:
        language: Such as "en"; None: the checkpoint's own, or the one that is found out.
        task: One of `TASKS`; None: the checkpoint's own.
        times: Whether times are wanted.
        heard: The token of the language, where it was found out already.
    """

    language: str | None = None
    task: str | None = None
    times: bool = False
    heard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a generation_config.json says of how to ask.

    Attributes:
        start: Begins a target.
        end: Ends it.
        languages: Token, such as <|en|> → its id.
        tasks: Name → id.
        silent: The token that says that no times are wanted.
        forced: Ids that follow `start` where nobody asks for another language or task; None: one that is found out.
        multilingual: Whether there is more than one language.
        language: Where nobody asks for another one.
        task: Where nobody asks for another one.
        times: Whether times are given where nobody says so.
        latest: The greatest time that may come first, in steps.
    """

    start: int
    end: int
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    silent: int | None = None
    forced: tuple[int | None, ...] = ()
    multilingual: bool = True
    language: str | None = None
    task: str | None = None
    times: bool = False
    latest: int | None = None

    @property
    def first_time(self) -> int:
        """The id of the time 0; those above it are later ones."""
        return (1 << 62) if self.silent is None else self.silent + 1

    def check(self, asked: Asked) -> None:
        """Refuse what the checkpoint has no token for.

        Raises:
            InputError: It has none.
        """
        language, task = asked.language, asked.task
        if (language or task) and not self.multilingual:
            raise InputError("this model knows English alone; leave language and task out")
        if language is not None:
            self.language_id(language)
        self._check_task(task)
        if asked.times and self.silent is None:
            raise InputError(
                "the checkpoint's generation_config.json has no no_timestamps_token_id, so there are no times; leave "
                "return_timestamps out"
            )

    def _check_task(self, task: str | None) -> None:
        if task is not None and (task not in TASKS or task not in self.tasks):
            raise InputError(f"task must be one of {', '.join(self.tasks) or 'none'}, but is {task!r}; leave it out")

    def language_id(self, language: str) -> int:
        """Give the token of a language, such as "en" or "<|en|>"."""
        for name in (language, f"<|{language.lower()}|>"):
            if name in self.languages:
                return self.languages[name]
        known = ", ".join(sorted(name.strip("<|>") for name in self.languages))
        raise InputError(f"language must be one of {known or 'none'}, but is {language!r}; leave it out")

    def must_hear(self, asked: Asked) -> bool:
        """Whether the language is to be found out first."""
        if not self.languages or asked.heard is not None or (asked.language or self.language) is not None:
            return False
        tokens = self._forced(asked)
        return not tokens or tokens[0] is None

    def prompt(self, asked: Asked) -> list[int]:
        """Give the tokens that a target begins with; a language that is to be found out is left out."""
        tokens = [self.start, *self._forced(asked)]
        language, task = asked.language or self.language, asked.task or self.task
        known = asked.heard if language is None else self.language_id(language)
        if known is not None:
            tokens[1:2] = [known]
        # A language alone is written down, not translated, unless the tokens say a task already.
        if task is None and language is not None and self.tasks and not {*self.tasks.values()} & {*tokens}:
            task = "transcribe"
        if task is not None:
            tokens.append(self.tasks[task])
        return self._with_times([token for token in tokens if token is not None], asked.times)

    def _with_times(self, tokens: list[int], times: bool) -> list[int]:
        """End a prompt by the token that says that there are no times, or take it away."""
        said = tokens[-1] == self.silent
        if self.silent is not None and not times and not said:
            return [*tokens, self.silent]
        return tokens[:-1] if times and said else tokens

    def _forced(self, asked: Asked) -> tuple[int | None, ...]:
        named = (asked.language, asked.task, self.language, self.task)
        return self.forced if all(each is None for each in named) else ()


def read_dialect(companions: Companions, start: int, end: int) -> Dialect:
    """Read it.

    Raises:
        BundleError: The file is malformed.
    """
    told = companions.json(GENERATION_CONFIG) or {}

    def value(key: str) -> CheckedJson | None:
        found = told.get(key)
        return None if found is None or found.value is None else found

    def ids(key: str) -> dict[str, int]:
        found = value(key)
        return {} if found is None else {name: each.integer(0) for name, each in found.fields().items()}

    def text(key: str) -> str | None:
        found = value(key)
        return None if found is None else found.text()

    def integer(key: str) -> int | None:
        found = value(key)
        return None if found is None else found.integer(0)

    def flag(key: str, default: bool) -> bool:
        found = value(key)
        return default if found is None else found.flag()

    return Dialect(
        start=start,
        end=end,
        languages=ids("lang_to_id"),
        tasks=ids("task_to_id"),
        silent=integer("no_timestamps_token_id"),
        forced=_forced(value("forced_decoder_ids")),
        multilingual=flag("is_multilingual", True),
        language=text("language"),
        task=text("task"),
        times=flag("return_timestamps", False),
        latest=integer("max_initial_timestamp_index"),
    )


def _forced(value: CheckedJson | None) -> tuple[int | None, ...]:
    """Read pairs of a place and a token, from place 1 on without a gap."""
    found: list[int | None] = []
    for pair in [] if value is None else value.items():
        place, token = pair.items()
        if place.integer(0) != len(found) + 1:
            raise pair.error(f"the place {len(found) + 1} and its token")
        found.append(token.optional_integer(0))
    return tuple(found)


class TimeRule:
    """Have times stand in pairs, never fall, and come where they are likelier together than any word."""

    def __init__(self, dialect: Dialect, begin: int) -> None:
        """Begin to look at each row from a place on, behind its prompt."""
        self._dialect, self._begin, self._first = dialect, begin, dialect.first_time

    def __call__(self, tokens: Tokens, logits_BV: Array) -> Array:
        """Overwrite and return the logits."""
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            self._apply([int(token) for token in row[self._begin :]], logits_V)
        return logits_BV

    def _apply(self, said: list[int], logits_V: Array) -> None:
        first = self._first
        logits_V[self._dialect.silent] = -np.inf
        self._pair(said, logits_V)
        if not said:
            logits_V[:first] = -np.inf
            if self._dialect.latest is not None:
                logits_V[first + self._dialect.latest + 1 :] = -np.inf
        # Not of probabilities: what they are divided by is the same on both sides.
        if _log_sum(logits_V[first:]) > logits_V[:first].max(initial=-np.inf):
            logits_V[:first] = -np.inf

    def _pair(self, said: list[int], logits_V: Array) -> None:
        """Have a time that ends what is said followed by the one that begins what comes next, and none fall."""
        first = self._first
        last_is_time = bool(said) and said[-1] >= first
        one_before_too = len(said) < 2 or said[-2] >= first
        if last_is_time:
            # Behind a pair a word follows; behind one alone a time, or the end.
            of_words = slice(first, None) if one_before_too else slice(None, self._dialect.end)
            logits_V[of_words] = -np.inf
        times = [token for token in said if token >= first]
        if times:
            # A pair may be one time twice; beyond it the next is later.
            logits_V[first : times[-1] + (0 if last_is_time and not one_before_too else 1)] = -np.inf


def _log_sum(logits: Array) -> float:
    most = float(logits.max(initial=-np.inf))
    return most if most == -np.inf else most + float(np.log(np.exp(logits - most).sum()))


@dataclass(frozen=True)
class Segment:
    """Tokens between two times, these included, and the seconds from the beginning of what was heard."""

    tokens: list[int]
    start: float
    end: float


def segments_of(said: Sequence[int], dialect: Dialect, offset: float, frames: int) -> tuple[list[Segment], int]:
    """Cut what was said of a stretch of sound into segments, and tell how many features of it have been heard.

    Args:
        said: Tokens behind the prompt, without the one that ended them.
        dialect: Of the model.
        offset: Seconds before the stretch.
        frames: Features of it.
    """
    first = dialect.first_time
    cuts, ends_with_one = _cuts([token >= first for token in said])
    if not cuts:
        return [_whole(said, first, offset, frames)], frames
    found, begin = [], 0
    for number, cut in enumerate(cuts):
        part = list(said[begin:cut])
        # The last one has the time that begins the next as well, unless nothing is said behind it.
        end = part[-1 if number < len(cuts) - 1 or ends_with_one else -2] - first
        found.append(Segment(part, offset + (part[0] - first) * _PRECISION, offset + end * _PRECISION))
        begin = cut
    # What was begun and not ended is heard again, from where the last one ended.
    return found, frames if ends_with_one else (said[begin - 2] - first) * _STRIDE


def _cuts(is_time: Sequence[bool]) -> tuple[list[int], bool]:
    """Tell where segments end, between two times, and whether what is said ends with a single time."""
    cuts = [place + 1 for place in range(len(is_time) - 1) if is_time[place] and is_time[place + 1]]
    ends_with_one = list(is_time[-2:]) == [False, True]
    if cuts and ends_with_one:
        cuts.append(len(is_time))
    elif cuts:
        cuts[-1] += 1
    return cuts, ends_with_one


def _whole(said: Sequence[int], first: int, offset: float, frames: int) -> Segment:
    """Make one segment of all that was said: it ends with the last time, if there is one."""
    # As torch rounds it.
    last = int(np.float32(frames) * np.float32(_FEATURE) / np.float32(_PRECISION))
    times = [token for token in said if token >= first]
    if times and times[-1] != first:
        last = times[-1] - first
    return Segment(list(said), offset, offset + last * _PRECISION)
