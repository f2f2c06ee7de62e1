"""Hugging Face families: each a mapping of configuration and weight names, in a file of its own."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..config import TransformerConfig
from ..fields import Fields
from .bart import convert_bart
from .bert import convert_bert
from .distilbert import convert_distilbert
from .electra import convert_electra
from .gemma2 import convert_gemma2
from .gpt2 import convert_gpt2
from .llama import convert_llama
from .marian import convert_marian
from .mistral import convert_mistral
from .qwen2 import convert_qwen2
from .qwen3 import convert_qwen3
from .roberta import convert_roberta, convert_xlm_roberta
from .t5 import convert_t5
from .vit import convert_vit

Convert = Callable[[Path, Fields, dict[str, Tensor]], tuple[TransformerConfig, dict[str, Tensor]]]
"""(folder, fields of its config.json, its weights) → (our configuration, our weights)."""

FAMILIES: dict[str, Convert] = {
    "bart": convert_bart,
    "bert": convert_bert,
    "distilbert": convert_distilbert,
    "electra": convert_electra,
    "gemma2": convert_gemma2,
    "gpt2": convert_gpt2,
    "llama": convert_llama,
    "marian": convert_marian,
    "mistral": convert_mistral,
    "qwen2": convert_qwen2,
    "qwen3": convert_qwen3,
    "roberta": convert_roberta,
    "t5": convert_t5,
    "vit": convert_vit,
    "xlm-roberta": convert_xlm_roberta,
}

POOLED = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Families whose states are pooled as a folder of sentence-transformers says; of others, transformers' class is."""
