"""Configurations of decoders that descend from GPT-2 and Llama: odd heads, grouped ones, tied and untied."""

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 28,
    "max_position_embeddings": 24,
    "pad_token_id": None,
    "eos_token_id": 7,
    "bos_token_id": 3,
}
GROUPED = BASE | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"model_type": "gemma", "head_dim": 10}
GEMMA3 = GEMMA | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 14,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
PHI = BASE | {"model_type": "phi", "num_key_value_heads": 4, "hidden_size": 32}
PHI3 = GROUPED | {"model_type": "phi3"}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [2.0, 4.5, 8.0],
}
OLMO2 = GROUPED | {"model_type": "olmo2"}
GRANITE = GROUPED | {
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.3,
}
SMOLLM3 = GROUPED | {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}
STABLELM = GROUPED | {"model_type": "stablelm", "hidden_size": 32}
STARCODER2 = GROUPED | {"model_type": "starcoder2"}
NEOX = BASE | {"model_type": "gpt_neox", "hidden_size": 32}
GPTJ = {
    "model_type": "gptj",
    "vocab_size": 41,
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 24,
    "rotary_dim": 4,
    "eos_token_id": 7,
    "bos_token_id": 3,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 41,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "ffn_dim": 28,
    "max_position_embeddings": 24,
    "word_embed_proj_dim": 24,
}
BLOOM = {
    "model_type": "bloom",
    "vocab_size": 41,
    "hidden_size": 18,
    "n_head": 3,
    "n_layer": 2,
    "seq_length": 24,
    "bos_token_id": 3,
    "eos_token_id": 7,
}
ARCEE = GROUPED | {"model_type": "arcee"}
NEMOTRON = GROUPED | {"model_type": "nemotron", "hidden_size": 16, "intermediate_size": 13}
OLMO = GROUPED | {"model_type": "olmo"}
OLMO3 = GROUPED | {"model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 4}
COHERE = GROUPED | {"model_type": "cohere", "logit_scale": 0.7}
COHERE2 = GROUPED | {"model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 4, "logit_scale": 0.7}
GLM = GROUPED | {"model_type": "glm", "head_dim": 12}
GLM4 = GLM | {"model_type": "glm4"}
HELIUM = GROUPED | {"model_type": "helium", "head_dim": 6}
FALCON = BASE | {"model_type": "falcon"}
BIGCODE = {
    "model_type": "gpt_bigcode",
    "vocab_size": 41,
    "n_embd": 21,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 24,
    "eos_token_id": 7,
    "bos_token_id": 3,
}
NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 41,
    "hidden_size": 21,
    "num_heads": 3,
    "num_layers": 2,
    "max_position_embeddings": 24,
    "window_size": 4,
    "attention_types": [[["global", "local"], 1]],
    "eos_token_id": 7,
    "bos_token_id": 3,
}
CODEGEN = GPTJ | {"model_type": "codegen", "n_embd": 32, "n_head": 4}
MPT = {
    "model_type": "mpt",
    "vocab_size": 41,
    "d_model": 16,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 24,
    "eos_token_id": 7,
    "bos_token_id": 3,
}

DECODERS: dict[str, dict[str, Any]] = {
    "gemma": GEMMA,
    "gemma, one kv head, untied, biases": GEMMA
    | {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "gelu"},
    "gemma3": GEMMA3,
    "gemma3, far scaled, capped, untied": GEMMA3
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
        "attention_bias": True,
    },
    "gemma3, none slides": GEMMA3 | {"layer_types": ["full_attention"] * 3},
    "phi": PHI,
    "phi, grouped, relu": PHI
    | {"num_key_value_heads": 2, "hidden_act": "relu", "rope_parameters": {"partial_rotary_factor": 0.25}},
    "phi3": PHI3,
    "phi3, part of a head, sliding, tied": PHI3
    | {
        "hidden_size": 32,
        "sliding_window": 5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.75},
    },
    "phi3, longrope, short": PHI3 | {"rope_parameters": LONG, "original_max_position_embeddings": 20},
    "phi3, longrope, long, dynamic": PHI3 | {"rope_parameters": LONG, "original_max_position_embeddings": 7},
    "olmo2": OLMO2,
    "olmo2, one kv head, tied, biases": OLMO2
    | {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-3},
    "granite": GRANITE,
    "granite, tied, biases": GRANITE | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "smollm3": SMOLLM3,
    "smollm3, sliding where nothing turns, untied": SMOLLM3
    | {"use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": False, "attention_bias": True},
    "stablelm": STABLELM,
    "stablelm, parallel, biases, tied": STABLELM
    | {
        "use_parallel_residual": True,
        "use_qkv_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    },
    "starcoder2": STARCODER2,
    "starcoder2, untied, no biases, sliding": STARCODER2
    | {"tie_word_embeddings": False, "use_bias": False, "sliding_window": 5},
    "gpt_neox": NEOX,
    "gpt_neox, one after the other, tied, no biases": NEOX
    | {
        "use_parallel_residual": False,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.75},
        "hidden_act": "gelu_new",
    },
    "gptj": GPTJ,
    "gptj, all of a head, narrow": GPTJ | {"rotary_dim": 8, "n_inner": 13, "activation_function": "relu"},
    "opt": OPT,
    "opt, norms behind, no biases, untied": OPT
    | {
        "do_layer_norm_before": False,
        "enable_bias": False,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
    "bloom": BLOOM,
    "bloom, five heads, untied": BLOOM | {"n_head": 5, "hidden_size": 20, "tie_word_embeddings": False},
    "arcee": ARCEE,
    "arcee, tied, biases": ARCEE | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "nemotron": NEMOTRON,
    "nemotron, biases, all of a head": NEMOTRON
    | {"attention_bias": True, "mlp_bias": True, "rope_parameters": {"partial_rotary_factor": 1.0}}
    | {"intermediate_size": 7},
    "olmo": OLMO,
    "olmo, tied, biases": OLMO | {"tie_word_embeddings": True, "attention_bias": True},
    "olmo3": OLMO3,
    "olmo3, none slides, far scaled": OLMO3
    | {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
    },
    "olmo3, two slide": OLMO3
    | {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "cohere": COHERE,
    "cohere, untied, biases": COHERE | {"tie_word_embeddings": False, "attention_bias": True, "logit_scale": 1.5},
    "cohere2": COHERE2,
    "cohere2, none slides": COHERE2 | {"layer_types": ["full_attention"] * 4},
    "glm": GLM,
    "glm, no biases, tied": GLM | {"attention_bias": False, "tie_word_embeddings": True},
    "glm4": GLM4,
    "glm4, no biases, tied": GLM4 | {"attention_bias": False, "tie_word_embeddings": True},
    "helium": HELIUM,
    "helium, biases": HELIUM | {"attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_theta": 300.0}},
    "falcon": FALCON,
    "falcon, as many heads of keys, biases, untied": FALCON
    | {"multi_query": False, "bias": True, "tie_word_embeddings": False},
    "falcon, one after the other, narrow": FALCON | {"parallel_attn": False, "ffn_hidden_size": 13},
    "falcon, in groups": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, in groups, one norm": FALCON
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    "gpt_bigcode": BIGCODE,
    "gpt_bigcode, as many heads of keys": BIGCODE | {"multi_query": False, "n_inner": 13},
    "gpt_neo": NEO,
    "gpt_neo, all slide, untied": NEO
    | {"attention_types": [[["local"], 2]], "tie_word_embeddings": False, "intermediate_size": 13},
    "gpt_neo, none slides": NEO | {"attention_types": [[["global"], 1], [["global"], 1]]},
    "codegen": CODEGEN,
    "codegen, all of a head, narrow": CODEGEN | {"rotary_dim": 8, "n_inner": 13, "activation_function": "relu"},
    "mpt": MPT,
    "mpt, five heads, untied": MPT
    | {"n_heads": 5, "d_model": 20, "tie_word_embeddings": False, "attn_config": {"softmax_scale": 0.4}},
}
"""Name → what transformers' AutoConfig.for_model takes, its model_type among it."""
