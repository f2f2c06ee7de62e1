"""The bundle, run as an app runs it, against the library that its checkpoint comes with, on texts as people write them.

The library is what the checkpoint's owner would use: sentence-transformers where modules.json asks for it, else the
pipeline of transformers for the class that config.json names. It opens the checkpoint by itself, tokenizer and all.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import TOKENIZER
from tfm.errors import InputError
from tfm.quantize import one_of_each
from tfm.runtime import Encoder

from .fidelity import FLOORS, Fidelity

_PIPELINES = {
    "classify": ("text-classification", "AutoModelForSequenceClassification"),
    "classify_tokens": ("token-classification", "AutoModelForTokenClassification"),
    "fill_mask": ("fill-mask", "AutoModelForMaskedLM"),
    "answer": ("question-answering", "AutoModelForQuestionAnswering"),
}
"""Task → transformers' pipeline for it, and the class it takes."""

_TIE = 0.02
"""Two labels whose scores differ by less are one to the library: which of them is first says nothing."""

_QUESTION = "What is this about, and who wrote it?"
Scores = dict[tuple[int, Any], float]
"""(Place in a text, 0 of all of it; label, token or answer) → score."""

_UNUSUAL = "Ça coûte 3 €, 你好 — привет, 🙂👩‍👩‍👧 naïve\u00a0café\u200b!"
_NO_LIMIT = 1 << 24
"""A tokenizer's limit above which there is none: transformers writes 1e30."""

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
        expected: What it gave for each.
    """

    library: str
    task: str
    inputs: Sequence[Any]
    expected: Sequence[Any]


def ask_library(folder: Path | None, bundle: Encoder) -> Reference | NotCompared | None:
    """Run a checkpoint by the library that it comes with.

    Args:
        folder: The checkpoint's.
        bundle: What was made of it, which says what it is for.

    Returns:
        What the library gave; why it was not asked; None where no library is known for it.
    """
    task = bundle.tasks[0] if bundle.tasks else ""
    library = None if folder is None else _library_of(folder, task)
    if folder is None or library is None:
        return None
    # Asked without importing it, which takes seconds.
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return NotCompared(f"{library} is not installed: pip install {library}")
    if TOKENIZER not in bundle.manifest.files:
        return NotCompared("the bundle has no tokenizer, and takes ids alone")
    # The library might take what the runtime refuses, such as a text without tokens; of that nothing
    # can be compared.
    lengths = _lengths(bundle)
    try:
        with _quietly():
            ask = _encode if library == "sentence-transformers" else _pipe
            inputs, expected = ask(folder, task, list(lengths), max(lengths.values()))
    except Exception as error:  # of a library, which has no common class; that it fails is told, never passed over
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return NotCompared(f"{library} {version} could not run the checkpoint: {reason[:200]}")
    return Reference(f"{library} {version}", task, inputs, expected)


def _library_of(folder: Path, task: str) -> str | None:
    """Name the package that a checkpoint's owner would use for a task; None: none is known."""
    if not (folder / "config.json").is_file():
        return None
    # Pooling of token states is what sentence-transformers adds; all else is transformers'.
    if task == "embed":
        return "sentence-transformers" if (folder / "modules.json").is_file() else None
    return "transformers" if task in _PIPELINES else None


def compare_with_library(reference: Reference, bundle: Encoder) -> list[Fidelity]:
    """Compare a bundle, opened in one precision, with what its checkpoint's library gave.

    Of fp32 and fp16 all that the library gives must be the same; of quantized graphs what is made of it: how texts are
    ordered by their similarity or their score, and which label is the likeliest.
    """
    # All labels are asked for: an order that is right by chance would say less.
    call = getattr(bundle, reference.task)
    options: dict[str, Any] = {"long_texts": "cut"}
    if reference.task in ("classify", "fill_mask"):
        options["top_k"] = None
    if reference.task == "classify_tokens":
        options["ignore_labels"] = ()
    try:
        found = call(list(reference.inputs), **options)
    except InputError as error:
        return [_fidelity(reference, bundle, "task", 0.0, f"texts ({error})")]
    if reference.task == "embed":
        return [_embeddings(reference, bundle, found)]
    ours, theirs = [_scores(one) for one in found], [_scores(one) for one in reference.expected]
    return [_labels(reference, bundle, ours, theirs)]


def _embeddings(reference: Reference, bundle: Encoder, found: npt.NDArray[Any]) -> Fidelity:
    expected = np.asarray(reference.expected)
    # As where pooling, or a layer behind it, was left out.
    if found.shape != expected.shape:
        return _fidelity(reference, bundle, "task cosine", 0.0, f"texts ({found.shape}, not {expected.shape})")
    if bundle.precision in ("fp32", "fp16"):
        lengths, others = (np.linalg.norm(rows, axis=1) for rows in (found, expected))
        cosines = (found * expected).sum(1) / np.maximum(lengths * others, 1e-12)
        # Of a vector that has another length, the ratio: that it was not normalized is no matter of direction.
        ratios = np.minimum(lengths, others) / np.maximum(np.maximum(lengths, others), 1e-12)
        return _fidelity(reference, bundle, "task cosine", float(np.minimum(cosines, ratios).min()), "texts")
    # Each two texts once, and none with itself.
    above = np.triu_indices(len(found), 1)
    ours, theirs = (bundle.similarity(rows, rows)[above] for rows in (found, expected.astype(np.float32)))
    return _fidelity(reference, bundle, "task Spearman", spearman(ours, theirs), "texts' similarities")


