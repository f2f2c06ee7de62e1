"""Samples of calibration data: made of texts, ids or arrays, checked, and assigned to one of two halves."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfm.bundle import TOKENIZER, Manifest, Signature, TensorSpec, read_proved
from tfm.errors import CalibrationError, InputError
from tfm.latency import english_sentences, english_words
from tfm.runtime import InputChecks, Tokenizer
from tfm.runtime.inputs.checks import SUM

from .files import Content

Sample = Mapping[str, npt.NDArray[Any]]
"""What goes into a graph by input name, without the batch axis; of text only ids and segments, without padding."""

Split = Literal["calibration", "held-out"]
SPLITS: tuple[Split, Split] = ("calibration", "held-out")

_IDS, _MASK, _SEGMENTS = _TEXT = ("input_ids", "attention_mask", "token_type_ids")

_BUILT_IN = 10_000
"""Sentences or words asked for: more than there are; and how many random inputs there are."""

_UNKNOWN, _SPARE, _WIDEST = 1 << 12, 16, 8
"""Size of a dimension without a limit, how many times too long a sample may be to be told so by name, and bytes of the
widest number."""

_LEAST_BYTES, _MOST_BYTES = 1 << 20, 1 << 30
"""Between which the absurd size of one array of a sample lies."""

_LENGTH = 32
"""Greatest length of random inputs."""


class SampleReader:
    """Makes samples for one bundle.

    Attributes:
        reads_text: Whether they are rows of token ids.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        signature = manifest.signature["encoder" if manifest.kind == "encoder-decoder" else "model"]
        text = _text_signature(manifest.kind, signature)
        self.reads_text = text is not None
        self._signature = text or signature
        self._check = InputChecks(self._signature)
        self._by_character = manifest.generation is not None and manifest.generation.split_on_whitespace
        self._tokenizer: Tokenizer | None = None

    @property
    def reads_words(self) -> bool:
        """Whether samples are texts of words, and not words letter by letter, or arrays."""
        return self.reads_text and not self._by_character

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are."""
        return next(spec.below or 1 for spec in self._signature.inputs if spec.name == _IDS)

    @property
    def longest(self) -> int:
        """The most tokens of a sample."""
        return self._signature.max_length.get("sequence", _UNKNOWN)

    @property
    def most_bytes(self) -> int:
        """Bytes of one array of a sample beyond which it is absurd: far more than the graph could read."""
        batched, limits = is_batched(self._signature), self._signature.max_length
        most = 0
        for spec in self._signature.inputs:
            dims = spec.shape[1:] if batched else spec.shape
            known = [dim if isinstance(dim, int) else limits.get(dim, _UNKNOWN) for dim in dims]
            most = max(most, math.prod(known))
        return min(max(_SPARE * most * _WIDEST, _LEAST_BYTES), _MOST_BYTES)

    def read(self, place: str, content: Content) -> Iterator[Sample]:
        """Make samples of a text, of ids or of arrays.

        Args:
            place: Where it stands, for errors.
            content: A text, each word of which is a sample where the bundle reads words; or what the graph takes.

        Raises:
            CalibrationError: The model must not see it.
            BundleError: The bundle's tokenizer cannot be read.
        """
        if not isinstance(content, str):
            yield self._checked(place, content)
            return
        if not self.reads_text:
            names = ", ".join(spec.name for spec in self._signature.inputs)
            raise CalibrationError(f"{place} is a text, but this bundle takes {names}; give an .npz file of these")
        for text in content.split() if self._by_character else [content]:
            try:
                (row,) = self._encode(text)
            except InputError as error:
                raise CalibrationError(f"{place}: {error}") from error
            yield self._checked(place, {_IDS: row})

    def built_in(self, split: Split) -> tuple[Iterator[Sample], str]:
        """Give samples where nobody else does: all there are, of both halves, and what they are."""
        if self.reads_text and TOKENIZER in self._manifest.files:
            texts = english_words(_BUILT_IN) if self._by_character else english_sentences(_BUILT_IN)
            if next(self._of_texts(texts), None) is not None:
                what = "words" if self._by_character else "sentences"
                return self._of_texts(texts), f"built-in English {what}"
        what = "rows of random ids" if self.reads_text else "random inputs"
        rng = np.random.default_rng(SPLITS.index(split))
        random = (self._random(rng) for _ in range(_BUILT_IN))
        return random, f"{what}, a poor stand-in for real ones"

    def _of_texts(self, texts: list[str]) -> Iterator[Sample]:
        for text in texts:
            try:
                yield from self.read("a built-in text", text)
            except CalibrationError:  # too long for this model, or none of its language
                continue

    def _encode(self, text: str) -> list[list[int]]:
        if self._tokenizer is None:
            if TOKENIZER not in self._manifest.files:
                raise InputError(f"{self._manifest.folder} has no {TOKENIZER}, so it takes no texts; give input_ids")
            path = self._manifest.folder / TOKENIZER
            content = read_proved(self._manifest, TOKENIZER)
            self._tokenizer = Tokenizer(path, content=content, refuse_unknown=self._by_character)
        return self._tokenizer.encode([text])

    def _checked(self, place: str, content: Mapping[str, Any]) -> Sample:
        """Check one sample as the runtime checks inputs, and for numbers that are none."""
        feeds: dict[str, Any] = dict(content)
        batched = is_batched(self._signature)
        if batched:
            # The runtime's checks are of batches: one of a single row, whose axis goes again below.
            feeds = {name: x[None] if isinstance(x, np.ndarray) else [x] for name, x in feeds.items()}
        if self.reads_text and _IDS in feeds:
            ids = feeds[_IDS]
            shape = ids.shape if isinstance(ids, np.ndarray) else (1, len(ids[0]))
            defaults = {_MASK: np.ones(shape, np.int64), _SEGMENTS: np.zeros(shape, np.int64)}
            feeds |= {spec.name: defaults[spec.name] for spec in self._signature.inputs if spec.name not in feeds}
        try:
            checked = self._check(feeds)
        except InputError as error:
            raise CalibrationError(f"{place}: {error}") from error
        sample = {name: array[0] if batched else array for name, array in checked.items()}
        for name, array in sample.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                where = np.argwhere(~np.isfinite(array))[0].tolist()
                raise CalibrationError(f"{place}: {name}{where} is {array[tuple(where)]}; give finite numbers only")
        if self.reads_text and _MASK in sample:
            # Without padding, so that it has no part in the sample's hash; a batch gets a mask anew.
            real = sample.pop(_MASK) == 1
            if not real.any():
                raise CalibrationError(f"{place} is empty: its {_MASK} has no 1; remove it")
            sample = {name: array[real] for name, array in sample.items()}
        return sample

    def _random(self, rng: np.random.Generator) -> Sample:
        if self.reads_text:
            length = int(rng.integers(1, 1 + min([_LENGTH, *self._signature.max_length.values()])))
            return self._checked("a random row", {_IDS: rng.integers(self.vocabulary_size, size=length)})
        batched, limits = is_batched(self._signature), self._signature.max_length.items()
        sizes: dict[str, int] = {}
        for dim in (dim for spec in self._signature.inputs for dim in spec.shape if isinstance(dim, str)):
            # A limit of a sum of dimensions is spread evenly over them.
            shares = [most // len(key.split(SUM)) for key, most in limits if dim in key.split(SUM)]
            sizes[dim] = min([_LENGTH * self._signature.min_length.get(dim, 1), *shares])
        sample = {}
        for spec in self._signature.inputs:
            dims = spec.shape[1:] if batched else spec.shape
            shape = [dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(SUM)) for dim in dims]
            sample[spec.name] = _random_array(spec, shape, rng)
        return sample


def split_of(sample: Sample) -> Split:
    """Tell which half a sample belongs to, by a hash of it."""
    return SPLITS[digest_of(sample)[0] & 1]


def digest_of(sample: Sample) -> bytes:
    """A hash of a sample."""
    digest = hashlib.sha256()
    for name, array in sorted(sample.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def is_batched(signature: Signature) -> bool:
    """Whether the first axis of every input, and no other, counts samples: else a graph takes one at a time."""
    first = {spec.shape[0] if spec.shape else 0 for spec in signature.inputs}
    others = {dim for spec in signature.inputs for dim in spec.shape[1:]}
    return len(first) == 1 and isinstance(next(iter(first)), str) and not first & others


def _text_signature(kind: str, signature: Signature) -> Signature | None:
    """What a graph that reads token ids takes of a text, with the greatest length; None where it reads no text."""
    specs = [spec for spec in signature.inputs if spec.name in _TEXT]
    ids = next((spec for spec in specs if spec.name == _IDS), None)
    if ids is None or ids.below is None:
        return None
    plain = all(spec.dtype == "int64" and [type(dim) for dim in spec.shape] == [str, str] for spec in specs)
    # A module that takes more than text, or text in other shapes, is given arrays like any other.
    if kind == "module" and (not plain or len(specs) < len(signature.inputs)):
        return None
    limits = [most for key, most in signature.max_length.items() if ids.shape[1] in key.split(SUM)]
    inputs = tuple(dataclasses.replace(spec, shape=("batch", "sequence")) for spec in specs)
    return Signature(inputs=inputs, outputs=(), max_length={"sequence": min(limits)} if limits else {})


def _random_array(spec: TensorSpec, shape: list[int], rng: np.random.Generator) -> npt.NDArray[Any]:
    if "mask" in spec.name or spec.dtype == "bool":  # nothing is masked: a row that is all padding may give NaN
        return np.ones(shape, spec.dtype)
    if "float" in spec.dtype:
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(spec.below or 2, size=shape).astype(spec.dtype)
