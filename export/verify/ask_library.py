"""What the library that a checkpoint comes with gives, on texts as people write them.

The library is what the checkpoint's owner would use: sentence-transformers where modules.json asks for it, else the
pipeline of transformers for the class that config.json names. It opens the checkpoint by itself, tokenizer and all.
"""

import contextlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tfm.bundle import TOKENIZER
from tfm.errors import InputError
from tfm.quantize import one_of_each
from tfm.runtime import Decoder, Encoder, EncoderDecoder, Perceiver

from .ask_generation import ask_generate
from .ask_perceived import ask_perceive
from .transformers_model import open_model, transformers

Asked = Encoder | Decoder | EncoderDecoder
"""Bundles that a library may be known for."""

_PIPELINES = {
    "classify": ("text-classification", "AutoModelForSequenceClassification"),
    "classify_tokens": ("token-classification", "AutoModelForTokenClassification"),
    "fill_mask": ("fill-mask", "AutoModelForMaskedLM"),
    "answer": ("question-answering", "AutoModelForQuestionAnswering"),
    "classify_images": ("image-classification", "AutoModelForImageClassification"),
    "classify_audio": ("audio-classification", "AutoModelForAudioClassification"),
    "transcribe": ("automatic-speech-recognition", "AutoModelForCTC"),
}
"""Task → transformers' pipeline for it, and the class it takes."""

_OF_ARRAYS = ("classify_images", "classify_audio", "transcribe", "image_to_text")
"""Tasks that read no texts."""

_QUESTION = "What is this about, and who wrote it?"
_UNUSUAL = "Ça coûte 3 €, 你好 — привет, 🙂👩‍👩‍👧 naïve\u00a0café\u200b!"
_NO_LIMIT = 1 << 24
"""A tokenizer's limit above which there is none: transformers writes 1e30."""

_MATES = ["A short text.", "A text that is longer than the one in front of it, so that this one is padded."]
_ADDITIONS = 1e-3
"""Relative to the greatest number: float32's sums differ by a hundredth of it, what reads padding by far more."""

_LONG = 700
"""Words of the text that is longer than most models read."""


@dataclass(frozen=True)
class NotCompared:
    """Why a bundle was not compared with a library."""

    why: str


@dataclass(frozen=True)
class Reference:
    """What a checkpoint's own library gives.

    Attributes:
        library: Its name and version.
        task: The task, as the runtime calls it.
        inputs: What it was given.
        expected: What it gave for each; where it generates, what it gave in each `Way`.
        alone: Whether padding changes what it gives, as where a convolution reads it: then texts are compared one by
            one.
    """

    library: str
    task: str
    inputs: Sequence[Any]
    expected: Sequence[Any]
    alone: bool = False


class Found(NamedTuple):
    """What a library gave: the attributes of a `Reference`."""

    inputs: Sequence[Any]
    expected: Sequence[Any]
    alone: bool = False


def ask_library(folder: Path | None, bundle: Asked) -> Reference | NotCompared | None:
    """Run a checkpoint by the library that it comes with.

    Args:
        folder: The checkpoint's.
        bundle: What was made of it, which says what it is for.

    Returns:
        What the library gave; why it was not asked; None where no library is known for it.
    """
    task = bundle.tasks[0] if bundle.tasks else ""
    library = library_of(folder, bundle)
    if folder is None or library is None:
        return None
    # Asked without importing it, which takes seconds.
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return NotCompared(f"{library} is not installed: pip install {library}")
    reads_texts = task not in _OF_ARRAYS and TOKENIZER in bundle.manifest.files
    if not reads_texts and task not in (*_OF_ARRAYS, "generate"):
        return NotCompared("the bundle has no tokenizer, and takes ids alone")
    # The library might take what the runtime refuses, such as a text without tokens; of that nothing
    # can be compared.
    lengths = _lengths(bundle) if reads_texts else {}
    try:
        with _quietly():
            if isinstance(bundle, Perceiver):
                found = Found(*ask_perceive(folder, bundle, _sources_of(folder, bundle)))
            elif isinstance(bundle, Encoder):
                found = _ways(library, task)(folder, task, list(lengths), max(lengths.values(), default=0))
            else:
                found = Found(*ask_generate(folder, bundle, [*list(lengths)[:4], _UNUSUAL]))
    except Exception as error:  # of a library, which has no common class; that it fails is told, never passed over
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return NotCompared(f"{library} {version} could not run the checkpoint: {reason[:200]}")
    return Reference(f"{library} {version}", task, *found)


