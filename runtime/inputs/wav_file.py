"""Files of sound: .wav by numpy, any other kind by the package soundfile.

Shapes: C channels, S samples.
"""

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import InputError

from .arrays import Array

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


@dataclass(frozen=True)
class Sound:
    """Samples from -1 to 1 of one channel, float32 (S,), and how many a second has; None: nobody said."""

    wave_S: npt.NDArray[np.float32]
    rate: int | None


def read_sound_file(name: str, path: str | os.PathLike[str]) -> Sound:
    """Read a file; of several channels the mean.

    Raises:
        InputError: It cannot be read, or its kind needs a package that is not installed.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except (OSError, ValueError) as error:  # ValueError: of a NUL in the path
        raise InputError(f"{name} cannot be read: {error}") from error
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return _read_wav(f"{name}, {os.fspath(path)},", content)
    return _by_soundfile(name, path)


def _by_soundfile(name: str, path: str | os.PathLike[str]) -> Sound:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise InputError(
            f"{name}, {os.fspath(path)}, is no .wav file, and reading any other kind needs the package soundfile: "
            "pip install 'tfm-export[audio]'"
        ) from error
    try:
        samples_SC, rate = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except Exception as error:  # soundfile's own, which are no common class in all of its versions
        raise InputError(f"{name}, {os.fspath(path)}, cannot be read as sound: {error}") from error
    return Sound(samples_SC.mean(1).astype(np.float32), int(rate))


def _read_wav(what: str, content: bytes) -> Sound:
    parts = _parts(content)
    form, data = parts.get(b"fmt ", b""), parts.get(b"data")
    if len(form) < 16 or data is None:
        raise InputError(f"{what} is a damaged .wav file: it does not say how its samples are written, or has none")
    kind, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == _EXTENSIBLE and len(form) >= 26:
        kind = int.from_bytes(form[24:26], "little")
    if channels < 1 or rate < 1 or bits % 8 or block != channels * bits // 8:
        raise InputError(f"{what} is a damaged .wav file: {channels} channels of {bits} bits are no {block} bytes")
    samples = _decode(data[: len(data) // block * block], kind, bits)
    if samples is None:
        raise InputError(
            f"{what} is a .wav file of kind {kind} with {bits} bits, which is not read here: PCM of 8 to 32 bits and "
            "floats are; convert it (ffmpeg -i IN -c:a pcm_s16le OUT.wav)"
        )
    return Sound(samples.reshape(-1, channels).mean(1).astype(np.float32), rate)


def _parts(content: bytes) -> dict[bytes, bytes]:
    """Cut a RIFF file into its parts, up to the samples: each is a name, a size and so many bytes."""
    place, found = 12, dict[bytes, bytes]()
    while place + 8 <= len(content) and b"data" not in found:
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        # Of a file that was cut off what is there, as every player does.
        found[name] = content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    return found


def _decode(data: bytes, kind: int, bits: int) -> Array | None:
    """Turn samples into numbers from -1 to 1; None: they are of an unknown form."""
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(data, f"<f{bits // 8}")
    if kind != _PCM or bits not in (8, 16, 24, 32):
        return None
    # The only one without a sign.
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    if bits == 24:
        # Each is put into the upper bytes of four, the lowest being 0.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / np.float64(1 << 31)
    return np.frombuffer(data, f"<i{bits // 8}") / np.float64(1 << (bits - 1))


def resampled(name: str, sound: Sound, rate: int) -> npt.NDArray[np.float32]:
    """Give a wave at another rate.

    Raises:
        InputError: The package for it is not installed.
    """
    if sound.rate is None or sound.rate == rate:
        return sound.wave_S
    try:
        import soxr
    except ImportError as error:
        raise InputError(
            f"{name} has {sound.rate} samples a second, but the model takes {rate}: resample it (ffmpeg -i IN -ar "
            f"{rate} OUT.wav), or install the package soxr: pip install 'tfm-export[audio]'"
        ) from error
    found: Any = soxr.resample(sound.wave_S, sound.rate, rate)
    return np.asarray(found, np.float32)
