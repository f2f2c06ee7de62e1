"""The models of the board: classes of transformers, and the configuration that makes each a tiny one.

Heads are of odd sizes (5, 7 or 10 numbers) where the class allows it; decoders come from tests/support/decoder_configs.
"""

import dataclasses
from typing import Any

from tests.support.decoder_configs import DECODERS, GROUPED

TEXT: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 15,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 22,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EVEN = TEXT | {"hidden_size": 30}
HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
FAMILIES: dict[str, dict[str, Any]] = {
    "Albert": TEXT | {"embedding_size": 8},
    "Bert": TEXT,
    "Camembert": TEXT | {"pad_token_id": 1, "type_vocab_size": 1},
    "ConvBert": EVEN | {"embedding_size": 30, "num_attention_heads": 2},
    "Data2VecText": TEXT | {"pad_token_id": 1, "type_vocab_size": 1},
    "Deberta": TEXT,
    "DebertaV2": TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "DistilBert": {"vocab_size": 41, "dim": 15, "n_heads": 3, "n_layers": 2, "hidden_dim": 22}
    | {"max_position_embeddings": 32, "pad_token_id": 0},
    "Electra": TEXT | {"embedding_size": 8},
    "Ernie": TEXT,
    "Flaubert": {"vocab_size": 41, "emb_dim": 15, "n_heads": 3, "n_layers": 2, "max_position_embeddings": 32},
    "MPNet": TEXT | {"pad_token_id": 1},
    "MegatronBert": TEXT,
    "MobileBert": TEXT
    | {"hidden_size": 24, "embedding_size": 16, "intra_bottleneck_size": 16}
    | {"num_attention_heads": 4, "num_feedforward_networks": 2},
    "ModernBert": EVEN
    | {"local_attention": 6, "bos_token_id": 1, "eos_token_id": 2}
    | {"cls_token_id": 1, "sep_token_id": 2},
    "NomicBert": EVEN,
    "RemBert": TEXT | {"input_embedding_size": 8, "output_embedding_size": 9},
    "RoFormer": EVEN | {"embedding_size": 30},
    "Roberta": TEXT | {"pad_token_id": 1},
    "SqueezeBert": TEXT | {"hidden_size": 16, "num_attention_heads": 4, "embedding_size": 16, "intermediate_size": 24},
    "XLMRoberta": TEXT | {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRobertaXL": TEXT | {"pad_token_id": 1},
}
"""What the class's name begins with → options."""

NAMED = {
    "FlaubertForMaskedLM": "FlaubertWithLMHeadModel",
    "FlaubertForQuestionAnswering": "FlaubertForQuestionAnsweringSimple",
    "NomicBertForQuestionAnswering": None,
}
"""Classes that are called otherwise; None: there is none."""

SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 37,
    "d_model": 15,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_position_embeddings": 32,
    **{f"{side}_attention_heads": 3 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 22 for side in ("encoder", "decoder")},
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {"vocab_size": 41, "d_model": 20, "d_kv": 7, "d_ff": 28, "num_layers": 2, "num_heads": 3}
IMAGE: dict[str, Any] = {
    "hidden_size": 15,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 22,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}
NO_PAD = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = GROUPED | NO_PAD | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
TOWER = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
TOWERS = {
    "projection_dim": 8,
    "text_config": TOWER | {"vocab_size": 41, "max_position_embeddings": 20, "eos_token_id": 2, "pad_token_id": 1},
    "vision_config": TOWER | {"image_size": 8, "patch_size": 4},
}
LAYERS = {"num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 40}
LATENT = {
    "num_key_value_heads": GROUPED["num_attention_heads"],
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
WAVE: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": 4,
    "pad_token_id": 0,
}
HEARING = (
    "Wav2Vec2Model",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2ForAudioFrameClassification",
    "HubertModel",
    "HubertForCTC",
    "HubertForSequenceClassification",
    "WavLMForCTC",
    "WavLMForSequenceClassification",
    "UniSpeechForCTC",
    "UniSpeechSatForCTC",
    "Wav2Vec2ConformerForCTC",
    "SEWForCTC",
)
SPECTROGRAM = IMAGE | {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4, "num_labels": 4}
SPEECH = SEQ2SEQ | {"max_target_positions": 32, "suppress_tokens": None, "begin_suppress_tokens": None}
SPEECH |= {"num_labels": 4, "d_model": 20, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
STARTS = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2}
PATCHES = IMAGE | {"model_type": "vit"}
DONUT = {"model_type": "donut-swin", "image_size": [16, 32], "patch_size": 2, "embed_dim": 12}
DONUT |= {"depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
WRITES = {"vocab_size": 37, "d_model": 20, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 22}
WRITES |= {"max_position_embeddings": 32, "is_decoder": True, "add_cross_attention": True}
WRITERS: tuple[dict[str, Any], ...] = (
    WRITES | {"model_type": "trocr", "cross_attention_hidden_size": 15},
    WRITES | {"model_type": "mbart", "is_encoder_decoder": False},
    {"model_type": "gpt2", "vocab_size": 37, "n_embd": 20, "n_head": 2, "n_layer": 2, "n_positions": 32}
    | {"is_decoder": True, "add_cross_attention": True},
    TEXT | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
)
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [10, 14]}
SEGFORMER |= {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "patch_sizes": [3, 3], "strides": [2, 2]}
SEGFORMER |= {"decoder_hidden_size": 12, "num_labels": 4, "image_size": 16}
DETECTOR: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8]}
    | {"depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage4"]},
    "d_model": 20,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 22,
    "decoder_ffn_dim": 22,
    "num_queries": 5,
    "num_labels": 3,
}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("ViTModel", IMAGE),
    ("ViTForImageClassification", IMAGE),
    ("DeiTModel", IMAGE),
    ("BeitModel", IMAGE),
    (
        "SwinModel",
        {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    ("CLIPModel", TOWERS),
    ("SiglipModel", TOWERS),
    ("BartForConditionalGeneration", SEQ2SEQ),
    ("BartForConditionalGeneration", SEQ2SEQ | {"tie_word_embeddings": False}),
    ("BlenderbotForConditionalGeneration", SEQ2SEQ),
    ("BlenderbotSmallForConditionalGeneration", SEQ2SEQ),
    ("MarianMTModel", SEQ2SEQ | {"decoder_start_token_id": 1}),
    ("MBartForConditionalGeneration", SEQ2SEQ),
    ("M2M100ForConditionalGeneration", SEQ2SEQ),
    ("PegasusForConditionalGeneration", SEQ2SEQ | NO_PAD | {"decoder_start_token_id": 0}),
    ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}),
    ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}),
    ("MT5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}),
    ("UMT5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}),
    ("T5EncoderModel", T5),
    ("LlamaForSequenceClassification", GROUPED | {"pad_token_id": 0}),
    ("Qwen3ForSequenceClassification", GROUPED | {"pad_token_id": 0, "head_dim": 10}),
    ("GPT2ForSequenceClassification", {"vocab_size": 41, "n_embd": 15, "n_head": 3, "n_layer": 2, "pad_token_id": 0}),
    ("LlamaModel", GROUPED),
    ("Qwen2Model", GROUPED),
    ("Qwen3Model", GROUPED | {"head_dim": 10}),
    ("MixtralForCausalLM", GROUPED | NO_PAD | {"num_local_experts": 2}),
    ("Qwen2MoeForCausalLM", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    ("Qwen3MoeForCausalLM", EXPERTS | {"num_experts": 4, "head_dim": 10}),
    ("GptOssForCausalLM", EXPERTS | {"num_local_experts": 4, "head_dim": 10, "sliding_window": 4}),
    ("DeepseekV3ForCausalLM", EXPERTS | LATENT),
    ("OlmoeForCausalLM", EXPERTS | {"num_experts": 4}),
    ("GraniteMoeForCausalLM", EXPERTS | {"num_local_experts": 4}),
    ("PhimoeForCausalLM", EXPERTS | {"num_local_experts": 4}),
    ("Glm4MoeForCausalLM", EXPERTS | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "head_dim": 10}),
    ("PersimmonForCausalLM", {"vocab_size": 41, "hidden_size": 32, "num_attention_heads": 4} | LAYERS | NO_PAD),
    ("BioGptForCausalLM", GROUPED | NO_PAD),
    ("CTRLLMHeadModel", {"vocab_size": 41, "n_embd": 32, "n_head": 4, "n_layer": 2, "dff": 48, "n_positions": 40}),
    ("Exaone4ForCausalLM", GROUPED | NO_PAD | {"sliding_window": 4}),
    ("SeedOssForCausalLM", GROUPED | NO_PAD | {"head_dim": 10}),
    ("Ernie4_5ForCausalLM", GROUPED | NO_PAD),
    ("ApertusForCausalLM", GROUPED | NO_PAD),
    ("Lfm2ForCausalLM", GROUPED | NO_PAD | {"layer_types": ["conv", "full_attention"]}),
    ("MambaForCausalLM", {"vocab_size": 41, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8} | NO_PAD),
    ("XGLMForCausalLM", {"vocab_size": 41, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    ("MvpForConditionalGeneration", SEQ2SEQ),
    ("PLBartForConditionalGeneration", SEQ2SEQ),
    (
        "NllbMoeForConditionalGeneration",
        SEQ2SEQ | {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    ("LongT5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0, "local_radius": 3}),
    ("SwitchTransformersForConditionalGeneration", T5 | {"decoder_start_token_id": 0, "num_experts": 4}),
    *((name, WAVE) for name in HEARING),
    ("Wav2Vec2ForCTC", WAVE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("Wav2Vec2ForXVector", WAVE | {"tdnn_dim": (8, 8, 8, 8, 12), "xvector_output_dim": 8}),
    ("Data2VecAudioForCTC", WAVE | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}),
    ("ASTModel", SPECTROGRAM),
    ("ASTForAudioClassification", SPECTROGRAM),
    ("WhisperForConditionalGeneration", SPEECH | {"num_mel_bins": 16, "max_source_positions": 20}),
    ("WhisperForAudioClassification", SPEECH | {"num_mel_bins": 16, "max_source_positions": 20}),
    ("Speech2TextForConditionalGeneration", SPEECH | {"input_feat_per_channel": 16, "max_source_positions": 200}),
    *(("VisionEncoderDecoderModel", {"encoder": PATCHES, "decoder": decoder, **STARTS}) for decoder in WRITERS),
    ("VisionEncoderDecoderModel", {"encoder": DONUT, "decoder": WRITERS[1], **STARTS}),
    ("Dinov2ForImageClassification", IMAGE | {"mlp_ratio": 2}),
    ("SegformerForImageClassification", SEGFORMER),
    ("SegformerForSemanticSegmentation", SEGFORMER),
    ("BeitForSemanticSegmentation", IMAGE | {"out_indices": [1, 2, 3, 4], "num_hidden_layers": 4}),
    ("YolosForObjectDetection", IMAGE | {"image_size": [8, 12], "num_detection_tokens": 5}),
    ("DetrForObjectDetection", DETECTOR),
    ("LlavaForConditionalGeneration", {"text_config": {"model_type": "llama"} | GROUPED, "image_token_index": 40}),
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the board: its name, its class and the options of its configuration."""

    name: str
    cls: str
    options: dict[str, Any]
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)


BESIDE = {"DetrForObjectDetection": {"preprocessor": {"size": {"height": 64, "width": 96}}}}
"""What else is in the folder of a class, as of a processor's configuration."""


def entries() -> list[Entry]:
    """List the board's models, always in one order."""
    classes = [(prefix + head, options) for prefix, options in FAMILIES.items() for head in ("Model", *HEADS)]
    found = [
        Entry(name, NAMED.get(name, name) or name, options)
        for name, options in classes
        if NAMED.get(name, name) is not None
    ]
    plain = {"llama": GROUPED, "mistral": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED | {"head_dim": 10}}
    decoders = {name: options | {"model_type": name} for name, options in plain.items()} | DECODERS
    found += [Entry(name, "AutoModelForCausalLM", options) for name, options in decoders.items()]
    found += [Entry(f"{cls} {index}", cls, options, BESIDE.get(cls, {})) for index, (cls, options) in enumerate(OTHERS)]
    return found
