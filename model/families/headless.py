"""A decoder without its output projection: an encoder whose tokens see earlier ones only, as embedders have it."""

import dataclasses
from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .pooling import read_pooling


def without_head(
    folder: Path, values: Fields, config: TransformerConfig, weights: Weights
) -> tuple[TransformerConfig, Weights]:
    """Give the last state of a decoder, where that is wanted: pooled, by modules.json, or of a class without a head.

    Any other model is given back as it is.
    """
    if config.kind != "decoder":
        return config, weights
    # Sentence-transformers runs the decoder's body, whatever class the folder names.
    pooling = read_pooling(folder)
    bare = len(names := values.texts("architectures")) == 1 and names[0].endswith("Model")
    # GPT-2 calls its class with a head so, too.
    if not pooling and (not bare or names[0].endswith("LMHeadModel")):
        return config, weights
    # What is of the output projection goes with it: its factors, caps, bias and tie.
    config = dataclasses.replace(
        config,
        kind="encoder",
        causal=True,
        num_encoder_layers=config.num_decoder_layers,
        encoder_heads=config.decoder_heads,
        encoder_feedforward=config.decoder_feedforward,
        decoder_heads=None,
        decoder_feedforward=None,
        tie_embeddings=False,
        head_bias=None,
        logit_scale=1.0,
        logit_softcap=None,
        **pooling,
    )
    # A tied one is not in the file; an untied one is left over.
    kept = {name: weight for name, weight in weights.items() if not name.startswith("decoder.head.")}
    return config, {name.replace("decoder.", "encoder.", 1): weight for name, weight in kept.items()}
