"""Hugging Face families: each a mapping of configuration and weight names, in a file of its own."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..config import TransformerConfig
from ..fields import Fields
from .albert import convert_albert
from .bart import convert_bart
from .bert import convert_bert
from .bloom import convert_bloom
from .distilbert import convert_distilbert
from .electra import convert_electra
from .gemma import convert_gemma
from .gemma2 import convert_gemma2
from .gemma3 import convert_gemma3
from .gpt2 import convert_gpt2
from .gpt_neox import convert_gpt_neox
from .gptj import convert_gptj
from .granite import convert_granite
from .llama import convert_llama
from .m2m_100 import convert_m2m_100
from .marian import convert_marian
from .mbart import convert_mbart
from .mistral import convert_mistral
from .modernbert import convert_modernbert
from .mpnet import convert_mpnet
from .nomic_bert import convert_nomic_bert
from .olmo2 import convert_olmo2
from .opt import convert_opt
from .pegasus import convert_pegasus
from .phi import convert_phi
from .phi3 import convert_phi3
from .qwen2 import convert_qwen2
from .qwen3 import convert_qwen3
from .roberta import convert_camembert, convert_data2vec_text, convert_roberta, convert_xlm_roberta
from .smollm3 import convert_smollm3
from .stablelm import convert_stablelm
from .starcoder2 import convert_starcoder2
from .t5 import convert_mt5, convert_t5
from .vit import convert_vit

Convert = Callable[[Path, Fields, dict[str, Tensor]], tuple[TransformerConfig, dict[str, Tensor]]]
"""(folder, fields of its config.json, its weights) → (our configuration, our weights)."""

FAMILIES: dict[str, Convert] = {
    "albert": convert_albert,
    "bart": convert_bart,
    "bert": convert_bert,
    "bloom": convert_bloom,
    "camembert": convert_camembert,
    "data2vec-text": convert_data2vec_text,
    "distilbert": convert_distilbert,
    "electra": convert_electra,
    "gemma": convert_gemma,
    "gemma2": convert_gemma2,
    "gemma3_text": convert_gemma3,
    "gpt2": convert_gpt2,
    "gpt_neox": convert_gpt_neox,
    "gptj": convert_gptj,
    "granite": convert_granite,
    "llama": convert_llama,
    "m2m_100": convert_m2m_100,
    "marian": convert_marian,
    "mbart": convert_mbart,
    "mistral": convert_mistral,
    "modernbert": convert_modernbert,
    "mpnet": convert_mpnet,
    "mt5": convert_mt5,
    "nomic_bert": convert_nomic_bert,
    "olmo2": convert_olmo2,
    "opt": convert_opt,
    "pegasus": convert_pegasus,
    "phi": convert_phi,
    "phi3": convert_phi3,
    "qwen2": convert_qwen2,
    "qwen3": convert_qwen3,
    "roberta": convert_roberta,
    "smollm3": convert_smollm3,
    "stablelm": convert_stablelm,
    "starcoder2": convert_starcoder2,
    "t5": convert_t5,
    "vit": convert_vit,
    "xlm-roberta": convert_xlm_roberta,
}

POOLED = (
    *("bert", "distilbert", "electra", "roberta", "xlm-roberta", "albert", "camembert", "data2vec-text", "mpnet"),
    *("modernbert", "nomic_bert"),
)
"""Families whose states are pooled as a folder of sentence-transformers says; of others, transformers' class is."""
