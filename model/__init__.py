"""The PyTorch Transformer and the checkpoints it is read from."""

from .activations import ACTIVATIONS, COMPOSITES, GATED
from .checkpoint import load_checkpoint, load_tokenizer, save_checkpoint
from .config import TransformerConfig
from .families import FAMILIES
from .forms.hub import locate_checkpoint
from .transformer import Transformer

__all__ = [
    "ACTIVATIONS",
    "COMPOSITES",
    "FAMILIES",
    "GATED",
    "Transformer",
    "TransformerConfig",
    "load_checkpoint",
    "load_tokenizer",
    "locate_checkpoint",
    "save_checkpoint",
]
