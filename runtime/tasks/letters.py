"""Text of the letters that a model hears in each frame (CTC, Graves et al. 2006), as Wav2Vec2CTCTokenizer reads them.

The likeliest letter of each frame is taken; one that is there several times in a row counts once, and the one that
stands for none, which padding has as well, not at all.

Shapes: F frames, V letters.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from tfm.bundle import CONFIG, VOCABULARY, CheckedJson, Companions
from tfm.errors import BundleError, InputError

from ..inputs.checks import Array
from .base import Task
from .masks import read_special

Times = Literal["char", "word"]


class Chunk(TypedDict):
    """A piece of what was said, and when it begins and ends, in seconds; None: it is not known when it ends."""

    text: str
    timestamp: tuple[float | None, float | None]


class Transcript(TypedDict):
    """What was said; and its words, letters or sentences with their times, where these were asked for."""

    text: str
    chunks: NotRequired[list[Chunk]]


@dataclass(frozen=True, kw_only=True)
class Letters:
    """What numbers of logits stand for.

    Attributes:
        of: Number → letter.
        blank: The letter that stands for none.
        unknown: The letter of a number that has no other.
        delimiter: What stands between words.
        space: What is written for it.
        lower_case: Whether text is written in small letters.
        clean: Whether spaces before punctuation go.
        hop: Samples from a frame to the next; None: the bundle does not say.
        rate: Samples a second; None: it does not say.
    """

    of: Mapping[int, str]
    blank: str
    unknown: str
    delimiter: str
    space: str
    lower_case: bool
    clean: bool
    hop: int | None
    rate: int | None


def read_letters(companions: Companions, rate: int | None) -> Letters:
    """Read what vocab.json and the tokenizer's configuration say.

    Args:
        companions: The bundle's.
        rate: Samples a second.

    Raises:
        InputError: The bundle has no vocab.json.
        BundleError: It is malformed.
    """
    vocabulary = companions.json(VOCABULARY)
    if vocabulary is None:
        raise InputError(
            f"{companions.manifest.folder} has no {VOCABULARY}, so nobody knows which letters its logits stand for; "
            "call run(input_values=…), or export it again with one beside the checkpoint"
        )
    told = companions.json("tokenizer_config.json") or {}
    of = _letters_of(companions, vocabulary, told)
    said = {key: value for key, value in told.items() if value.value is not None}
    return Letters(
        of=of,
        blank=read_special(companions, "pad_token") or "<pad>",
        unknown=read_special(companions, "unk_token") or "<unk>",
        delimiter=said["word_delimiter_token"].string() if "word_delimiter_token" in said else "|",
        space=said["replace_word_delimiter_char"].string() if "replace_word_delimiter_char" in said else " ",
        lower_case="do_lower_case" in said and said["do_lower_case"].flag(),
        clean="clean_up_tokenization_spaces" in said and said["clean_up_tokenization_spaces"].flag(),
        hop=_samples_of_a_frame(companions),
        rate=rate,
    )


def _letters_of(
    companions: Companions, vocabulary: Mapping[str, CheckedJson], told: Mapping[str, CheckedJson]
) -> dict[int, str]:
    language = told.get("target_lang")
    # Of several languages each has letters of its own.
    if language is not None and language.value is not None:
        if language.text() not in vocabulary:
            raise BundleError(f"{companions.manifest.folder}/{VOCABULARY} has no letters of {language.text()!r}")
        vocabulary = vocabulary[language.text()].fields()
    of = {value.integer(0): letter for letter, value in vocabulary.items()}
    added = told.get("added_tokens_decoder")
    for number, token in (added.fields() if added is not None else {}).items():
        # The vocabulary itself goes first.
        if number.isdecimal():
            of.setdefault(int(number), token["content"].text())
    return of


def _samples_of_a_frame(companions: Companions) -> int | None:
    strides = (companions.json(CONFIG) or {}).get("conv_stride")
    if strides is None or not isinstance(strides.value, list):
        return None
    found = 1
    for stride in strides.items():
        found *= stride.integer(1)
    return found


def transcribing(letters: Letters, logits: str, times: Times | None) -> Task[Transcript]:
    """Make the task of writing down what a model hears."""

    def finish(item: Any, row: Any, values: Mapping[str, Array]) -> Transcript:
        return written(letters, values[logits].argmax(-1).tolist(), times)

    return Task((logits,), finish)


def written(letters: Letters, numbers: list[int], times: Times | None = None) -> Transcript:
    """Write the numbers of frames as text."""
    heard: list[tuple[str, int, int]] = []
    place = 0
    for letter, run in itertools.groupby(letters.of.get(number, letters.unknown) for number in numbers):
        start, place = place, place + len(list(run))
        if letter != letters.blank:
            heard.append((letters.space if letter == letters.delimiter else letter, start, place))
    text = "".join(letter for letter, _, _ in heard).strip()
    text = text.lower() if letters.lower_case else text
    found: Transcript = {"text": _cleaned(text) if letters.clean else text}
    if times is not None:
        pieces = heard if times == "char" else _words(heard, letters.space)
        hop, rate = letters.hop or 0, letters.rate or 1
        # Multiplied first, as transformers does it: to the last bit.
        found["chunks"] = [{"text": t, "timestamp": (start * hop / rate, end * hop / rate)} for t, start, end in pieces]
    return found


def _words(heard: list[tuple[str, int, int]], space: str) -> list[tuple[str, int, int]]:
    """Put the letters between spaces together."""
    words = []
    for is_space, run in itertools.groupby(heard, key=lambda one: one[0] == space):
        if not is_space:
            letters = list(run)
            words.append(("".join(letter for letter, _, _ in letters), letters[0][1], letters[-1][2]))
    return words


_SPACES = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


def _cleaned(text: str) -> str:
    """Take away spaces before punctuation, in the order in which transformers does it."""
    for before in _SPACES[:4]:
        text = text.replace(before, before[1:])
    text = text.replace(" ' ", "'")
    for before in _SPACES[4:]:
        text = text.replace(before, before[1:])
    return text
