"""Tiny random models that hear, beside their feature extractor and letters, as checkpoints have them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tfm.export.verify.ask_library import make_sounds

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C", "'", "E", "F"]

SIZES: dict[str, Any] = {
    "hidden_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "vocab_size": len(LETTERS) + 2,  # the last but one is an added token, the last nothing at all
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": 4,
    "pad_token_id": 0,
}
STABLE = SIZES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2", SIZES),
    "wav2vec2 (large)": ("Wav2Vec2", STABLE),
    "hubert": ("Hubert", SIZES),
    "wavlm": ("WavLM", SIZES),
    "data2vec-audio": ("Data2VecAudio", SIZES | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}),
    "unispeech": ("UniSpeech", SIZES),
}
"""Family → how transformers calls its classes, and its sizes."""

SPECTROGRAM = {
    "hidden_size": 20,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_length": 24,
    "num_mel_bins": 16,
    "patch_size": 8,
    "frequency_stride": 8,
    "time_stride": 8,
    "num_labels": 4,
}


def make_sound_model(family: str, head: str, folder: Path, **options: Any) -> Any:
    """Save a model, and what goes with it; its letters differ from frame to frame."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family == "audio-spectrogram-transformer":
        name, sizes = "AST", SPECTROGRAM
        extractor = transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=24)
    else:
        name, sizes = FAMILIES[family]
        extractor = transformers.Wav2Vec2FeatureExtractor(**options.pop("extractor", {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = getattr(transformers, f"{name}{head}")
        model = cls(cls.config_class(**(sizes | options))).eval()
        if head == "ForCTC":
            _spread(model, extractor)
            letters(folder)
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    return model


def _spread(model: Any, extractor: Any) -> None:
    """Have each letter be the likeliest of some frames: the mean of its logits is taken off."""
    import torch

    wave = next(iter(make_sounds(16000)))
    inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
        model.lm_head.bias.zero_()
        logits = model(**inputs).logits[0]
        scale = 1 / logits.std(0)
        model.lm_head.weight.mul_(scale[:, None])
        model.lm_head.bias.copy_(-logits.mean(0) * scale)


def letters(folder: Path, **options: Any) -> Any:
    """Save and give the tokenizer that writes letters."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "vocab.json"
    file.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    made = transformers.Wav2Vec2CTCTokenizer(str(file), **options)
    made.add_tokens(["<x>"])
    made.save_pretrained(folder)
    return made


def sounds() -> list[Any]:
    """Waves of 16,000 samples a second, and a short one."""
    found = list(make_sounds(16000))
    return [*found, found[1][:900], np.zeros(3000, np.float32)]
