"""mBART (Liu et al. 2020, arXiv:2001.08210) and mBART-50 as Hugging Face writes them: BART with norms first."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .bart import OFFSET, TABLES, convert_like_bart
from .common import Weights, check_options, read_task
from .reorder import skip_rows


def convert_mbart(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an MBartForConditionalGeneration's configuration and weights to ours."""
    values = values.of("MBart")
    check_options(values, {"normalize_embedding": (True,)})
    read_task(values, "MBart", ("ForConditionalGeneration", "Model"))
    # Its decoder begins with the id of a language, which the settings of a generation name.
    config, weights = convert_like_bart(folder, values, weights, embedding_norm=True, norm_first=True)
    skip_rows(weights, TABLES, OFFSET)
    return config, weights
