"""Marian's translation models (Junczys-Dowmunt et al. 2018), such as OPUS-MT, as Hugging Face writes them.

A BART with sinusoidal positions and no norm on the embeddings. The sines come first and the cosines second, where ours
alternate, so the table is written as learned positions.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError

from ..config import TransformerConfig, check_table
from ..fields import Fields
from ..positions import in_pieces
from .bart import TABLES, convert_like_bart
from .common import Weights, check_options, read_task


def convert_marian(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a MarianMTModel's configuration and weights to ours."""
    values = values.of("Marian")
    check_options(values, {"normalize_embedding": (False,), "static_position_embeddings": (True,)})
    read_task(values, "Marian", ("MTModel", "Model"))
    config, weights = convert_like_bart(folder, values, weights, embedding_norm=False)
    if config.bos_token_id is None:
        raise ConfigError("a Marian configuration needs 'decoder_start_token_id', which this one lacks")
    add_tables(folder, config, weights, sines_and_cosines)
    return config, weights


def add_tables(folder: Path, config: TransformerConfig, weights: Weights, table: Callable[[int, int], Tensor]) -> None:
    """Compute the tables of positions, of so many positions and of a size, where newer folders leave them out."""
    width = weights["encoder.embedding.token.weight"].shape[-1:]
    for name in TABLES:
        if name in weights:
            continue
        if width != (config.d_model,):
            raise CheckpointError(f"{folder}: d_model is {config.d_model}, but embeddings are of size {tuple(width)}")
        # A table that is computed is as large as the configuration says, whatever weights there
        # are.
        check_table(config.max_positions, config.d_model)
        weights[name] = table(config.max_positions, config.d_model)


def sines_and_cosines(positions: int, size: int) -> Tensor:
    """(P, D): the ⌈D / 2⌉ sines of a position, then its ⌊D / 2⌋ cosines."""
    pair = torch.arange(0, size, 2, dtype=torch.float64)
    table_PD = torch.empty(positions, size, dtype=torch.float32)
    for position_P, rows_PD in in_pieces(table_PD):
        angle_PI = position_P[:, None] / torch.pow(10000.0, pair / size)
        rows_PD[:, : len(pair)], rows_PD[:, len(pair) :] = angle_PI.sin(), angle_PI.cos()[:, : size // 2]
    return table_PD