def library_of(folder: Path | None, bundle: Asked) -> str | None:
    """Name the package that a checkpoint's owner would use for what a bundle is for; None: none is known."""
    # A checkpoint of our own comes from no library.
    if folder is None or bundle.manifest.family == "transformer" or not (folder / "config.json").is_file():
        return None
    task = bundle.tasks[0] if bundle.tasks else ""
    # Pooling of token states is what sentence-transformers adds; all else is transformers'.
    if task == "embed":
        return "sentence-transformers" if (folder / "modules.json").is_file() else None
    return "transformers" if task in (*_PIPELINES, "generate", "image_to_text") else None


def _ways(library: str, task: str) -> Callable[[Path, str, list[str], int], Found]:
    """Choose what calls the library."""
    if library == "sentence-transformers":
        return _encode
    return {"classify_images": _see, "classify_audio": _hear, "transcribe": _hear}.get(task, _pipe)


def _see(folder: Path, task: str, texts: list[str], longest: int) -> Found:
    """Run transformers' pipeline on pictures of other sizes than the model's, prepared by PIL."""
    del texts, longest
    from PIL import Image

    # Its other way to resize, by torchvision, gives other pixels.
    by_pil = {"backend": "pil"} if int(transformers().__version__.partition(".")[0]) >= 5 else {"use_fast": False}
    processor = transformers().AutoImageProcessor.from_pretrained(folder, local_files_only=True, **by_pil)
    name, model = _model_for(task, folder)
    pipe: Any = transformers().pipeline(name, model=model, image_processor=processor, device="cpu")
    pictures = [Image.fromarray(pixels) for pixels in _pictures()]
    return Found(pictures, [pipe(picture, top_k=model.config.num_labels) for picture in pictures])


def _hear(folder: Path, task: str, texts: list[str], longest: int) -> Found:
    """Run transformers' pipeline on sounds, one by one, so that nothing is padded."""
    del texts, longest
    extractor = transformers().AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    name, model = _model_for(task, folder)
    options: dict[str, Any] = {}
    if task == "transcribe":
        options["tokenizer"] = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pipe: Any = transformers().pipeline(name, model=model, feature_extractor=extractor, device="cpu", **options)
    labels = {"top_k": model.config.num_labels} if task == "classify_audio" else {}
    waves = list(make_sounds(extractor.sampling_rate))
    return Found(waves, [pipe(wave_S.copy(), **labels) for wave_S in waves])


def _sources_of(folder: Path, bundle: Perceiver) -> Sequence[Any]:
    """Make sounds or pictures, of which the bundle knows how they are prepared."""
    if bundle.tasks[0] == "transcribe":
        extractor = transformers().AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        # As much as the model hears at once: what is longer is heard in parts.
        found = [wave[: getattr(extractor, "n_samples", None)] for wave in make_sounds(extractor.sampling_rate)]
    else:
        found = list(_pictures())
    bundle.perceive(found)  # what cannot be prepared here cannot be compared, and says why
    return found


def make_sounds(rate: int) -> Iterator[Any]:
    """Tones that glide and swell with noise on them, of other lengths, as float32 waves."""
    rng = np.random.default_rng(0)
    for seconds in (0.6, 1.3, 0.9, 2.1):
        count = int(seconds * rate)
        # Every twentieth of a second another tone, as loud as another number says.
        knots = np.linspace(0, count, max(3, int(20 * seconds)))
        place = np.arange(count)
        pitch, swell = (np.interp(place, knots, rng.random(len(knots))) for _ in range(2))
        wave = np.sin(np.cumsum(2 * np.pi * (80 + 900 * pitch**2) / rate)) * swell + rng.standard_normal(count) * 0.02
        yield (0.4 * wave).astype(np.float32)


def _model_for(task: str, folder: Path) -> tuple[str, Any]:
    """Name the pipeline of a task, and open the checkpoint by the class that it takes."""
    name, cls = _PIPELINES[task]
    return name, open_model(folder, cls)


def _pictures() -> Iterator[Any]:
    """Slopes of color with noise on them, wide, high and small."""
    rng = np.random.default_rng(0)
    for height, width in ((240, 320), (500, 333), (97, 64), (224, 224)):
        slopes_HWC = np.linspace(0, 200, height)[:, None, None] * rng.random(3) + np.linspace(0, 55, width)[:, None]
        yield (slopes_HWC + rng.integers(0, 40, slopes_HWC.shape)).clip(0, 255).astype(np.uint8)


def _encode(folder: Path, task: str, texts: list[str], longest: int) -> Found:
    """Run sentence-transformers, whose limits are its own."""
    del task, longest
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    options: dict[str, Any] = {"show_progress_bar": False, "batch_size": 1}
    [padded, _], [alone] = (model.encode(texts, **{**options, "batch_size": 2}) for texts in (_MATES, _MATES[:1]))
    return Found(texts, list(model.encode(texts, **options)), alone=_differ(padded, alone))


