"""What the models of a bundle are timed on: rows of token ids, arrays where it reads no ids, and a ragged corpus."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import ARRAYS, TOKENIZER, Manifest, Signature, TensorSpec, golden_inputs, read_proved
from tfm.errors import BundleError, InputError
from tfm.runtime import Tokenizer, length_limit
from tfm.runtime.inputs.checks import SUM

from .graphs import save_arrays
from .text import english_sentences, english_words

CORPUS = "corpus"
"""The kind of work that is many texts at once, and its measure."""

_COUNTS = {"encoder": 128, "decoder": 16, "encoder-decoder": 64}
"""How many texts there are in a corpus that is built in: so many that a turn takes a second or so."""

_RAGGED = 64
"""Greatest length of random rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelWork:
    """What a model is timed on as a whole.

    Attributes:
        name: Such as "8×128", rows × tokens.
        kind: "rows" of ids of one length, "arrays" of anything else, `CORPUS`, or "answer": the first one of a model
            that was just opened.
        rows: Rows of token ids; where there are none, how many rows the arrays have is `count`.
        texts: The texts that the rows were made of, where they were.
        arrays: Inputs by name.
        new_tokens: How many are generated of each row, at most, where the model generates.
        count: Number of rows.
    """

    name: str
    kind: str
    rows: Sequence[Sequence[int]] = ()
    texts: Sequence[str] = ()
    arrays: Mapping[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)
    new_tokens: int = 0
    count: int

    def spec(self, file: Path) -> dict[str, Any]:
        """Describe it to an engine as JSON values; arrays go into a file, an .npz."""
        if self.arrays:
            save_arrays(file, self.arrays)
        return {
            "kind": self.kind,
            "rows": [list(row) for row in self.rows],
            "texts": list(self.texts),
            "file": str(file) if self.arrays else None,
            "new_tokens": self.new_tokens,
        }


def model_works(
    manifest: Manifest, batch_sizes: Sequence[int], lengths: Sequence[int], new_tokens: int
) -> list[ModelWork]:
    """Make what a bundle's models are timed on, one of every batch size and length.

    Args:
        manifest: The bundle's.
        batch_sizes: Numbers of rows.
        lengths: Tokens of each row; of a bundle that generates, of its prompt or source. What is longer than the model
            takes is cut to that. Images have no length, and other modules are run on their golden inputs as they are.
        new_tokens: How many tokens follow, where the bundle generates, or as many as fit.
    """
    if manifest.kind == "module":
        return _golden_works(manifest)
    # Seeds are fixed, so that every engine and every day has the same rows.
    rng = np.random.default_rng(2)
    signature = _reads(manifest)
    ids = _ids_of(signature)
    if ids is None:
        return [_images(signature, count, rng) for count in batch_sizes]
    new_tokens, longest = _room(manifest, new_tokens)
    # Lengths that are cut to the same one are timed once.
    cut = dict.fromkeys(length if longest is None else min(length, longest) for length in lengths)
    return [
        ModelWork(
            name=f"{count}×{length}",
            kind="rows",
            rows=rng.integers(ids.below or 1, size=(count, length)).tolist(),
            new_tokens=new_tokens,
            count=count,
        )
        for count in batch_sizes
        for length in cut
    ]


def corpus_of(manifest: Manifest, texts: Sequence[str] | None, new_tokens: int) -> tuple[ModelWork | None, str]:
    """Make the corpus that throughput is measured on, of the caller's texts or of built-in English.

    Returns:
        The work, and what it is, in words; or None, and why there is none.
    """
    ids = _ids_of(_reads(manifest))
    if manifest.kind == "module" or ids is None:
        return None, "this bundle reads no texts"
    new_tokens, longest = _room(manifest, new_tokens)
    common: dict[str, Any] = {"name": CORPUS, "kind": CORPUS, "new_tokens": new_tokens}
    words = manifest.generation is not None and manifest.generation.split_on_whitespace
    given = texts is not None
    encoded: list[tuple[str, list[int]]] = []
    reason = "built-in English is none of its language"
    try:
        # An encoder cuts texts that are too long; what generates refuses them.
        encode = _encoder_of(manifest, longest if manifest.kind == "encoder" else None, words)
    except BundleError as error:
        if given:
            raise
        reason = str(error)
    else:
        source = _built_in(manifest.kind, words) if texts is None else texts
        encoded = list(_encoded(source, given, encode, longest, words))
    if encoded:
        known, rows = map(list, zip(*encoded, strict=True))
        what = "words" if words else "texts" if given else "sentences"
        about = f"{len(rows)} {what}" + ("" if given else " of built-in English")
        return ModelWork(texts=known, rows=rows, count=len(rows), **common), about
    if given:
        raise InputError("there is no text to measure throughput on; give at least one that is not blank")
    rng = np.random.default_rng(3)
    most = _RAGGED if longest is None else min(_RAGGED, longest)
    count = _COUNTS[manifest.kind]
    # Of any length up to that, as real texts are: what padding costs is part of throughput.
    rows = [rng.integers(ids.below or 1, size=rng.integers(1, most + 1)).tolist() for _ in range(count)]
    return ModelWork(rows=rows, count=count, **common), f"{count} rows of random ids, as {reason}"


