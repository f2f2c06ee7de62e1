"""PEGASUS (Zhang et al. 2020, arXiv:1912.08777) as Hugging Face writes it: BART with norms first, and sines."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .bart import convert_like_bart
from .common import Weights, check_options, read_task
from .marian import add_tables, sines_and_cosines


def convert_pegasus(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a PegasusForConditionalGeneration's configuration and weights to ours."""
    values = values.of("Pegasus")
    check_options(values, {"normalize_embedding": (False,), "static_position_embeddings": (True,)})
    read_task(values, "Pegasus", ("ForConditionalGeneration", "Model"))
    # Its class has a default of its own for the token that a summary begins with.
    values = values.replaced(decoder_start_token_id=values.token("decoder_start_token_id", 0))
    config, weights = convert_like_bart(folder, values, weights, embedding_norm=False, norm_first=True)
    add_tables(folder, config, weights, sines_and_cosines)
    return config, weights
