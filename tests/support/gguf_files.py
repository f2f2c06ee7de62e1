"""GGUF files written as llama.cpp's converter lays them out, of Hugging Face's modules with random weights."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor, nn

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def theirs(family: str, **options: Any) -> nn.Module:
    """Hugging Face's module with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        config = transformers.AutoConfig.for_model(family, **(SIZES | options))
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    return module


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows as llama.cpp has them: each pair that turns together side by side."""
    rows = torch.arange(weight.size(0)).view(heads, 2, -1)
    return weight[torch.stack([rows[:, 0], rows[:, 1]], dim=-1).flatten()]


def write(
    path: Path,
    module: nn.Module,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: Callable[[GGUFWriter], object] = lambda _: None,
    tensors: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """Lay a Llama or Qwen 2 out as GGUF; `values` replace metadata of the architecture, None leaves one out."""
    config = module.config
    writer = GGUFWriter(path, config.model_type)
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    for key, value in (own | values).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(f"{config.model_type}.{key}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    metadata(writer)
    for name, weight in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = permuted(weight, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        module_name, _, part = name.rpartition(".")
        if module_name.startswith("model.layers."):
            _, _, layer, rest = module_name.split(".", 3)
            stored = f"blk.{layer}.{NAMES[rest]}.{part}"
        else:
            stored = f"{NAMES[module_name]}.{part}"
        own_kind = kind if weight.ndim == 2 else GGMLQuantizationType.F32
        if own_kind == GGMLQuantizationType.F32:
            writer.add_tensor(stored, weight.numpy())
        elif own_kind == GGMLQuantizationType.F16:
            writer.add_tensor(stored, weight.half().numpy())
        else:
            writer.add_tensor(stored, gguf.quantize(weight.numpy(), own_kind), raw_dtype=own_kind)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
