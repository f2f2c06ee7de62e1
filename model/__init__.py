"""The PyTorch Transformer and the checkpoints it is read from."""

from .activations import ACTIVATIONS, COMPOSITES, GATED
from .checkpoint import load_checkpoint, load_tokenizer, read_weights, save_checkpoint
from .config import TransformerConfig
from .families import FAMILIES
from .fields import Fields
from .forms.hub import locate_checkpoint
from .json_file import read_json
from .transformer import Transformer

__all__ = [
    "ACTIVATIONS",
    "COMPOSITES",
    "FAMILIES",
    "GATED",
    "Fields",
    "Transformer",
    "TransformerConfig",
    "load_checkpoint",
    "load_tokenizer",
    "locate_checkpoint",
    "read_json",
    "read_weights",
    "save_checkpoint",
]
