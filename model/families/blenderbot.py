"""Blenderbot (Roller et al. 2020, arXiv:2004.13637) as Hugging Face writes it: BART with norms first."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .bart import convert_like_bart
from .common import Weights, check_options, read_task


def convert_blenderbot(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a BlenderbotForConditionalGeneration's configuration and weights to ours."""
    values = values.of("Blenderbot")
    check_options(
        values,
        {"normalize_embedding": (False,), "static_position_embeddings": (False,), "extra_pos_embeddings": (0,)},
    )
    read_task(values, "Blenderbot", ("ForConditionalGeneration", "Model"))
    return convert_like_bart(folder, values, weights, embedding_norm=False, norm_first=True)
