"""Features of sound are those of transformers' feature extractors, and files of sound are read as they were written."""

import struct
import sys
import types
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.sound_models import sounds
from tfm.errors import BundleError, InputError
from tfm.runtime.inputs.sounds import Hearing, prepared, read_sound
from tfm.runtime.inputs.wav_file import read_sound_file

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

NEAR = 1e-5
FEW_BANDS = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
"""Of 128 bands, the lowest are narrower than two frequencies lie apart."""


@pytest.mark.parametrize("normalize", [True, False])
def test_waves(normalize: bool) -> None:
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    for heard in sounds():
        expected = extractor(heard, sampling_rate=16000).input_values[0]
        found = prepared("x", heard, Hearing(kind="wav2vec2", normalize=normalize))
        np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)
        assert found.dtype == np.float32


@pytest.mark.parametrize("sizes", [{}, {"feature_size": 128}, {"chunk_length": 2, "n_fft": 320, "hop_length": 80}])
def test_whisper(sizes: dict[str, int]) -> None:
    extractor = transformers.WhisperFeatureExtractor(**sizes)
    names = {"feature_size": "bins", "chunk_length": "seconds", "n_fft": "fft", "hop_length": "hop"}
    hearing = Hearing(kind="whisper", **{names[name]: size for name, size in sizes.items()})
    for heard in sounds():
        if len(heard) > hearing.samples:
            with pytest.raises(InputError, match="and this model hears 2 s at once"):
                prepared("x", heard, hearing)
            continue
        found = prepared("x", heard, hearing)
        filled = np.pad(heard, (0, hearing.samples - len(heard)))
        np.testing.assert_allclose(
            found, extractor._np_extract_fbank_features(filled[None], "cpu")[0], rtol=0, atol=NEAR
        )
        # Where torch is, it computes in float32, of which the quietest bands have fewer digits.
        expected = extractor(heard, sampling_rate=16000, return_tensors="np").input_features[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"normalize_vars": False}, {"normalize_means": False}])
def test_speech_to_text(options: dict[str, bool]) -> None:
    extractor = transformers.Speech2TextFeatureExtractor(**options)
    hearing = Hearing(
        kind="speech2text", center=options.get("normalize_means", True), variance=options.get("normalize_vars", True)
    )
    for heard in sounds()[:-1]:  # of silence theirs are 0 / 0
        expected = extractor(heard, sampling_rate=16000).input_features[0]
        np.testing.assert_allclose(prepared("x", heard, hearing), expected, rtol=NEAR, atol=NEAR)
    assert np.isfinite(prepared("x", sounds()[-1], hearing)).all()


@FEW_BANDS
@pytest.mark.parametrize("sizes", [{}, {"num_mel_bins": 40, "max_length": 90}, {"do_normalize": False}])
def test_spectrogram_of_ast(sizes: dict[str, Any]) -> None:
    extractor = transformers.ASTFeatureExtractor(**sizes)
    hearing = Hearing(
        kind="ast",
        bins=sizes.get("num_mel_bins", 128),
        frames=sizes.get("max_length", 1024),
        normalize=sizes.get("do_normalize", True),
    )
    for heard in sounds():
        expected = extractor(heard, sampling_rate=16000).input_values[0]
        np.testing.assert_allclose(prepared("x", heard, hearing), expected, rtol=0, atol=NEAR)


def test_what_makes_no_frame_is_refused() -> None:
    for kind in ("ast", "speech2text"):
        with pytest.raises(InputError, match="x has 399 samples, which are no frame of 400; it is too short"):
            prepared("x", np.zeros(399, np.float32), Hearing(kind=kind))


