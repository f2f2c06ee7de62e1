"""Whisper bundles: what is said, in which language, and when, of sounds of any length.

Shapes: B batch, V vocabulary, S samples, M bands of mel, F features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np

from tfm.bundle import Signature
from tfm.errors import InputError

from .control import Control
from .generation.defaults import Limit
from .generation.dialect import Asked, Dialect, Segment, TimeRule, read_dialect, segments_of
from .generation.settings import GenerationSettings
from .generation.state import DecoderState
from .inputs.checks import Array
from .inputs.mels import whisper_features
from .inputs.sounds import Hearing, SoundReader, prepared, read_sound, sounds_of, with_rate
from .inputs.tokenizer import Tokenizer
from .perceiver import Perceived, Perceiver
from .progress import reporter
from .tasks.letters import Chunk, Transcript


class Whisper(Perceiver):
    """A bundle of Whisper.

    `generate` takes sounds of at most half a minute, and asks as the checkpoint says.
    """

    def transcribe(
        self,
        inputs: Any,
        sampling_rate: int | None = None,
        return_timestamps: Any = None,
        *,
        language: str | None = None,
        task: str | None = None,
        **options: Any,
    ) -> list[Transcript]:
        """Write down what is said.

        Whisper hears half a minute at once. What is longer, or whose times are wanted, it hears in parts, each from
        where the last sentence ended, as transformers' `generate` does it.

        Args:
            inputs: As of `Perceiver.transcribe`.
            sampling_rate: Samples a second of arrays; None: the model's.
            return_timestamps: True or "segment": when each sentence begins and ends as well; None: as the checkpoint
                says.
            language: Of what is said, as "en"; None: as the checkpoint says, or as Whisper hears.
            task: "transcribe", or "translate" into English; None: as the checkpoint says.
            **options: As for `generate`: max_new_tokens (of each part), batch_size, progress, cancel, timeout, and the
                settings.

        Returns:
            For each sound {"text"}, and with times "chunks": {"text", "timestamp"} each, in seconds.

        Raises:
            InputError: As for `generate`; a sound cannot be read; the checkpoint has no such language, task or times.
        """
        asked = self._asked(language, task, return_timestamps)
        control = Control(options.pop("cancel", None), options.pop("timeout", None))
        progress, batch_size = options.pop("progress", False), options.pop("batch_size", None)
        chosen, limit = self._settings(options.pop("max_new_tokens", None), options)
        if chosen.num_return_sequences > 1:
            raise InputError("transcribe() gives one text of each sound; leave num_return_sequences out")
        size, hearing = self._size(chosen, batch_size), self._hearing
        items = list(with_rate(sounds_of(inputs), sampling_rate))
        results: list[Any] = [None] * len(items)
        short: list[tuple[int, Perceived]] = []
        with reporter(progress, len(items)) as tell:
            for place, item in enumerate(items):
                control.check()
                wave_S = read_sound(f"inputs[{place}]", item, hearing.rate)
                if asked.times or len(wave_S) > hearing.samples:
                    results[place] = self._in_parts(_features(wave_S, hearing), asked, chosen, limit, control)
                    tell(1)
                else:
                    short.append((place, Perceived(prepared(f"inputs[{place}]", wave_S, hearing), asked)))
            for start in range(0, len(short), size):
                places, rows = zip(*short[start : start + size], strict=True)
                found = self._generate(list(rows), list(places), chosen, limit, False, control)
                for place, row, [ids] in zip(places, rows, found, strict=True):
                    results[place] = self._in_parts(row.array, asked, chosen, limit, control, said=ids)
                tell(len(places))
        return results

    def _in_parts(
        self,
        features_MF: Array,
        asked: Asked,
        settings: GenerationSettings,
        limit: Limit,
        control: Control,
        said: list[int] | None = None,
    ) -> Transcript:
        """Hear a sound from one end to the other, each part from where the last sentence ended.

        What was said of the first part is known where it is all; yet it may end with times that nobody asked for.
        """
        dialect, hearing = self._dialect, self._hearing
        width, total = hearing.samples // hearing.hop, features_MF.shape[1]
        # Without times nobody knows where to go on.
        timed = dataclasses.replace(asked, times=asked.times or total > width)
        dialect.check(timed)
        if said is None and dialect.must_hear(asked):
            _, context = self._perceive({self._spec.name: _part(features_MF, 0, width)[None]}, control)
            timed = dataclasses.replace(timed, heard=self._heard(1, context, control)[0])
        segments: list[Segment] = []
        seek = 0
        while seek < total:
            frames = min(total - seek, width)
            if said is None:
                part = Perceived(_part(features_MF, seek, width), timed)
                [[said]] = self._generate([part], [0], settings, limit, False, control)
            found, heard = segments_of(said, dialect, seek * hearing.hop / hearing.rate, frames)
            segments += found
            seek, said = seek + max(heard, 1), None
        text = self._text([token for each in segments for token in each.tokens])
        if not asked.times:
            return {"text": text}
        chunks: list[Chunk] = [{"text": self._text(one.tokens), "timestamp": (one.start, one.end)} for one in segments]
        return {"text": text, "chunks": chunks}

    def _asked(self, language: str | None, task: str | None, times: Any) -> Asked:
        if times not in (None, True, False, "segment"):
            raise InputError(
                f"return_timestamps must be True, False or 'segment' here, but is {times!r}: those of words need the "
                "decoder's attention, which its graph does not give"
            )
        wanted = self._dialect.times if times is None else bool(times)
        asked = Asked(language, task, wanted)
        self._dialect.check(asked)
        return asked

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return cast(Tokenizer, _Timeless(Perceiver._tokenizer.func(self), self._dialect.first_time))  # type: ignore[attr-defined]

    @cached_property
    def _dialect(self) -> Dialect:
        generation, _ = self._generation(None)
        return read_dialect(self._companions, generation.bos_token_id or 0, (*generation.eos_token_ids, 0)[0])

    @property
    def _hearing(self) -> Hearing:
        assert isinstance(self._reader, SoundReader)
        return self._reader.hearing

    def _to_rows(self, inputs: Any, signature: Signature, control: Control) -> tuple[list[Any], bool]:
        rows, are_texts = super()._to_rows(inputs, signature, control)
        asked = Asked(times=self._dialect.times)
        return [Perceived(row.array, asked) for row in rows], are_texts

    def _generate(
        self,
        rows: list[Any],
        places: list[int],
        settings: GenerationSettings,
        limit: Limit,
        are_texts: bool,
        control: Control,
    ) -> list[list[Any]]:
        settings, limit = self._adapted(rows[0].asked, settings, limit)
        return super()._generate(rows, places, settings, limit, are_texts, control)

    def _stream_settings(
        self, max_new_tokens: int | None, settings: dict[str, Any]
    ) -> tuple[GenerationSettings, Limit]:
        return self._adapted(Asked(times=self._dialect.times), *super()._stream_settings(max_new_tokens, settings))

    def _adapted(self, asked: Asked, settings: GenerationSettings, limit: Limit) -> tuple[GenerationSettings, Limit]:
        """Add the rule of times where these are wanted, and count the tokens that a target begins with."""
        begin = len(self._dialect.prompt(asked)) + self._dialect.must_hear(asked)
        if limit.whole is not None:
            # What it begins with is on top of a limit of the whole text, as in transformers.
            longest = self._decoder.signature.max_length.get("sequence", limit.whole + begin)
            limit = Limit(limit.new, min(limit.whole + begin, longest))
        if asked.times:
            rule = TimeRule(self._dialect, begin)
            settings = dataclasses.replace(settings, logits_processors=(*settings.logits_processors, rule))
        return settings, limit

    def _prompts(self, rows: Sequence[Perceived], context: Mapping[str, Array], control: Control) -> list[list[int]]:
        dialect, asked = self._dialect, rows[0].asked
        if not dialect.must_hear(asked):
            return [dialect.prompt(asked) for _ in rows]
        heard = self._heard(len(rows), context, control)
        return [dialect.prompt(dataclasses.replace(asked, heard=each)) for each in heard]

    def _heard(self, count: int, context: Mapping[str, Array], control: Control) -> list[int]:
        """Find out in which language each source is: which of their tokens is the likeliest behind the first one."""
        logits_BV = DecoderState(self._decoder, count, context).read([[self._dialect.start]] * count, control)
        ids = np.array(list(self._dialect.languages.values()))
        return [int(ids[place]) for place in logits_BV[:, ids].argmax(1)]


class _Timeless:
    """A tokenizer that writes no times, which are no special tokens, and no text either."""

    def __init__(self, tokenizer: Tokenizer, first_time: int) -> None:
        self._tokenizer, self._first_time = tokenizer, first_time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, rows: list[list[int]], **options: Any) -> list[str]:
        """Turn ids into texts."""
        return self._tokenizer.decode([[t for t in row if t < self._first_time] for row in rows], **options)


def _features(wave_S: Array, hearing: Hearing) -> Array:
    """Make features (M, F) of all of a sound: with silence behind it where it is short."""
    if len(wave_S) <= hearing.samples:
        return prepared("it", wave_S, hearing)
    return whisper_features(wave_S, hearing.bins, hearing.rate, hearing.fft, hearing.hop)


def _part(features_MF: Array, start: int, width: int) -> Array:
    part_MF = features_MF[:, start : start + width]
    return np.pad(part_MF, ((0, 0), (0, width - part_MF.shape[1])))