def _labels(reference: Reference, bundle: Encoder, ours: Sequence[Scores], theirs: Sequence[Scores]) -> Fidelity:
    """Compare scores, each text's by the name of what has it."""
    pairs = list(zip(ours, theirs, strict=True))
    # Other labels, or other tokens: there is no score to compare.
    if not all(one.keys() >= other.keys() for one, other in pairs):
        return _fidelity(reference, bundle, "task scores", 0.0, "texts (not the same labels or tokens)")
    scores = np.array([(one[name], score) for one, other in pairs for name, score in other.items()])
    if bundle.precision in ("fp32", "fp16"):
        off = np.abs(scores[:, 0] - scores[:, 1]) / np.maximum(1, np.abs(scores[:, 1]))
        return _fidelity(reference, bundle, "task scores", 1 - float(off.max()), "texts")
    if len(scores) == len(pairs):  # one label: what counts is the order of texts
        return _fidelity(reference, bundle, "task Spearman", spearman(*scores.T), "texts' scores")
    same = [_agree(one, other) for one, other in pairs]
    return _fidelity(reference, bundle, "task labels", float(np.mean(same)), "texts")


def _agree(ours: Scores, theirs: Scores) -> float:
    """The share of what is labeled, a text or each of its tokens, whose likeliest label is the library's."""
    same = []
    for place in {place for place, _ in theirs}:
        labels = [name for name in theirs if name[0] == place]
        best = max(theirs[name] for name in labels)
        # By the library's own score of what is chosen here: a tie is no disagreement.
        chosen = max((name for name in ours if name[0] == place), key=lambda name: ours[name])
        same.append(theirs.get(chosen, -np.inf) >= best - _TIE)
    return float(np.mean(same))


def _scores(result: Any) -> Scores:
    """Name each score of a result by the place that is labeled, 0 of a whole text, and the label or token there."""
    scores = {}
    for item in result if isinstance(result, list) else [result]:
        name = next(item[key] for key in ("token", "entity", "answer", "label") if key in item)
        scores[item.get("index", 0) if "entity" in item else 0, name] = float(item["score"])
    return scores


def spearman(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Give the correlation of the ranks of two series."""
    if len(one) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _encode(folder: Path, task: str, texts: list[str], longest: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Run sentence-transformers, whose limits are its own."""
    del task, longest
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return texts, list(model.encode(texts, show_progress_bar=False))


def _pipe(folder: Path, task: str, texts: list[str], longest: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Run transformers' pipeline of a task; give what it was given, as the runtime takes it, and what it gave.

    Where the tokenizer has no limit, as its owner would have to know, texts are cut to what the bundle reads.
    """
    import torch

    transformers = _transformers()
    name, cls = _PIPELINES[task]
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = getattr(transformers, cls).from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    # Otherwise the library's own limit holds, and a bundle that reads more or less differs.
    if words.model_max_length > _NO_LIMIT:
        words.model_max_length = longest
    pipe: Any = transformers.pipeline(name, model=model, tokenizer=words, device="cpu")
    texts = [*texts, f"Is {' or '.join(words.all_special_tokens[:4])} a word?"]
    return _CALLS[task](pipe, texts)


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


def _lengths(bundle: Encoder) -> dict[str, int]:
    """Give the texts that have tokens, and how many of each are read."""
    return {text: length for text in _texts() if (length := _count(bundle, text))}


def _count(bundle: Encoder, text: str) -> int:
    """How many tokens of a text are read; 0 of one that has none, which the runtime refuses."""
    try:
        return len(bundle.tokenize(text)[0])
    except InputError:
        return 0


def _fidelity(reference: Reference, bundle: Encoder, measure: str, value: float, data: str) -> Fidelity:
    return Fidelity(
        precision=bundle.precision,
        measure=measure,
        value=value,
        # Of what could not even be compared, as where shapes differ, nothing less than 1 would do.
        floor=FLOORS.get((measure, bundle.precision), 1.0),
        count=len(reference.inputs),
        data=f"{data}, against {reference.library}",
    )


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
        bars = _transformers().utils.logging
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            stack.callback(bars.enable_progress_bar)
        yield


def _transformers() -> Any:
    """Import the package, whose own types say less than they cost."""
    return importlib.import_module("transformers")


def _restore(offline: str | None, level: int) -> None:
    logging.disable(level)
    if offline is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = offline