def _pipe(folder: Path, task: str, texts: list[str], longest: int) -> Found:
    """Run transformers' pipeline of a task; give what it was given, as the runtime takes it, and what it gave.

    Where the tokenizer has no limit, as its owner would have to know, texts are cut to what the bundle reads.
    """
    words = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    name, model = _model_for(task, folder)
    # Otherwise the library's own limit holds, and a bundle that reads more or less differs.
    if words.model_max_length > _NO_LIMIT:
        words.model_max_length = longest
    pipe: Any = transformers().pipeline(name, model=model, tokenizer=words, device="cpu")
    texts = [*texts, f"Is {' or '.join(words.all_special_tokens[:4])} a word?"]
    return Found(*_CALLS[task](pipe, texts), alone=_reads_padding(words, model))


def _reads_padding(words: Any, model: Any) -> bool:
    """Whether a model gives other numbers for a text beside a longer one than for it alone."""
    if words.pad_token is None:
        return False
    options = {"padding": True, "truncation": True, "padding_side": "right", "return_tensors": "pt"}
    with torch.no_grad():
        padded, alone = (model(**words(texts, **options))[0][0] for texts in (_MATES, _MATES[:1]))
    return _differ(padded[: len(alone)].numpy(), alone.numpy())


def _differ(one: Any, other: Any) -> bool:
    """Whether two results of a library are others by more than the order of additions makes them."""
    return bool(np.abs(one - other).max() > _ADDITIONS * max(1.0, float(np.abs(other).max())))


def _classify(pipe: Any, texts: list[str]) -> tuple[Sequence[Any], Sequence[Any]]:
    # Pairs of texts of different kinds, the last with one that is empty or odd.
    pairs = list(zip([*texts[:3], texts[-2]], texts[1:5], strict=True))
    options = {"truncation": True, "top_k": None}
    found = [pipe({"text": text}, **options) for text in texts]
    found += [pipe({"text": text, "text_pair": other}, **options) for text, other in pairs]
    return [*texts, *pairs], found


def _fill(pipe: Any, texts: list[str]) -> tuple[Sequence[Any], Sequence[Any]]:
    mask = pipe.tokenizer.mask_token
    # In texts that are short enough to keep their mask.
    masked = [" ".join([*text.split()[:2], mask, *text.split()[3:]]) for text in texts if 3 < len(text.split()) < 40]
    return masked, [pipe(text, top_k=5) for text in masked]


def _label_tokens(pipe: Any, texts: list[str]) -> tuple[Sequence[Any], Sequence[Any]]:
    return texts, [pipe(text, ignore_labels=[""]) for text in texts]


def _answer(pipe: Any, texts: list[str]) -> tuple[Sequence[Any], Sequence[Any]]:
    given = [(_QUESTION, text) for text in texts if text]
    return given, [pipe(question=question, context=context) for question, context in given]


_CALLS: dict[str, Callable[[Any, list[str]], tuple[Sequence[Any], Sequence[Any]]]] = {
    "classify": _classify,
    "classify_tokens": _label_tokens,
    "fill_mask": _fill,
    "answer": _answer,
}
"""Task → what calls its pipeline with texts."""


def _texts() -> list[str]:
    """Texts of every kind that is known to differ: of eight subjects, too long, of odd signs, and none at all."""
    kinds = list(one_of_each().values())
    words = " ".join(kinds).split()
    # Whole words, repeated until there are enough.
    long = " ".join((words * (1 + _LONG // len(words)))[:_LONG])
    return [*kinds, long, _UNUSUAL, ""]


def _lengths(bundle: Asked) -> dict[str, int]:
    """Give the texts that have tokens, and how many of each are read."""
    return {text: length for text in _texts() if (length := _count(bundle, text))}


def _count(bundle: Asked, text: str) -> int:
    """How many tokens of a text are read; 0 of one that has none, which the runtime refuses."""
    try:
        return len(bundle.tokenize(text)[0])
    except InputError:
        return 0


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep libraries from printing, and from asking anybody for files."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        # A checkpoint is a folder here: a library that misses a file of it must not look for it
        # elsewhere.
        before = os.environ.get("HF_HUB_OFFLINE"), logging.root.manager.disable
        os.environ["HF_HUB_OFFLINE"] = "1"
        logging.disable(logging.WARNING)
        stack.callback(_restore, *before)
        bars = transformers().utils.logging
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            stack.callback(bars.enable_progress_bar)
        yield


def _restore(offline: str | None, level: int) -> None:
    logging.disable(level)
    if offline is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = offline
