"""Sound as the numbers that a graph takes, prepared as transformers' feature extractors do it.

Shapes: S samples, F frames, M bands of mel.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfm.bundle import CONFIG, PROCESSOR, CheckedJson, Companions, TensorSpec, brief, kind_of
from tfm.errors import BundleError, InputError

from ..control import Control
from .arrays import Array
from .mels import fits_a_frame, kaldi_features, whisper_features
from .wav_file import Sound, read_sound_file, resampled

_MOST = 8
"""Sounds of a batch: more gain nothing."""

_MOST_RATE = 1 << 20

Kind = Literal["wav2vec2", "whisper", "speech2text", "ast"]

_KINDS: Mapping[str, Kind] = {
    "Wav2Vec2FeatureExtractor": "wav2vec2",
    "Wav2Vec2Processor": "wav2vec2",
    "WhisperFeatureExtractor": "whisper",
    "Speech2TextFeatureExtractor": "speech2text",
    "ASTFeatureExtractor": "ast",
}
"""Feature extractors that are known here, by the name in preprocessor_config.json."""

_BY_FAMILY: Mapping[str, Kind] = {
    "whisper": "whisper",
    "speech_to_text": "speech2text",
    "audio-spectrogram-transformer": "ast",
}
"""Of files that name none, by model_type; any other has waves."""


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What is done to a wave.

    Attributes:
        kind: Whose feature extractor does it.
        rate: Samples a second.
        normalize: Whether a wave, or each band, gets mean 0 and deviation 1.
        bins: M.
        frames: F that every sound is cut or filled up to, of AST's features.
        mean: Of AST's features.
        std: Of AST's features.
        variance: Whether a band of Speech2Text's gets deviation 1 too; `center`: mean 0.
        center: See `variance`.
        fft: Samples of a frame of Whisper's.
        hop: From a frame of Whisper's to the next.
        seconds: How long every sound of Whisper's is made.
    """

    kind: Kind
    rate: int = 16000
    normalize: bool = True
    bins: int = 80
    frames: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    center: bool = True
    variance: bool = True
    fft: int = 400
    hop: int = 160
    seconds: int = 30

    @property
    def samples(self) -> int:
        """Samples of what Whisper hears at once."""
        return self.seconds * self.rate


def read_hearing(companions: Companions) -> Hearing | None:
    """Read what is done to sounds; None: the bundle does not say.

    Raises:
        BundleError: Its feature extractor does other things than those that are known here.
    """
    config = companions.json(PROCESSOR)
    if config is None:
        return None
    kind = _kind(companions, config)
    where = f"{companions.manifest.folder}/{PROCESSOR}"
    rate = _number(config, "sampling_rate", 16000)
    if rate > _MOST_RATE:
        raise config["sampling_rate"].error(f"a number of samples a second up to {_MOST_RATE}")
    # Noise that is drawn anew each time is nothing that could be compared with anything.
    if (dither := config.get("dither")) is not None and dither.number(0):
        raise BundleError(f"{where}: dither adds noise to a sound, which is not done here; set it to 0")
    return _MADE[kind](config, rate)


def _of_waves(config: Mapping[str, CheckedJson], rate: int) -> Hearing:
    return Hearing(kind="wav2vec2", rate=rate, normalize=_flag(config, "do_normalize", True))


def _of_whisper(config: Mapping[str, CheckedJson], rate: int) -> Hearing:
    # Its own do_normalize is of the wave, and asked for by nobody's file.
    return Hearing(
        kind="whisper",
        rate=rate,
        bins=_number(config, "feature_size", 80),
        fft=_number(config, "n_fft", 400),
        hop=_number(config, "hop_length", 160),
        seconds=_number(config, "chunk_length", 30),
    )


def _of_speech_to_text(config: Mapping[str, CheckedJson], rate: int) -> Hearing:
    return Hearing(
        kind="speech2text",
        rate=rate,
        bins=_number(config, "num_mel_bins", 80),
        normalize=_flag(config, "do_ceptral_normalize", True),
        center=_flag(config, "normalize_means", True),
        variance=_flag(config, "normalize_vars", True),
    )


def _of_spectrogram(config: Mapping[str, CheckedJson], rate: int) -> Hearing:
    return Hearing(
        kind="ast",
        rate=rate,
        bins=_number(config, "num_mel_bins", 128),
        frames=_number(config, "max_length", 1024),
        normalize=_flag(config, "do_normalize", True),
        mean=config["mean"].number(-1e6) if "mean" in config else Hearing.mean,
        std=config["std"].number(-1e6) if "std" in config else Hearing.std,
    )


