"""Texts of different kinds: what a quantized model is calibrated on, searched on and judged on is never of one kind.

A mix of methods that fits one kind of text can be behind on others, so that other lines of the same kind prove little.
Calibration takes prose (`read_calibration`); a search is decided by the domains of `SEARCHED`; the verdict is of the
worst domain of `JUDGED`, none of which anything was chosen by. All texts were written for this project and lie beside
this file, but for "long", "repeated" and "rare", which are made of them or of the model's own vocabulary.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np

from tfm.bundle import TOKENIZER, Manifest
from tfm.errors import CalibrationError

from .read import Calibration
from .samples import Sample, SampleReader

SEARCHED = ("documentation", "code", "chat")
JUDGED = ("formal", "logs", "tables", "languages", "short", "long", "repeated", "rare")

WRITTEN = ("documentation", "code", "chat", "formal", "logs", "tables", "languages", "short")
"""Those that lie beside this file."""

_LONGEST = 512
"""Tokens of the texts of "long", where the model reads so many."""

_TIMES = (6, 30, 120)
"""How often the texts of "repeated" say one thing; lengths, too, of "rare"."""


def read_domains(manifest: Manifest, names: Sequence[str], count: int) -> list[Calibration]:
    """Read the texts of some domains.

    Args:
        manifest: The bundle's.
        names: Of `SEARCHED` or `JUDGED`.
        count: Texts of each, at most, and a quarter of that of "long"; those that are too long for the model are left
            out, and a domain that has none left.

    Returns:
        One for each domain; none where the bundle reads no texts of words, which then has to be judged by what
        `read_calibration` gives.

    Raises:
        BundleError: The bundle's tokenizer cannot be read.
    """
    reader = SampleReader(manifest)
    if not reader.reads_words or TOKENIZER not in manifest.files:
        return []
    found = []
    for name in names:
        few = -(-count // 4) if name == "long" else count
        samples = list(itertools.islice(_samples(reader, name), few))
        if samples:
            found.append(Calibration(manifest, samples, f"texts of {name}", reads_text=True, domain=name))
    return found


def one_of_each() -> dict[str, str]:
    """Give a text of each kind that is written down, by its kind: prose, code, tables, other scripts and so on."""
    return {name: _texts(name)[0] for name in WRITTEN}


def _samples(reader: SampleReader, name: str) -> Iterator[Sample]:
    if name == "rare":
        yield from _rare(reader)
    elif name == "long":
        yield from _long(reader)
    elif name == "repeated":
        texts = (f"{text} " * times for text, times in zip(_texts("short"), itertools.cycle(_TIMES)))
        yield from _readable(reader, texts)
    else:
        yield from _readable(reader, _texts(name))


def _texts(name: str) -> list[str]:
    file = resources.files(__package__) / "texts" / f"{name}.jsonl"
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _readable(reader: SampleReader, texts: Iterator[str] | list[str]) -> Iterator[Sample]:
    for text in texts:
        try:
            yield from reader.read("a built-in text", text)
        except CalibrationError:  # too long for this model, or nothing of it in its vocabulary
            continue


def _long(reader: SampleReader) -> Iterator[Sample]:
    """Texts of several domains, joined for as long as the model reads them."""
    waiting = [text for group in zip(*map(_texts, ("formal", "tables", "logs")), strict=True) for text in group]
    while waiting:
        joined, sample = "", None
        while waiting:
            longer = next(_readable(reader, [f"{joined} {waiting[0]}".strip()]), None)
            if longer is None or len(longer["input_ids"]) > _LONGEST:
                break
            joined, sample = f"{joined} {waiting.pop(0)}".strip(), longer
        if sample is None:  # one that is too long by itself
            waiting.pop(0)
        else:
            yield sample


def _rare(reader: SampleReader) -> Iterator[Sample]:
    """Tokens drawn from the whole vocabulary, between those that the tokenizer puts around any text."""
    rows = [sample["input_ids"].tolist() for sample in itertools.islice(_readable(reader, _texts("chat")), 8)]
    if not rows:
        return
    before, after = _shared(rows), _shared([row[::-1] for row in rows])[::-1]
    rng = np.random.default_rng(0)
    for length in itertools.cycle(_TIMES):
        ids = rng.integers(reader.vocabulary_size, size=max(1, min(length, reader.longest) - len(before) - len(after)))
        yield from reader.read("a row of rare tokens", {"input_ids": np.array([*before, *ids, *after], np.int64)})


def _shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    columns = zip(*rows, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
