"""Tiny random models that write what they hear or see, beside what checkpoints of theirs have."""

import json
import warnings
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SIZES: dict[str, Any] = {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 50,
    "bos_token_id": 50,
    "eos_token_id": 50,
    "decoder_start_token_id": 51,
}
"""Words are ids below 50."""

SPOKEN: dict[str, Any] = {
    "lang_to_id": {"<|en|>": 52, "<|de|>": 53},
    "task_to_id": {"transcribe": 54, "translate": 55},
    "no_timestamps_token_id": 59,
    "is_multilingual": True,
    "max_initial_timestamp_index": 10,
    "suppress_tokens": [3, 5, 56, 57, 58],
    "begin_suppress_tokens": [7, 50],
    "max_length": 40,
}
"""What a generation_config.json of Whisper's says besides."""

TIMES = 51
"""From 0 to a second, behind the words and the other tokens: what this model hears at once."""

VOCABULARY = 60 + TIMES

IMAGE: dict[str, Any] = {
    "hidden_size": 15,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 22,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}


def randomize(model: Any, seed: int = 0) -> Any:
    """Give weights that are large enough for texts to differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" in name and not weight.requires_grad:
                continue  # a fixed table
            unit = 1.0 if "norm" in name.lower() and name.endswith("weight") and weight.ndim == 1 else 0.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + unit)
    return model.eval()


def save_words(folder: Path) -> None:
    """Save a tokenizer that writes id 7 as "w7"; those from 50 to 59 are special ones, and times are not."""
    import transformers

    words = [f"w{n}" for n in range(50)]
    special = ["<|endoftext|>", "<|start|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"]
    special += ["<|lm|>", "<|prev|>", "<|nospeech|>", "<|notimestamps|>"]
    names = [*words, *special, *(f"<|{n * 0.02:.2f}|>" for n in range(TIMES))]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="w0"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=special[0], additional_special_tokens=special[1:]
    )
    tokenizer.save_pretrained(folder)


def text_of(ids: list[int]) -> str:
    """Write ids as the tokenizer does: words alone."""
    return "".join(f"w{token}" for token in ids if token < 50)


def make_whisper(folder: Path, **spoken: Any) -> Any:
    """Save a Whisper that hears a second, and what goes with it."""
    import transformers

    sizes = SIZES | {"num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 40}
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.WhisperConfig(vocab_size=VOCABULARY, **sizes, **none)
        model = randomize(transformers.WhisperForConditionalGeneration(config))
        model.save_pretrained(folder)
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    save_words(folder)
    # As files on the hub are: null is left out.
    path = folder / "generation_config.json"
    told = {**json.loads(path.read_text()), **SPOKEN, **spoken}
    told.pop("_from_model_config", None)  # of such a file transformers forgets what it does not know
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def make_speech_to_text(folder: Path) -> Any:
    """Save a Speech2Text, and its feature extractor."""
    import transformers

    sizes = {"input_feat_per_channel": 16, "conv_channels": 12, "max_source_positions": 400, "max_target_positions": 40}
    # Positions are counted behind the id of padding.
    config = transformers.Speech2TextConfig(vocab_size=60, **(SIZES | sizes | {"pad_token_id": 1}))
    model = randomize(transformers.Speech2TextForConditionalGeneration(config))
    model.save_pretrained(folder)
    transformers.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(folder)
    save_words(folder)
    return model


def make_image_to_text(decoder: str, folder: Path) -> Any:
    """Save a VisionEncoderDecoder of ViT and TrOCR's decoder, GPT-2, or of Donut's two parts."""
    import transformers

    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    bart = ends | {"d_model": 20, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    bart |= {"vocab_size": 60, "max_position_embeddings": 40, "is_decoder": True, "add_cross_attention": True}
    parts: dict[str, Any] = {
        "trocr": lambda: transformers.TrOCRConfig(**bart, cross_attention_hidden_size=15),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=60, n_embd=20, n_head=2, n_layer=2, n_positions=40, add_cross_attention=True, is_decoder=True
        ),
        "donut": lambda: transformers.MBartConfig(**bart, is_encoder_decoder=False, add_final_layer_norm=True),
    }
    if decoder == "donut":
        window = {"window_size": 4, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 12, "patch_size": 2}
        encoder = transformers.DonutSwinConfig(image_size=[16, 32], **window)
    else:
        encoder = transformers.ViTConfig(**IMAGE)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, parts[decoder]())
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 2
    model = randomize(transformers.VisionEncoderDecoderModel(config))
    for name, value in {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2}.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    save_words(folder)
    return model