_MADE: Mapping[Kind, Callable[[Mapping[str, CheckedJson], int], Hearing]] = {
    "wav2vec2": _of_waves,
    "whisper": _of_whisper,
    "speech2text": _of_speech_to_text,
    "ast": _of_spectrogram,
}


def _kind(companions: Companions, config: Mapping[str, CheckedJson]) -> Kind:
    named = config.get("feature_extractor_type")
    if named is not None and named.value is not None:
        if named.text() in _KINDS:
            return _KINDS[named.text()]
        raise BundleError(
            f"{companions.manifest.folder}/{PROCESSOR}: what the feature extractor {named.text()!r} does is not known "
            f"here ({', '.join(_KINDS)} are); prepare sounds with it, and call run()"
        )
    model = (companions.json(CONFIG) or {}).get("model_type")
    return _BY_FAMILY.get("" if model is None else model.text(), "wav2vec2")


def _number(config: Mapping[str, CheckedJson], key: str, default: int) -> int:
    value = config.get(key)
    return default if value is None or value.value is None else value.integer(1)


def _flag(config: Mapping[str, CheckedJson], key: str, default: bool) -> bool:
    value = config.get(key)
    return default if value is None or value.value is None else value.flag()


class SoundReader:
    """Reads sounds: files, arrays, and arrays with their sampling rate."""

    def __init__(self, spec: TensorSpec, hearing: Hearing | None, least: int = 1) -> None:
        """Make one of what the graph takes, what is done to sounds, and the fewest samples or frames of one."""
        self._spec, self._hearing, self._least = spec, hearing, least

    def rows(self, items: Sequence[Any], control: Control, *, keep: bool) -> list[Array]:
        """Prepare sounds, float32 each: (S,), (F, M) or Whisper's (M, F)."""
        del keep
        hearing = self.hearing
        found = []
        for place, item in enumerate(items):
            # Reading and transforming may take as long as a small model's run.
            control.check()
            row = prepared(f"inputs[{place}]", read_sound(f"inputs[{place}]", item, hearing.rate), hearing)
            self._check(place, row)
            found.append(row)
        return found

    @property
    def hearing(self) -> Hearing:
        """What is done to sounds."""
        if self._hearing is None:
            raise InputError(
                f"the bundle has no {PROCESSOR}, so nobody knows how sounds are prepared; call "
                f"run({self._spec.name}=…), or export it again with one beside the checkpoint"
            )
        return self._hearing

    def _check(self, place: int, row: Array) -> None:
        shape = self._spec.shape[1:]
        fits = len(shape) == row.ndim and all(
            d == n for d, n in zip(shape, row.shape, strict=True) if isinstance(d, int)
        )
        if not fits:
            raise InputError(f"inputs[{place}] is prepared to {row.shape}, but the model takes {tuple(shape)}")
        if isinstance(shape[0], str) and len(row) < self._least:
            raise InputError(
                f"inputs[{place}] has {len(row)} {shape[0]}, but the model takes at least {self._least}; it is too "
                "short"
            )

    def plan(self, rows: Sequence[Array], batch_tokens: int | None) -> list[list[int]]:
        """Put a few of one length together: a shorter one would have to be padded, which some models hear."""
        most = 1 if batch_tokens is None else _MOST
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_shape.setdefault(row.shape, []).append(place)
        return [places[n : n + most] for places in by_shape.values() for n in range(0, len(places), most)]

    def feeds(self, rows: Sequence[Array]) -> dict[str, Array]:
        """Stack the sounds of a batch."""
        return {self._spec.name: np.stack(rows)}


def sounds_of(inputs: Any) -> Iterable[Any]:
    """Make a list of one of one sound."""
    one = isinstance(inputs, (str, os.PathLike, Mapping)) or (isinstance(inputs, np.ndarray) and inputs.ndim == 1)
    return [inputs] if one else inputs


def with_rate(inputs: Iterable[Any], sampling_rate: int | None) -> Iterable[Any]:
    """Say of arrays how many samples a second they have."""
    if sampling_rate is None:
        return inputs
    return [{"array": item, "sampling_rate": sampling_rate} if is_wave(item) else item for item in inputs]


def is_wave(item: Any) -> bool:
    """Whether an input is samples by themselves."""
    return not isinstance(item, (str, os.PathLike, Mapping))


