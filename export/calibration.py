"""Inputs to quantise by: English where the bundle reads text, random ones where not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import Tensor

from .graphs import EncoderGraph, Graph, SourceGraph
from .samples import english_sentences, english_words

_BATCHES, _ROWS = 16, 8


def calibration_batches(graph: Graph, folder: Path) -> tuple[str, Iterator[dict[str, npt.NDArray[Any]]]]:
    """Make batches of inputs that are like those the graph will see.

    Args:
        graph: The graph.
        folder: The bundle, whose tokenizer reads the text where it has one.

    Returns:
        What they are, in words; and the batches, by input name. The text is not that which `measure_fidelity` looks
        at, which begins at the other end.
    """
    rows = _text_rows(graph, folder)
    if rows:
        return f"{len(rows)} built-in English texts", _padded(graph, rows)
    return f"{_BATCHES * _ROWS} random inputs", _random(graph)


def _text_rows(graph: Graph, folder: Path) -> list[list[int]]:
    file = folder / "tokenizer.json"
    if not isinstance(graph, EncoderGraph | SourceGraph) or graph.inputs[0].name != "input_ids" or not file.is_file():
        return []
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    longest = min(graph.max_length.values(), default=128)
    texts = english_sentences(10_000)[::-1][: _BATCHES * _ROWS]
    encodings = tokenizer.encode_batch(texts)
    if np.mean([len(e.ids) for e in encodings] or [0]) > longest / 2:  # it reads letters
        encodings = tokenizer.encode_batch(english_words(10_000)[::-1][: _BATCHES * _ROWS])
    below = graph.inputs[0].below or 0
    rows = [encoding.ids[:longest] for encoding in encodings]
    return [row for row in rows if row and max(row) < below]


def _padded(graph: Graph, rows: list[list[int]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    rows = sorted(rows, key=len)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        ids = np.zeros((len(part), max(map(len, part))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(part):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        yield feeds | {v.name: np.zeros_like(ids) for v in graph.inputs if v.name == "token_type_ids"}


def _random(graph: Graph) -> Iterator[dict[str, npt.NDArray[Any]]]:
    generator = torch.Generator().manual_seed(11)
    longest = min(64, *graph.max_length.values()) if graph.max_length else 64
    for number in range(_BATCHES):
        inputs: list[Tensor] = graph.sample(generator, _ROWS, max(1, longest * (number + 1) // _BATCHES))
        yield {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, inputs, strict=True)}
