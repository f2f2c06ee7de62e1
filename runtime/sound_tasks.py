"""What a model of one graph makes of sounds: text, or labels."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Unpack

from tfm.bundle import CONFIG
from tfm.errors import InputError

from .inputs.batched import Batched, StreamOptions, TaskOptions
from .inputs.sounds import SoundReader, sounds_of, with_rate
from .tasks.base import Squash, Task
from .tasks.labeling import Label, check_top_k, labeling
from .tasks.letters import Letters, Times, Transcript, read_letters, transcribing


class SoundTasks(Batched):
    """A model that writes down what it hears, or labels it."""

    def transcribe(
        self,
        inputs: Any,
        sampling_rate: int | None = None,
        return_timestamps: Times | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[Transcript]:
        """Write down what is said, as Hugging Face's automatic-speech-recognition pipeline does.

        Args:
            inputs: Sounds, or one: files' paths (.wav; any other kind by the package soundfile), arrays of floats from
                -1 to 1 or of int16, (samples,), or dicts of an `array` and its `sampling_rate`. They are prepared as
                preprocessor_config.json says; of another rate than the model's, by the package soxr.
            sampling_rate: Samples a second of arrays; None: the model's.
            return_timestamps: "word" or "char": when each begins and ends as well.
            **options: As of every task.

        Returns:
            For each sound {"text"}, and with times "chunks": {"text", "timestamp"} each, in seconds.

        Raises:
            InputError: The bundle writes nothing down, or does not say how sounds are prepared; or a sound cannot be
                read, or is too short or too long.
        """
        return self._list(self._transcribing(return_timestamps), with_rate(sounds_of(inputs), sampling_rate), options)

    def transcribe_stream(
        self, inputs: Any, return_timestamps: Times | None = None, **options: Unpack[StreamOptions]
    ) -> Iterator[Transcript]:
        """Write down a stream of sounds; yields and raises as `transcribe` does."""
        return self._stream(self._transcribing(return_timestamps), sounds_of(inputs), options)

    def classify_audio(
        self,
        inputs: Any,
        sampling_rate: int | None = None,
        top_k: int | None = 5,
        **options: Unpack[TaskOptions],
    ) -> list[list[Label]]:
        """Label sounds, as Hugging Face's audio-classification pipeline does.

        Args:
            inputs: As of `transcribe`.
            sampling_rate: As of `transcribe`.
            top_k: How many labels of each, the likeliest first; None: all.
            **options: As of every task.

        Returns:
            For each sound {"label", "score"}.

        Raises:
            InputError: The bundle has no labels for sounds, or does not say how they are prepared; or a sound cannot
                be read, or is too short or too long.
        """
        return self._list(self._sound_labeling(top_k), with_rate(sounds_of(inputs), sampling_rate), options)

    def classify_audio_stream(
        self, inputs: Any, top_k: int | None = 5, **options: Unpack[StreamOptions]
    ) -> Iterator[list[Label]]:
        """Label a stream of sounds; yields and raises as `classify_audio` does."""
        return self._stream(self._sound_labeling(top_k), sounds_of(inputs), options)

    async def transcribe_async(self, inputs: Any, **options: Any) -> list[Transcript]:
        """Do what `transcribe` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.transcribe, inputs, **options)

    async def classify_audio_async(self, inputs: Any, **options: Any) -> list[list[Label]]:
        """Do what `classify_audio` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.classify_audio, inputs, **options)

    def _transcribing(self, times: Times | None) -> Task[Transcript]:
        self._require("transcribe", "it writes nothing down")
        if times not in (None, "char", "word"):
            raise InputError(f"return_timestamps must be 'word', 'char' or None, but is {times!r}")
        letters = self._letters
        if times is not None and (letters.hop is None or letters.rate is None):
            raise InputError("the bundle does not say how long a frame is (conv_stride in its config.json)")
        return transcribing(letters, "logits", times)

    def _sound_labeling(self, top_k: int | None) -> Task[list[Label]]:
        self._require("classify_audio", "it has no labels for sounds")
        return labeling(self.manifest, self._outputs["logits"], self._sound_squash, check_top_k(top_k))

    @cached_property
    def _letters(self) -> Letters:
        reader = self._reader
        return read_letters(self._companions, reader.hearing.rate if isinstance(reader, SoundReader) else None)

    @cached_property
    def _sound_squash(self) -> Squash:
        """What makes scores of logits: softmax of a single label too, which a text's pipeline takes as one of two."""
        problem = (self._companions.json(CONFIG) or {}).get("problem_type")
        told = None if problem is None else problem.value
        return {"regression": "none", "multi_label_classification": "sigmoid"}.get(str(told), "softmax")  # type: ignore[return-value]
