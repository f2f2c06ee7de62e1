"""Hugging Face families: each a mapping of configuration and weight names, in a file of its own."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..config import TransformerConfig
from ..fields import Fields
from .albert import convert_albert
from .arcee import convert_arcee
from .bart import convert_bart
from .bert import convert_bert
from .bloom import convert_bloom
from .codegen import convert_codegen
from .cohere import convert_cohere, convert_cohere2
from .distilbert import convert_distilbert
from .electra import convert_electra
from .falcon import convert_falcon
from .gemma import convert_gemma
from .gemma2 import convert_gemma2
from .gemma3 import convert_gemma3
from .glm import convert_glm, convert_glm4
from .gpt2 import convert_gpt2
from .gpt_bigcode import convert_gpt_bigcode
from .gpt_neo import convert_gpt_neo
from .gpt_neox import convert_gpt_neox
from .gptj import convert_gptj
from .granite import convert_granite
from .helium import convert_helium
from .llama import convert_llama
from .m2m_100 import convert_m2m_100
from .marian import convert_marian
from .mbart import convert_mbart
from .mistral import convert_mistral
from .modernbert import convert_modernbert
from .mpnet import convert_mpnet
from .mpt import convert_mpt
from .nemotron import convert_nemotron
from .nomic_bert import convert_nomic_bert
from .olmo import convert_olmo
from .olmo2 import convert_olmo2
from .olmo3 import convert_olmo3
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
    "arcee": convert_arcee,
    "bart": convert_bart,
    "bert": convert_bert,
    "bloom": convert_bloom,
    "camembert": convert_camembert,
    "codegen": convert_codegen,
    "cohere": convert_cohere,
    "cohere2": convert_cohere2,
    "data2vec-text": convert_data2vec_text,
    "distilbert": convert_distilbert,
    "electra": convert_electra,
    "falcon": convert_falcon,
    "gemma": convert_gemma,
    "gemma2": convert_gemma2,
    "gemma3_text": convert_gemma3,
    "glm": convert_glm,
    "glm4": convert_glm4,
    "gpt2": convert_gpt2,
    "gpt_bigcode": convert_gpt_bigcode,
    "gpt_neo": convert_gpt_neo,
    "gpt_neox": convert_gpt_neox,
    "gptj": convert_gptj,
    "granite": convert_granite,
    "helium": convert_helium,
    "llama": convert_llama,
    "m2m_100": convert_m2m_100,
    "marian": convert_marian,
    "mbart": convert_mbart,
    "mistral": convert_mistral,
    "modernbert": convert_modernbert,
    "mpnet": convert_mpnet,
    "mpt": convert_mpt,
    "mt5": convert_mt5,
    "nemotron": convert_nemotron,
    "nomic_bert": convert_nomic_bert,
    "olmo": convert_olmo,
    "olmo2": convert_olmo2,
    "olmo3": convert_olmo3,
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