WAVE = (np.sin(np.arange(700) / 9) * 0.7).astype(np.float64)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wav_file_is_read_as_it_was_written(tmp_path: Path, width: int, channels: int) -> None:
    file, top = tmp_path / "a.wav", 1 << (8 * width - 1)
    numbers = np.round(WAVE * (top - 1)).astype(np.int64) + (128 if width == 1 else 0)
    both = np.stack([numbers, np.zeros_like(numbers) + (128 if width == 1 else 0)], 1)[:, :channels]
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(11025)
        out.writeframes(both.reshape(-1).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
    found = read_sound_file("x", file)
    assert found.rate == 11025
    np.testing.assert_allclose(found.wave_S, WAVE / channels, rtol=0, atol=max(1.5 / top, 6e-8))  # float32 has no more


def riff(form: bytes, data: bytes, between: bytes = b"") -> bytes:
    parts = b"fmt " + struct.pack("<I", len(form)) + form + between + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WAVE" + parts


def test_floats_extensible_and_odd_parts_are_read(tmp_path: Path) -> None:
    floats = WAVE.astype("<f4").tobytes()
    plain = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    wide = struct.pack("<HHIIHH", 0xFFFE, 1, 16000, 64000, 4, 32) + struct.pack("<HHIH", 22, 32, 4, 3) + bytes(14)
    double = struct.pack("<HHIIHH", 3, 1, 16000, 128000, 8, 64)
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    for content in (riff(plain, floats), riff(wide, floats, odd), riff(double, WAVE.astype("<f8").tobytes())):
        (tmp_path / "a.wav").write_bytes(content)
        np.testing.assert_allclose(read_sound("x", tmp_path / "a.wav", 16000), WAVE, rtol=0, atol=1e-7)
    # Cut off, as what was recorded last: what is there is read.
    (tmp_path / "a.wav").write_bytes(riff(plain, floats)[:-402])
    assert len(read_sound("x", tmp_path / "a.wav", 16000)) == 599


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"RIFF\0\0\0\0WAVE", "is a damaged .wav file: it does not say how its samples are written, or has none"),
        (riff(b"short", b""), "is a damaged .wav file: it does not say how its samples are written, or has none"),
        (riff(struct.pack("<HHIIHH", 1, 0, 1, 1, 0, 16), b"ab"), "0 channels of 16 bits are no 0 bytes"),
        (riff(struct.pack("<HHIIHH", 1, 1, 1, 1, 1, 12), b"ab"), "1 channels of 12 bits are no 1 bytes"),
        (riff(struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8), b"ab"), "of kind 6 with 8 bits, which is not read here"),
    ],
)
def test_a_bad_wav_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_sound_file("inputs[0]", tmp_path / "a.wav")


def test_other_kinds_and_rates_go_by_packages_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(
        InputError, match=r"is no .wav file, and reading any other kind needs the package soundfile: pip"
    ):
        read_sound("x", tmp_path / "a.flac", 16000)
    with pytest.raises(
        InputError, match=r"x has 8000 samples a second, but the model takes 16000: .* the package soxr"
    ):
        read_sound("x", {"array": WAVE, "sampling_rate": 8000}, 16000)

    def read(path: str, dtype: str, always_2d: bool) -> tuple[Any, int]:
        assert (path, dtype, always_2d) == (str(tmp_path / "a.flac"), "float32", True)
        return np.stack([WAVE, WAVE * 0], 1).astype(np.float32), 8000

    def resample(samples: Any, rate: int, to: int) -> Any:
        assert (rate, to) == (8000, 16000)
        return samples.repeat(2)

    monkeypatch.setitem(sys.modules, "soundfile", types.SimpleNamespace(read=read))
    monkeypatch.setitem(sys.modules, "soxr", types.SimpleNamespace(resample=resample))
    found = read_sound("x", tmp_path / "a.flac", 16000)
    np.testing.assert_allclose(found, WAVE.repeat(2) / 2, rtol=0, atol=1e-7)


def test_noise_that_is_drawn_anew_is_refused(tmp_path: Path) -> None:
    from tests.support.sound_models import make_sound_model
    from tests.support.task_models import edit_json, quick
    from tfm.runtime import load

    make_sound_model("wav2vec2", "ForCTC", tmp_path / "m")
    edit_json(tmp_path / "m" / "preprocessor_config.json", dither=1.0)
    with pytest.raises(BundleError, match="dither adds noise to a sound, which is not done here; set it to 0"):
        load(quick(tmp_path / "m", tmp_path / "x.tfm"), provider="cpu").transcribe(sounds()[0])