def read_sound(name: str, item: Any, rate: int) -> npt.NDArray[np.float32]:
    """Read a sound as a wave of so many samples a second, float32 (S,).

    Args:
        name: Of it, for messages.
        item: The path of a file; an array of floats from -1 to 1, or of int16, (S,) or (channels, S), which has this
            rate; or a dict of that, `array`, and its `sampling_rate`.
        rate: Samples a second.

    Raises:
        InputError: It is none, cannot be read, or has another rate and cannot be resampled.
    """
    if isinstance(item, (str, os.PathLike)):
        sound = read_sound_file(name, item)
    elif isinstance(item, Mapping):
        array = item.get("array", item.get("raw"))
        given = item.get("sampling_rate")
        if array is None or isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
            raise InputError(f"{name} must have an array and its sampling_rate, but has {', '.join(map(str, item))}")
        sound = Sound(_as_wave(f"{name}['array']", array), int(given))
    else:
        sound = Sound(_as_wave(name, item), None)
    wave_S = resampled(name, sound, rate)
    if not wave_S.size:
        raise InputError(f"{name} has no samples")
    if not np.isfinite(wave_S).all():
        raise InputError(f"{name} has samples that are no finite numbers")
    return wave_S


def _as_wave(name: str, item: Any) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(item)
    except ValueError as error:  # lists of other lengths
        raise InputError(f"{name} must be samples, but is {kind_of(item)}") from error
    if array.dtype == np.int16:
        array = array / np.float32(1 << 15)
    # Of other integers nobody says what 1 is.
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise InputError(
            f"{name} must be a file's path, or floats from -1 to 1 or int16, (samples,) or (channels, samples), but is "
            f"{brief(item) if array.ndim == 0 else kind_of(item)} of {array.dtype} {array.shape}"
        )
    if array.ndim == 2:
        if array.shape[0] > 2:
            raise InputError(
                f"{name} has shape {array.shape}, and would have {array.shape[0]} channels: pass (channels, samples) "
                "of one or two, or their mean"
            )
        array = array.mean(0)
    return np.ascontiguousarray(array, np.float32)


def prepared(name: str, wave_S: npt.NDArray[np.float32], hearing: Hearing) -> npt.NDArray[np.float32]:
    """Make of a wave what the model takes: samples (S,), features (F, M), or Whisper's (M, F)."""
    if hearing.kind == "wav2vec2":
        return normalized(wave_S) if hearing.normalize else wave_S
    if hearing.kind == "whisper":
        if len(wave_S) > hearing.samples:
            raise InputError(
                f"{name} is {len(wave_S) / hearing.rate:.1f} s long, and this model hears {hearing.seconds} s at once; "
                "transcribe() reads it in parts"
            )
        filled_S = np.pad(wave_S, (0, hearing.samples - len(wave_S)))
        return whisper_features(filled_S, hearing.bins, hearing.rate, hearing.fft, hearing.hop)
    if not fits_a_frame(len(wave_S)):
        raise InputError(f"{name} has {len(wave_S)} samples, which are no frame of 400; it is too short")
    if hearing.kind == "speech2text":
        return _cepstral(kaldi_features(wave_S * np.float32(1 << 15), hearing.bins, hearing.rate, "povey"), hearing)
    return _spectrogram(kaldi_features(wave_S, hearing.bins, hearing.rate, "hann"), hearing)


def normalized(wave_S: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give a wave mean 0 and deviation 1, in float32 as transformers does."""
    return ((wave_S - wave_S.mean()) / np.sqrt(wave_S.var() + 1e-7)).astype(np.float32)


def _cepstral(features_FM: npt.NDArray[np.float32], hearing: Hearing) -> npt.NDArray[np.float32]:
    if hearing.normalize and hearing.center:
        features_FM = features_FM - features_FM.mean(0)
    if hearing.normalize and hearing.variance:
        deviation_M = np.asarray(features_FM.std(0), np.float32)
        # Of a band that never changes, as of silence.
        deviation_M[deviation_M == 0] = 1
        features_FM = features_FM / deviation_M
    return features_FM


def _spectrogram(features_FM: npt.NDArray[np.float32], hearing: Hearing) -> npt.NDArray[np.float32]:
    """Cut to, or fill with zeros up to, so many frames; then shift and scale."""
    features_FM = features_FM[: hearing.frames]
    silence_FM = np.zeros((hearing.frames - len(features_FM), hearing.bins), np.float32)
    features_FM = np.concatenate([features_FM, silence_FM])
    if hearing.normalize:
        features_FM = (features_FM - np.float32(hearing.mean)) / np.float32(hearing.std * 2)
    return features_FM
