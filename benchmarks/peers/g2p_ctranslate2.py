"""Turns `examples/g2p/model.pt` into CTranslate2 models; run by `decoders.py` in CTranslate2's environment.

    python g2p_ctranslate2.py NAME CHECKPOINT TOKENIZER MODEL

Fills MODEL with a folder for each of `FORMS`; any NAME will do. The checkpoint's own layout is read: a norm before each
sub-layer, erf's gelu, sinusoidal positions, embeddings scaled by the root of their size and shared by both sides and
the output.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2.converters.converter import Converter
from ctranslate2.specs import TransformerSpec
from ctranslate2.specs.common_spec import Activation

FORMS = {"float32": None, "int8": "int8"}
"""Folder → what CTranslate2 calls the quantization."""

EXPECTED = {
    "kind": "encoder-decoder",
    "activation": "gelu",
    "norm": "layer",
    "norm_first": True,
    "layer_norm_eps": 1e-5,
    "positions": "sinusoidal",
    "scale_embeddings": True,
    "tie_embeddings": True,
}
"""What this converter takes for granted."""


class G2P(Converter):
    """The converter of one checkpoint."""

    def __init__(self, checkpoint: Path, tokenizer: Path) -> None:
        saved = torch.load(checkpoint, weights_only=True)
        self.config = saved["config"]
        self.weights = {name: tensor.float().numpy() for name, tensor in saved["state_dict"].items()}
        vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
        self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        for name, value in EXPECTED.items():
            if self.config[name] != value:
                raise SystemExit(f"{checkpoint} has {name} {self.config[name]!r}; this converts {value!r}")

    def _load(self) -> TransformerSpec:
        config = self.config
        depth = (config["num_encoder_layers"], config["num_decoder_layers"])
        spec = TransformerSpec.from_config(depth, config["nhead"], pre_norm=True, activation=Activation.GELU)
        for name, side in (("encoder", spec.encoder), ("decoder", spec.decoder)):
            embeddings = side.embeddings[0] if name == "encoder" else side.embeddings
            embeddings.weight = self.weights["encoder.embedding.token.weight"]
            side.position_encodings.encodings = positions(config["max_positions"], config["d_model"])
            self._fill(side.layer_norm, f"{name}.norm", norm=True)
            for index, layer in enumerate(side.layer):
                self._layer(layer, f"{name}.layers.{index}")
        spec.decoder.projection.weight = self.weights["encoder.embedding.token.weight"]
        spec.register_source_vocabulary(self.tokens)
        spec.register_target_vocabulary(self.tokens)
        spec.config.bos_token, spec.config.eos_token = (self.tokens[config[f"{x}_token_id"]] for x in ("bos", "eos"))
        spec.config.unk_token, spec.config.decoder_start_token = "<unk>", spec.config.bos_token
        spec.config.layer_norm_epsilon = config["layer_norm_eps"]
        return spec

    def _layer(self, layer: Any, name: str) -> None:
        attentions = [(layer.self_attention, "self_attn", ["in_proj", "out_proj"])]
        if hasattr(layer, "attention"):
            attentions.append((layer.attention, "cross_attn", ["q_proj", "kv_proj", "out_proj"]))
        for spec, part, products in attentions:
            self._fill(spec.layer_norm, f"{name}.{part}_residual.norm", norm=True)
            for product, linear in zip(products, spec.linear, strict=True):
                self._fill(linear, f"{name}.{part}.{product}")
        self._fill(layer.ffn.layer_norm, f"{name}.feed_forward_residual.norm", norm=True)
        self._fill(layer.ffn.linear_0, f"{name}.feed_forward.linear1")
        self._fill(layer.ffn.linear_1, f"{name}.feed_forward.linear2")

    def _fill(self, spec: Any, name: str, norm: bool = False) -> None:
        setattr(spec, "gamma" if norm else "weight", self.weights[f"{name}.weight"])
        setattr(spec, "beta" if norm else "bias", self.weights[f"{name}.bias"])


def positions(count: int, size: int) -> Any:
    """The table of "Attention Is All You Need", sines and cosines interleaved, float32 (count, size)."""
    angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(count, size).astype(np.float32)


if __name__ == "__main__":
    checkpoint, tokenizer, model = map(Path, sys.argv[2:])
    for form, quantization in FORMS.items():
        G2P(checkpoint, tokenizer).convert(str(model / form), quantization=quantization, force=True)