def _encoded(
    texts: Sequence[str], given: bool, encode: Any, longest: int | None, words: bool
) -> Iterator[tuple[str, list[int]]]:
    """Texts and their rows; to a model of words, each word is an input of its own."""
    for place, text in enumerate(texts, 1):
        for part in text.split() if words else [text]:
            try:
                (row,) = encode([part])
                if longest is not None and len(row) > longest:
                    raise InputError(f"it has {len(row)} tokens, and there is room for {longest}")
            except InputError as error:
                # The caller's own texts must fit; of those built in, what does not is left out.
                if given:
                    raise InputError(f"text {place}: {error}") from error
                continue  # too long for this model, or none of its language
            yield part, row


def random_inputs(
    signature: Signature, sizes: Mapping[str, int], start: int, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Make inputs without padding.

    Args:
        signature: The graph's.
        sizes: Of every named dimension.
        start: How many tokens a cache holds already.
        rng: Source of randomness.
    """
    inputs = {}
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(SUM)) for dim in spec.shape]
        if spec.name.endswith("attention_mask"):
            values: npt.NDArray[Any] = np.ones(shape)
        elif spec.name == "position_ids":
            values = np.broadcast_to(np.arange(start, start + shape[-1]), shape)
        elif spec.name == "num_logits_to_keep":
            # After the last token, as in generating.
            values = np.array(1)
        elif spec.below is not None:
            values = rng.integers(spec.below, size=shape)
        else:
            values = rng.standard_normal(shape)
        inputs[spec.name] = values.astype(spec.dtype)
    return inputs


def _reads(manifest: Manifest) -> Signature:
    """Of the graph that inputs go into."""
    return manifest.signature["encoder" if manifest.kind == "encoder-decoder" else "model"]


def _ids_of(signature: Signature) -> TensorSpec | None:
    return next((spec for spec in signature.inputs if spec.name == "input_ids"), None)


def _room(manifest: Manifest, new_tokens: int) -> tuple[int, int | None]:
    """How many new tokens there are, and how long what comes before them may be; None: as long as one likes."""
    longest = length_limit(_reads(manifest))
    if manifest.kind == "encoder":
        return 0, longest
    if manifest.kind == "decoder":
        if longest is None:
            return new_tokens, None
        # A decoder's prompt and what follows share its positions: at most half go to what follows.
        new_tokens = min(new_tokens, max(1, longest // 2))
        return new_tokens, longest - new_tokens
    # The source has positions of its own.
    limit = length_limit(manifest.signature["decoder"])
    return new_tokens if limit is None else min(new_tokens, limit), longest


def _images(signature: Signature, count: int, rng: np.random.Generator) -> ModelWork:
    dims = {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}
    if dims - {"batch"}:
        raise InputError(f"nobody knows how large {', '.join(sorted(dims - {'batch'}))} should be; time it in an app")
    arrays = random_inputs(signature, {"batch": count}, 0, rng)
    return ModelWork(name=f"{count}", kind="arrays", arrays=arrays, count=count)


def _golden_works(manifest: Manifest) -> list[ModelWork]:
    """The smallest and the largest of the inputs that a module's outputs are stored for."""
    ordered = sorted(golden_inputs(manifest), key=lambda arrays: sum(array.size for array in arrays.values()))
    if not ordered:
        raise InputError(f"{manifest.folder} has no {ARRAYS}, and nothing else says what it takes; export it again")
    workloads = {}
    for arrays in (ordered[0], ordered[-1]):
        name = " + ".join("×".join(map(str, array.shape)) for array in arrays.values())
        workloads[name] = ModelWork(name=name, kind="arrays", arrays=arrays, count=1)
    return list(workloads.values())


def _encoder_of(manifest: Manifest, longest: int | None, words: bool) -> Any:
    if TOKENIZER not in manifest.files:
        raise BundleError(f"it has no {TOKENIZER}")
    content = read_proved(manifest, TOKENIZER)
    limits = [limit for limit in (longest, manifest.max_text_tokens) if limit is not None]
    path = manifest.folder / TOKENIZER
    return Tokenizer(path, content=content, max_tokens=min(limits, default=None), refuse_unknown=words).encode


def _built_in(kind: str, words: bool) -> list[str]:
    count = _COUNTS[kind]
    return english_words(count) if words else english_sentences(count)
