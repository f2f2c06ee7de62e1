"""Tiny checkpoints of random weights, their bundles, and what transformers' greedy `generate` makes of some prompts.

    python benchmarks/readers/checkpoints.py DIR

Run in this project's own environment. In DIR: NAME (the checkpoint), NAME.tfm (the bundle), expected.json.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import tfm.export.bundle as exporting
from tfm.export import export_checkpoint

NEW_TOKENS = 8
WORDS = 40
PROMPTS = {
    "one row": [[5, 9, 17, 3, 30]],
    "rows of one length": [[5, 9, 17], [7, 11, 35], [4, 21, 8]],
    "rows padded on the left": [[5, 9, 17, 3, 30], [7, 11], [4, 21, 8]],
}
"""What is continued."""

SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def configurations() -> dict[str, Any]:
    """One of each family: grouped heads and rotary positions, learned positions, head norms, windows and soft caps."""
    gpt2 = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ids = {name: SIZES[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "llama": transformers.LlamaConfig(**SIZES),
        "gpt2": transformers.GPT2Config(**gpt2, **ids),
        "qwen3": transformers.Qwen3Config(**SIZES),
        # As many heads of keys as of queries: optimum-onnx 0.1.0 makes no others for this family.
        "gemma2": transformers.Gemma2Config(
            **SIZES | {"sliding_window": 4, "query_pre_attn_scalar": 8, "num_key_value_heads": 4}
        ),
    }


def tokenizer() -> Tokenizer:
    """Words t0 … t39, as some readers want one beside every model."""
    made = Tokenizer(models.WordLevel({f"t{word}": word for word in range(WORDS)}, unk_token="t3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


@torch.no_grad()
def make(folder: Path, name: str, config: Any) -> dict[str, Any]:
    """Make a checkpoint and its bundle; give prompts and what transformers generates, by kind of batch."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.mul_(4 if parameter.dim() > 1 else 1)  # so that the likeliest tokens stand out
    shutil.rmtree(folder / name, ignore_errors=True)
    model.save_pretrained(folder / name)
    tokenizer().save(str(folder / name / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    report = export_checkpoint(folder / name, folder / f"{name}.tfm", precisions=("fp32",), overwrite=True)
    assert report.shipped, [gate.reason for gate in report.gates() if not gate.passed]
    expected = {}
    for kind, batch in PROMPTS.items():
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected[kind] = {"ids": ids.tolist(), "mask": mask.tolist(), "new": found[:, longest:].tolist()}
    return expected


def main(folder: Path) -> None:
    """Make all."""
    folder.mkdir(parents=True, exist_ok=True)
    exporting.measure_latency = lambda *_: []  # nothing here is about speed
    expected = {name: make(folder, name, config) for name, config in configurations().items()}
    (folder / "expected.json").write_text(json.dumps({"new_tokens": NEW_TOKENS, "models": expected}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
