"""Encoder-decoder bundles that read sounds or images: they write down what is said, or what is to be seen.

Shapes: B batch, S target sequence, D model size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tfm.bundle import TOKENIZER, Signature
from tfm.errors import InputError, MissingTaskError

from .control import CancelToken, Control
from .encoder_decoder import EncoderDecoder
from .generation.defaults import Limit
from .generation.dialect import Asked
from .generation.generator import Generator
from .generation.loop import Begun, continue_greedily
from .generation.settings import GenerationSettings
from .generation.state import DecoderState, from_nothing
from .image_tasks import images_of
from .inputs.checks import Array
from .inputs.pixels import PixelReader, read_preparation
from .inputs.sounds import SoundReader, read_hearing, sounds_of, with_rate
from .open_bundle import OpenBundle
from .tasks.letters import Transcript


@dataclass(frozen=True)
class Perceived:
    """What the encoder reads of one source, and what is asked of it."""

    array: Array
    asked: Asked = field(default_factory=Asked)

    def __len__(self) -> int:
        return len(self.array)


class Perceiver(EncoderDecoder):
    """A bundle that writes what it hears or sees.

    `generate` takes what `transcribe` or `image_to_text` does, and gives texts, or ids where there is no tokenizer.
    """

    def __init__(self, opened: OpenBundle) -> None:
        # Not EncoderDecoder's, which prepares the checks of two graphs' ids.
        Generator.__init__(self, opened)
        [self._spec] = opened.manifest.signature["encoder"].inputs

    _batch_size = 8

    @property
    def _hears(self) -> bool:
        return self._spec.name != "pixel_values"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the methods that take sounds or images, what the bundle is for first."""
        return ("transcribe" if self._hears else "image_to_text", "generate")

    def translate(self, *_: Any, **__: Any) -> list[Any]:
        """Say that texts are no input of this model.

        Raises:
            MissingTaskError: Always.
        """
        raise MissingTaskError(f"{self.manifest.folder} reads no texts and has no translate(); it has {self._named}")

    @property
    def _named(self) -> str:
        return ", ".join([*self.tasks, "run"])

    # Two graphs, of which this is neither's.
    def run(  # type: ignore[override]
        self,
        source: Any,
        decoder_input_ids: Any,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run the encoder, then the decoder from an empty cache (teacher forcing).

        Args:
            source: What the encoder takes, float32 (B, …): pixels or features that are prepared.
            decoder_input_ids: Target ids, int64 (B, S).
            cancel: Ends the run from elsewhere.
            timeout: Seconds after which the run ends.

        Returns:
            logits, float32 (B, S, V), and last_hidden_state of the encoder.

        Raises:
            InputError: An input that the graphs must not see.
        """
        control, decoder = Control(cancel, timeout), self._decoder
        hidden_BTD, context = self._perceive({self._spec.name: source}, control)
        target_BS = np.asarray(decoder_input_ids)
        if target_BS.ndim != 2 or len(target_BS) != len(hidden_BTD):
            raise InputError(
                f"decoder_input_ids has shape {target_BS.shape}, but must be ({len(hidden_BTD)}, sequence), a row for "
                "each source"
            )
        feeds = {"input_ids": target_BS, **from_nothing(decoder.signature, *target_BS.shape), **context}
        return {**decoder.run(feeds, outputs="logits", control=control), "last_hidden_state": hidden_BTD}

    def image_to_text(self, images: Any, max_new_tokens: int | None = None, **options: Any) -> list[Any]:
        """Write what images show, as Hugging Face's image-to-text pipeline does.

        Args:
            images: Images, or one: files' paths, images of PIL's, or arrays of uint8, as of `classify_images`.
            max_new_tokens: As for `generate`.
            **options: As for `generate`: batch_size, progress, cancel, timeout, and the settings.

        Returns:
            For each image its text; where the bundle has no tokenizer, its ids.

        Raises:
            InputError: As for `generate`; or an image cannot be read.
        """
        if self._hears:
            raise MissingTaskError(f"{self.manifest.folder} sees no images; it has {self._named}")
        return self.generate(images, max_new_tokens, **options)

    def transcribe(
        self, inputs: Any, sampling_rate: int | None = None, return_timestamps: Any = None, **options: Any
    ) -> list[Transcript]:
        """Write down what is said, as Hugging Face's automatic-speech-recognition does.

        Args:
            inputs: Sounds, or one: files' paths (.wav; any other kind by the package soundfile), arrays of floats from
                -1 to 1 or of int16, (samples,), or dicts of an `array` and its `sampling_rate`. They are prepared as
                preprocessor_config.json says; of another rate than the model's, by the package soxr.
            sampling_rate: Samples a second of arrays; None: the model's.
            return_timestamps: Of Whisper alone.
            **options: As for `generate`: max_new_tokens, batch_size, progress, cancel, timeout, and the settings.

        Returns:
            For each sound {"text"}.

        Raises:
            InputError: As for `generate`; or a sound cannot be read.
        """
        if not self._hears:
            raise MissingTaskError(f"{self.manifest.folder} hears nothing; it has {self._named}")
        for name, value in {"return_timestamps": return_timestamps, **options}.items():
            if value and name in ("return_timestamps", "language", "task"):
                raise InputError(f"{name}={value!r} is for Whisper; this is {self.manifest.family}; leave it out")
        items: list[Any] = list(with_rate(sounds_of(inputs), sampling_rate))
        found = self.generate(items, **options)
        return [{"text": self._text(each)} for each in found]

    async def transcribe_async(self, inputs: Any, **options: Any) -> list[Transcript]:
        """Do what `transcribe` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.transcribe, inputs, **options)

    def _text(self, found: Any) -> str:
        """Give what was generated as text, which without a tokenizer nobody can."""
        return found if isinstance(found, str) else self._tokenizer.decode([list(found)])[0]

    @cached_property
    def _reader(self) -> SoundReader | PixelReader:
        if not self._hears:
            return PixelReader(self._spec, read_preparation(self._companions))
        least = next(iter(self._reads.min_length.values()), 1)
        return SoundReader(self._spec, read_hearing(self._companions), least)

    def _size(self, settings: GenerationSettings, batch_size: int | None) -> int:
        # Sources whose size may vary are not padded.
        if any(isinstance(dim, str) for dim in self._spec.shape[1:]):
            if batch_size not in (None, 1):
                raise InputError(f"this model reads its sources one by one, but batch_size is {batch_size}")
            return 1
        return super()._size(settings, batch_size)

    def perceive(self, inputs: Any) -> list[Perceived]:
        """Prepare sounds or images as `generate` does: of what this gives, that gives ids.

        Args:
            inputs: As of `generate`.

        Raises:
            InputError: One cannot be read, or nobody knows how they are prepared.
        """
        return self._to_rows(inputs, self._reads, Control(None))[0]

    def greedy(self, source: Any, start: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Write the likeliest target of each source that is prepared, whatever the bundle's settings are.

        Args:
            source: What the encoder takes, float32 (B, …).
            start: The tokens that targets begin with.
            max_new_tokens: At most so many.
        """
        _, context = self._perceive({self._spec.name: source}, Control(None))
        count = len(next(iter(context.values())))
        state = DecoderState(self._decoder, count, context)
        return continue_greedily(state, [list(start)] * count, self._ends, max_new_tokens)

    def _to_rows(self, inputs: Any, signature: Signature, control: Control) -> tuple[list[Any], bool]:
        items = list(sounds_of(inputs) if self._hears else images_of(inputs))
        if items and all(isinstance(item, Perceived) for item in items):
            return items, False
        rows = self._reader.rows(items, control, keep=False)
        return [Perceived(row) for row in rows], TOKENIZER in self.manifest.files

    def _begin(self, rows: list[Any], limit: Limit, control: Control) -> Begun:
        _, context = self._perceive({self._spec.name: np.stack([row.array for row in rows])}, control)
        start = self._prompts(rows, context, control)
        state = DecoderState(self._decoder, len(rows), context)
        limits = self._limits([len(row) for row in start], limit)
        return Begun(state=state, logits_BV=state.read(start, control), tokens=start, limits=limits)

    def _prompts(self, rows: Sequence[Perceived], context: Mapping[str, Array], control: Control) -> list[list[int]]:
        """Tell with which tokens each target begins."""
        del context, control
        generation, _ = self._generation(None)
        return [[generation.bos_token_id or 0] for _ in rows]

    def _perceive(self, feeds: Mapping[str, Any], control: Control) -> tuple[Array, dict[str, Array]]:
        """Run the encoder; return its last state, and what the decoder needs of the source."""
        found = self._sessions["encoder"].run(feeds, control=control)
        hidden_BTD = found.pop("last_hidden_state")
        return hidden_BTD, {name.replace("present.", "past_key_values."): array for name, array in found.items()}
