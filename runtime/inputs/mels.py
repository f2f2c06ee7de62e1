"""Features of sound as transformers' feature extractors compute them: the logarithm of power in bands of mel.

Formulas are those of Kaldi, Slaney's Auditory Toolbox and Whisper, in float64; transformers computes some in float32.

Shapes: S samples, F frames, N samples of a frame, Q frequencies, M bands.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .arrays import Array

_KALDI_FLOOR = 1.192092955078125e-07
_WHISPER_FLOOR, _WHISPER_RANGE = 1e-10, 8.0
_FRAME, _HOP, _FFT = 400, 160, 512
"""Samples of Kaldi's frames, from one to the next, and of what is transformed: 25 and 10 ms at 16,000 a second."""

Scale = Literal["kaldi", "slaney"]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How a wave is cut and weighed.

    Attributes:
        length: N.
        hop: Samples from a frame to the next.
        fft: Samples that are transformed, those beyond N being 0.
        window: Weights (N,).
        centered: Whether the first frame's middle is the first sample; what lies outside is mirrored.
        preemphasis: Share of the sample before that is taken off; 0: none. The mean of a frame is taken off before.
    """

    length: int
    hop: int
    fft: int
    window: Array
    centered: bool = False
    preemphasis: float = 0.0


def kaldi_features(wave_S: Array, bins: int, rate: int, window: Literal["hann", "povey"]) -> npt.NDArray[np.float32]:
    """Compute what `torchaudio.compliance.kaldi.fbank` does, float32 (F, M).

    Args:
        wave_S: At least a frame of samples.
        bins: M.
        rate: Samples a second.
        window: Weights of a frame.
    """
    weights = np.hanning(_FRAME) ** (0.85 if window == "povey" else 1.0)
    cut = Frames(length=_FRAME, hop=_HOP, fft=_FFT, window=weights, preemphasis=0.97)
    power_FQ = power_spectrum(wave_S, cut)
    bands_QM = kaldi_bands(bins, rate)
    return np.log(np.maximum(power_FQ @ bands_QM, _KALDI_FLOOR)).astype(np.float32)


def fits_a_frame(samples: int) -> bool:
    """Whether so many samples make a frame of Kaldi's."""
    return samples >= _FRAME


def whisper_features(wave_S: Array, bins: int, rate: int, fft: int, hop: int) -> npt.NDArray[np.float32]:
    """Compute Whisper's log-mel spectrogram, float32 (M, F), with a frame for every `hop` samples.

    Args:
        wave_S: With the silence that fills it up.
        bins: M.
        rate: Samples a second.
        fft: N.
        hop: Samples from a frame to the next.
    """
    # Of a periodic window the last weight, which is the first again, is left out.
    cut = Frames(length=fft, hop=hop, fft=fft, window=np.hanning(fft + 1)[:-1], centered=True)
    power_FQ = power_spectrum(wave_S, cut)[:-1]
    log_MF = np.log10(np.maximum(power_FQ @ slaney_bands(bins, rate, fft), _WHISPER_FLOOR)).T
    log_MF = np.maximum(log_MF, log_MF.max() - _WHISPER_RANGE)
    return ((log_MF + 4.0) / 4.0).astype(np.float32)


def power_spectrum(wave_S: Array, cut: Frames) -> npt.NDArray[np.float64]:
    """Compute the power of each frequency in each frame, (F, Q)."""
    wave_S = wave_S.astype(np.float64)
    if cut.centered:
        wave_S = np.pad(wave_S, cut.length // 2, mode="reflect")
    frames_FN = np.lib.stride_tricks.sliding_window_view(wave_S, cut.length)[:: cut.hop]
    if cut.preemphasis:
        frames_FN = frames_FN - frames_FN.mean(1, keepdims=True)
        before_FN = np.concatenate([frames_FN[:, :1], frames_FN[:, :-1]], 1)
        frames_FN = frames_FN - cut.preemphasis * before_FN
    return np.abs(np.fft.rfft(frames_FN * cut.window, cut.fft)) ** 2


@functools.lru_cache(maxsize=8)
def kaldi_bands(bins: int, rate: int) -> npt.NDArray[np.float64]:
    """Make triangles that are even on the scale of mel, from 20 Hz to half the rate, (Q, M)."""
    edges = np.linspace(_mel(20.0), _mel(rate // 2), bins + 2)
    return _triangles(_mel(np.arange(_FFT // 2 + 1) * rate / _FFT), edges)


@functools.lru_cache(maxsize=8)
def slaney_bands(bins: int, rate: int, fft: int) -> npt.NDArray[np.float64]:
    """Make triangles that are even on Slaney's scale, from 0 to 8,000 Hz, each of one area, (Q, M)."""
    # Linear below 1,000 Hz, 15 mels; above it 27 mels for a factor of 6.4.
    mels = np.linspace(0.0, 15.0 + np.log(8.0) * 27.0 / np.log(6.4), bins + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * np.log(6.4) / 27.0))
    found_QM = _triangles(np.linspace(0, rate // 2, fft // 2 + 1), edges)
    return found_QM * (2.0 / (edges[2:] - edges[:-2]))


def _mel(hertz: Array | float) -> Array:
    return np.asarray(1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0))


def _triangles(places_Q: Array, edges: Array) -> npt.NDArray[np.float64]:
    """Rise from each edge to the next, and fall to the one behind it."""
    distance = edges[None] - places_Q[:, None]
    width = np.diff(edges)
    rising, falling = -distance[:, :-2] / width[:-1], distance[:, 2:] / width[1:]
    return np.maximum(0.0, np.minimum(rising, falling))
