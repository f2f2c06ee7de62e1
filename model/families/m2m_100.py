"""M2M-100 (Fan et al. 2020, arXiv:2010.11125) and NLLB as Hugging Face writes them: mBART with sines for positions."""

import math
from pathlib import Path

import torch
from torch import Tensor

from tfm.errors import ConfigError

from ..config import TransformerConfig
from ..fields import Fields
from ..positions import in_pieces
from .bart import convert_like_bart
from .common import Weights, check_options, read_task
from .marian import add_tables


def convert_m2m_100(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an M2M100ForConditionalGeneration's configuration and weights to ours.

    Positions begin behind the padding's id, as RoBERTa's do; the rows before are never read.
    """
    values = values.of("M2M100")
    check_options(values, {"normalize_embedding": (False,), "static_position_embeddings": (True,)})
    read_task(values, "M2M100", ("ForConditionalGeneration", "Model"))
    # Defaults of its class, where BART has others.
    values = values.replaced(
        activation_function=values.text("activation_function", "relu"),
        scale_embedding=values.flag("scale_embedding", True),
        decoder_start_token_id=values.token("decoder_start_token_id", 2),
    )
    config, weights = convert_like_bart(folder, values, weights, embedding_norm=False, norm_first=True)
    if config.pad_token_id is None or config.d_model < 4:
        raise ConfigError("M2M100 needs a pad_token_id, which positions are counted from, and a d_model of at least 4")
    # A table of the padding's own row and those before it would be dropped again: it begins where tokens do.
    first = config.pad_token_id + 1
    add_tables(folder, config, weights, lambda positions, size: _table(positions, size, first))
    return config, weights


def _table(positions: int, size: int, first: int) -> Tensor:
    """(P, D): the ⌊D / 2⌋ sines of a position, its cosines, and a zero where D is odd; step by step in float32."""
    half = size // 2
    table_PD = torch.zeros(positions, size, dtype=torch.float32)
    # Rounded as Hugging Face rounds it: far positions magnify a last bit.
    frequency_I = torch.exp(torch.arange(half, dtype=torch.int64).float() * -(math.log(10000) / (half - 1)))
    for position_P, rows_PD in in_pieces(table_PD):
        angle_PI = (position_P + first).float()[:, None] * frequency_I
        rows_PD[:, :half], rows_PD[:, half : 2 * half] = angle_PI.sin(), angle_PI.cos()
    return table_PD
