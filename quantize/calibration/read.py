"""Calibration data: what a model is quantized by and, from its other half, judged by.

Where nobody gives any, it is built in: English for models that read text, random inputs for others.

Shapes: B batch, S sequence.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import Manifest, Signature
from tfm.errors import CalibrationError
from tfm.runtime import (
    DecoderState,
    Session,
    batches,
    check_count,
    check_graphs,
    continue_greedily,
    count_threads,
    from_nothing,
    length_limit,
    nearest,
)

from .files import read_samples
from .samples import SPLITS, Sample, SampleReader, Split, digest_of, is_batched, split_of

Array = npt.NDArray[Any]


def read_calibration(
    source: Path | None, manifest: Manifest, *, count: int = 128, split: Split = "calibration"
) -> "Calibration":
    """Read the data that a bundle is calibrated with, or that it is judged by afterwards.

    Every sample belongs to one of two halves, by a hash of what the model reads of it, so that they share none, however
    often it is there. Nothing is read beyond the last sample that is wanted.

    Args:
        source: A .txt, .jsonl or .npz file, or a folder of these (see `calibration_files`); None: what is built in.
        manifest: The bundle's.
        count: How many samples, at most.
        split: Which half.

    Returns:
        The samples, checked.

    Raises:
        CalibrationError: Some data is malformed, or the model must not see it: with file and line, or sample; or there
            is none in this half.
        BundleError: The bundle's tokenizer cannot be read.
        InputError: count is no integer of at least 1.
    """
    if split not in SPLITS:
        raise CalibrationError(f"there is no half {split!r}; {nearest(str(split), SPLITS)}")
    count, reader = check_count("count", count), SampleReader(manifest)
    if source is None:
        found, what = reader.built_in(split)
    else:
        contents = read_samples(source, reader.most_bytes)
        found, what = (s for place, content in contents for s in reader.read(place, content)), source.name
    samples = list(itertools.islice((sample for sample in found if split_of(sample) == split), count))
    if not samples:
        raise CalibrationError(
            f"{source or manifest.folder} gives no sample for the {split} half, to which a hash assigns about every "
            "second one; give more data"
        )
    what = what if source is None else f"samples of {what}"
    note = ", held out" if split == "held-out" else ""
    return Calibration(manifest, samples, what, note=note, reads_text=reader.reads_text)


class Calibration:
    """Samples for a bundle's graphs, made by `read_calibration`.

    Attributes:
        what: What samples they are, in words.
        note: What is to be said of them besides; "" where nothing is.
        description: How many of what, in words, and the note.
        domain: Which kind of text, one word.
        are_apart: Whether no sample is there twice, so that it means something which are alike.
    """

    def __init__(
        self,
        manifest: Manifest,
        samples: Sequence[Sample],
        what: str,
        *,
        reads_text: bool,
        note: str = "",
        domain: str = "samples",
    ) -> None:
        self.what, self.note, self.domain, self.are_apart = what, note, domain, True
        self.description = f"{len(samples)} {what}{note}"
        self._manifest, self._samples, self._reads_text = manifest, samples, reads_text
        self._targets: dict[int, list[int]] = {}
        if manifest.kind == "encoder-decoder" and manifest.generation is None:
            self.description += ", with random targets, as the bundle does not say how to generate"

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def digest(self) -> str:
        """A hash of the samples."""
        return hashlib.sha256(b"".join(digest_of(sample) for sample in self._samples)).hexdigest()

    def divided(self, count: int) -> tuple["Calibration", "Calibration"]:
        """Set the last `count` samples apart, or a quarter where there are few; one sample serves as both."""
        apart = min(count, max(1, len(self) // 4))
        first, last = self._samples[: len(self) - apart] or self._samples, self._samples[len(self) - apart :]
        made = [
            Calibration(self._manifest, part, self.what, reads_text=self._reads_text, note=self.note)
            for part in (first, last)
        ]
        return made[0], made[1]

    def beside(self, other: Sample, count: int) -> "Calibration":
        """The first samples, each followed by another one, so that batches of two put them side by side."""
        samples = [sample for one in self._samples[:count] for sample in (one, other)]
        made = Calibration(
            self._manifest, samples, self.what, reads_text=self._reads_text, note=self.note, domain=self.domain
        )
        made.are_apart, made.description = False, self.description  # which counts none twice
        return made

    def longest(self) -> Sample:
        """The sample of the most numbers."""
        return max(self._samples, key=lambda sample: sum(array.size for array in sample.values()))

    def batches(self, role: str, batch_size: int, *, in_order: bool = False) -> Iterator[dict[str, Array]]:
        """Make inputs for the graph of a role.

        Texts of similar length go together, padded on the right; for a decoder by itself, each goes alone, with an
        empty cache. The decoder of an encoder-decoder is taught, with an empty cache too, by what the float32 bundle
        generates for the sources, and sees them by the keys and values of the float32 encoder.

        Args:
            role: "model", "encoder" or "decoder", as the bundle has it.
            batch_size: Samples in each, at least 1.
            in_order: Whether texts are taken as they come, however different their lengths.

        Yields:
            Every input of the graph by name.

        Raises:
            CalibrationError: The bundle has no such graph, or no float32 graphs to teach a decoder by.
            InputError: batch_size is no integer of at least 1.
            BundleError: The float32 graphs are altered.
        """
        signature, size = self._manifest.signature.get(role), check_count("batch_size", batch_size)
        if signature is None:
            raise CalibrationError(f"the bundle has no {role!r} graph; {nearest(role, self._manifest.signature)}")
        if role == "decoder":
            yield from self._teach(signature, size)
        elif not self._reads_text:
            yield from _stack(self._samples, size if is_batched(signature) else None)
        else:
            # A decoder gives logits of padding too, which would count as tokens: its rows come one by one.
            for _, feeds in self._padded(1 if self._manifest.kind == "decoder" else size, in_order):
                yield _complete(feeds, signature)

    def _padded(self, size: int, in_order: bool = False) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """Make batches of the samples' ids, with their places among the samples."""
        rows = [sample["input_ids"].tolist() for sample in self._samples]
        for positions, ids_BS, mask_BS in batches(rows, size, self._pad, in_order=in_order):
            feeds = {"input_ids": ids_BS, "attention_mask": mask_BS}
            if "token_type_ids" in self._samples[0]:
                feeds["token_type_ids"] = np.zeros_like(ids_BS)
                types = np.concatenate([self._samples[place]["token_type_ids"] for place in positions])
                feeds["token_type_ids"][mask_BS == 1] = types
            yield positions, feeds

    def _sources(self, size: int) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """Make batches of what an encoder reads, with their places among the samples."""
        if self._reads_text:
            yield from self._padded(size)
            return
        places = sorted(range(len(self._samples)), key=lambda place: _shapes(self._samples[place]))
        for _, group in itertools.groupby(places, key=lambda place: _shapes(self._samples[place])):
            while batch := list(itertools.islice(group, size)):
                rows = [self._samples[place] for place in batch]
                yield batch, {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _teach(self, signature: Signature, size: int) -> Iterator[dict[str, Array]]:
        manifest = self._manifest
        if "fp32" not in manifest.graphs:
            raise CalibrationError(
                f"{manifest.folder} has no fp32 graphs, whose output its decoder is calibrated with; export it again"
            )
        paths = manifest.graphs["fp32"]
        check_graphs(manifest, "fp32")
        encoder, decoder = (
            Session(manifest.folder / paths[part], manifest.signature[part], "cpu", count_threads(None))
            for part in ("encoder", "decoder")
        )
        # The decoder is fed what it reads in use: the float32 encoder's keys and values, and
        # targets that the float32 model itself generates.
        caches = [spec.name for spec in encoder.signature.outputs if spec.name.startswith("present.")]
        takes = {spec.name for spec in signature.inputs}
        for positions, feeds in self._sources(size):
            presents = encoder.run(feeds, outputs=caches)
            context = {name.replace("present.", "past_key_values."): array for name, array in presents.items()}
            if "encoder_attention_mask" in takes:
                context["encoder_attention_mask"] = feeds["attention_mask"]
            # Generated once: batches are asked for again by whoever observes, searches or judges.
            if any(place not in self._targets for place in positions):
                self._targets.update(zip(positions, self._generate(decoder, context), strict=True))
            targets = [self._targets[place] for place in positions]
            ids_BS = np.full((len(targets), max(map(len, targets))), self._pad, np.int64)
            for b, target in enumerate(targets):
                ids_BS[b, : len(target)] = target
            yield _complete({"input_ids": ids_BS, **context}, signature)

    def _generate(self, decoder: Session, context: Mapping[str, Array]) -> list[list[int]]:
        """What the decoder reads when it is right: the start token, and greedily what comes next."""
        generation, most = self._manifest.generation, length_limit(decoder.signature)
        # (B, K, T, H) of any layer's keys.
        count, _, length, _ = next(array for name, array in context.items() if name.endswith(".key")).shape
        if generation is None:
            # Always of the same seed, so that each call gives the same targets.
            below = next(spec.below for spec in decoder.signature.inputs if spec.name == "input_ids")
            return np.random.default_rng(0).integers(below or 1, size=(count, min(length, most or length))).tolist()
        start = [[generation.bos_token_id or 0] for _ in range(count)]
        state = DecoderState(decoder, count, context)
        limit = min(generation.max_new_tokens, most or generation.max_new_tokens)
        # What is generated may be as long as the decoder reads; with the start token it is one
        # longer.
        generated = continue_greedily(state, start, generation.eos_token_ids, limit)
        return [[*first, *row][:most] for first, row in zip(start, generated, strict=True)]

    @property
    def _pad(self) -> int:
        generation = self._manifest.generation
        return (generation.pad_token_id if generation else None) or 0


def _complete(feeds: dict[str, Array], signature: Signature) -> dict[str, Array]:
    """Give a graph what it takes: of `feeds`, else for all logits of rows from their first token on."""
    feeds = {**from_nothing(signature, *feeds["input_ids"].shape), **feeds}
    feeds |= {spec.name: np.array(spec.default, spec.dtype) for spec in signature.inputs if spec.default is not None}
    return {spec.name: feeds[spec.name] for spec in signature.inputs}


def _stack(samples: Sequence[Sample], size: int | None) -> Iterator[dict[str, Array]]:
    """Make batches of samples of the same shapes; None: each by itself, as it is."""
    if size is None:
        yield from map(dict, samples)
        return
    for _, group in itertools.groupby(sorted(samples, key=_shapes), key=_shapes):
        while rows := list(itertools.islice(group, size)):
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for _, array in sorted(sample.items())]
