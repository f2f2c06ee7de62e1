"""What is heard or seen is written as transformers writes it, token for token, and so is what is read from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.sound_models import sounds
from tests.support.task_models import quick
from tests.support.writing_models import make_image_to_text, make_speech_to_text, text_of
from tfm.errors import InputError, MissingTaskError
from tfm.runtime import Perceiver, load

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")
Image = pytest.importorskip("PIL.Image", reason="images are prepared by it: pip install pillow")

NEW = 12


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Give the bundle and transformers' model of a kind, each made once."""
    made: dict[str, Any] = {}

    def open_both(kind: str) -> Any:
        if kind not in made:
            folder = tmp_path_factory.mktemp("written")
            theirs = make_speech_to_text(folder / "m") if kind == "speech" else make_image_to_text(kind, folder / "m")
            made[kind] = load(quick(folder / "m", folder / "b"), provider="cpu", threads=1), theirs, folder
        return made[kind]

    return open_both


def cut(row: list[int], end: int) -> list[int]:
    return row[1 : row.index(end, 1)] if end in row[1:] else row[1:]


@pytest.mark.parametrize("beams", [1, 3])
def test_speech_is_written_as_transformers_writes_it(opened: Callable[[str], Any], beams: int) -> None:
    ours, theirs, folder = opened("speech")
    assert isinstance(ours, Perceiver)
    assert ours.tasks == ("transcribe", "generate")
    extractor = transformers.Speech2TextFeatureExtractor.from_pretrained(folder / "m")
    expected = []
    for wave in sounds()[:-2]:
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        row = theirs.generate(**inputs, max_new_tokens=NEW, num_beams=beams, do_sample=False)[0].tolist()
        expected.append(cut(row, 50))
    rows = ours.perceive(sounds()[:-2])
    assert ours.generate(rows, max_new_tokens=NEW, num_beams=beams) == expected
    found = ours.transcribe(sounds()[:-2], max_new_tokens=NEW, num_beams=beams)
    assert found == [{"text": text_of(row)} for row in expected]
    assert len({str(row) for row in expected}) > 2


@pytest.mark.parametrize("kind", ["trocr", "gpt2"])
def test_images_are_written_as_transformers_writes_them(
    opened: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    ours, theirs, folder = opened(kind)
    assert ours.tasks == ("image_to_text", "generate")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((8, 8), (20, 13), (9, 40))]
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "m", backend="pil")
    expected = []
    for image in images:
        pixels = processor(Image.fromarray(image), return_tensors="pt")
        row = theirs.generate(**pixels, max_new_tokens=NEW, do_sample=False)[0].tolist()
        expected.append(cut(row, 2))
    assert ours.generate(ours.perceive(images), max_new_tokens=NEW) == expected
    texts = [text_of(row) for row in expected]
    assert ours.image_to_text(images, max_new_tokens=NEW) == texts
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    assert ours.image_to_text(tmp_path / "a.png", max_new_tokens=NEW) == texts[1:2]
    assert len(set(texts)) > 1


def test_run_gives_the_logits_of_whole_targets(opened: Callable[[str], Any]) -> None:
    ours, theirs, _ = opened("trocr")
    pixels, target = torch.randn(2, 3, 8, 8), torch.tensor([[2, 5, 9, 7], [2, 8, 4, 11]])
    found = ours.run(pixels.numpy(), target.numpy())
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, decoder_input_ids=target)
    np.testing.assert_allclose(found["logits"], expected.logits.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        found["last_hidden_state"], expected.encoder_last_hidden_state.numpy(), rtol=0, atol=1e-4
    )
    with pytest.raises(InputError, match=r"decoder_input_ids has shape \(1, 4\), but must be \(2, sequence\)"):
        ours.run(pixels.numpy(), target[:1].numpy())


def test_what_it_has_no_task_for_is_refused(opened: Callable[[str], Any]) -> None:
    ours, _, _ = opened("trocr")
    hears, _, _ = opened("speech")
    with pytest.raises(MissingTaskError, match="hears nothing; it has image_to_text, generate, run"):
        ours.transcribe(sounds()[0])
    with pytest.raises(MissingTaskError, match="reads no texts"):
        ours.translate("a")
    with pytest.raises(InputError, match="language='de' is for Whisper; this is transformers:speech_to_text"):
        hears.transcribe(sounds()[0], language="de")
    with pytest.raises(InputError, match="reads its sources one by one, but batch_size is 2"):
        hears.transcribe(sounds()[0], batch_size=2)
    with pytest.raises(InputError, match="frames is 4, but this model takes at least 5"):
        hears.run(np.zeros((1, 4, 16), np.float32), np.array([[51]]))
