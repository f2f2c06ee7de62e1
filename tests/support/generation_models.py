"""Tiny random models of transformers, which the pieces are compared with and driven by."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

V = 40
KINDS = ("gpt2", "llama", "t5", "marian")


def make(kind: str, seed: int = 0):
    """A model with random weights, large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    elif kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=V,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
            )
        )
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
        )
    elif kind == "bart":
        model = BartForConditionalGeneration(
            BartConfig(
                vocab_size=V,
                d_model=16,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=64,
                decoder_start_token_id=2,
                bos_token_id=1,
                pad_token_id=0,
                eos_token_id=2,
                forced_eos_token_id=None,
            )
        )
    else:
        model = MarianMTModel(
            MarianConfig(
                vocab_size=V,
                d_model=16,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=64,
                decoder_start_token_id=0,
                pad_token_id=0,
                eos_token_id=2,
                forced_eos_token_id=None,
            )
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()
