"""The PyTorch Transformer and the checkpoints it is read from."""

from .activations import ComposedActivation, check_activation, make_activation
from .attention import (
    CrossAttention,
    SelfAttention,
    cached_attention,
    causal_mask,
    last_tokens,
    merge_heads,
    padding_mask,
    split_heads,
)
from .checkpoint import load_chat_template, load_checkpoint, load_tokenizer, read_weights, save_checkpoint
from .config import RotaryScaling, Scaling, TransformerConfig
from .embedding import Embedding
from .families import FAMILIES, POOLED
from .families.pooling import load_pooling
from .fields import Fields, shown
from .formats.archive import entry_names, open_archive
from .formats.hub import locate_checkpoint
from .formats.lora import Adapter, find_adapter
from .json_file import read_json
from .layer import FeedForward
from .norms import make_norm
from .positions import Alibi, RelativeBias, Rotary, rotate
from .transformer import Transformer

__all__ = [
    "FAMILIES",
    "POOLED",
    "Adapter",
    "Alibi",
    "ComposedActivation",
    "CrossAttention",
    "Embedding",
    "FeedForward",
    "Fields",
    "RelativeBias",
    "Rotary",
    "RotaryScaling",
    "Scaling",
    "SelfAttention",
    "Transformer",
    "TransformerConfig",
    "cached_attention",
    "causal_mask",
    "check_activation",
    "entry_names",
    "find_adapter",
    "last_tokens",
    "load_chat_template",
    "load_checkpoint",
    "load_pooling",
    "load_tokenizer",
    "locate_checkpoint",
    "make_activation",
    "make_norm",
    "merge_heads",
    "open_archive",
    "padding_mask",
    "read_json",
    "read_weights",
    "rotate",
    "save_checkpoint",
    "shown",
    "split_heads",
]
