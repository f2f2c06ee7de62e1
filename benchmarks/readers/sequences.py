"""Tiny models that turn one sequence into another, their bundles, and what transformers' greedy `generate` gives.

    python benchmarks/readers/sequences.py DIR [NAME …]

Run in this project's own environment. In DIR: NAME (the checkpoint), NAME.tfm (the bundle), NAME.int8.tfm (packed for
transformers.js), sequences.json; of int8 what is to come out is what ours gives. NAMEs make those alone.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import NEW_TOKENS, WORDS, tokenizer

import tfm
import tfm.export.bundle as exporting
from tfm.bundle import pack_bundle
from tfm.export import export_checkpoint
from tfm.quantize import save_in_one_file

END = 2
SOURCES = {
    "one row": [[5, 9, 17, 3, 30, 2]],
    "rows of one length": [[5, 9, 17, 2], [7, 11, 35, 2], [4, 21, 8, 2]],
    "rows padded on the right": [[5, 9, 17, 3, 30, 2], [7, 11, 2], [4, 21, 8, 35, 2]],
}
"""What is turned into another sequence, each with its end token."""

FACTORS = {"t5": 1.5, "bart": 3, "marian": 2}
"""By how much weights are enlarged: so that tokens follow that differ, and by more than rounding."""


def configurations() -> dict[str, Any]:
    """Relative positions and no biases, learned positions, sinusoidal ones."""
    sizes = {
        "vocab_size": WORDS,
        "d_model": 32,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": END,
        "tie_word_embeddings": False,  # else each token is most likely followed by itself
    }
    return {
        "t5": transformers.T5Config(
            vocab_size=WORDS,
            d_model=32,
            d_kv=8,  # optimum-onnx 0.1.0 makes the first cache of heads of d_model / num_heads
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=END,
        ),
        "bart": transformers.BartConfig(**sizes, bos_token_id=1, decoder_start_token_id=2, forced_eos_token_id=END),
        "marian": transformers.MarianConfig(
            **sizes, bos_token_id=None, decoder_start_token_id=0, forced_eos_token_id=END, scale_embedding=True
        ),
    }


@torch.no_grad()
def save(folder: Path, config: Any) -> Any:
    """Make a checkpoint of random weights; give the model."""
    torch.manual_seed(3)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    model.generation_config.max_new_tokens = NEW_TOKENS  # no end is likely before: the export would generate for long
    for parameter in model.parameters():
        # Positions that are computed are parameters too, which no training changes.
        if parameter.dim() > 1 and parameter.requires_grad:
            parameter.mul_(FACTORS[config.model_type])
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


@torch.no_grad()
def make(folder: Path, name: str, config: Any) -> list[dict[str, Any]]:
    """Make a checkpoint, its bundle and a pack of it; give, for each precision, what is to come out."""
    model = save(folder / name, config)
    bundle, pack = folder / f"{name}.tfm", folder / f"{name}.int8.tfm"
    report = export_checkpoint(
        folder / name, bundle, precisions=("fp32", "int8"), search="none", overwrite=True, force=True
    )
    # Of random weights int8 need not be near: what is looked at here is who reads it.
    wrong = [gate.reason for gate in report.gates() if not gate.passed and gate.precision != "int8"]
    assert not wrong, wrong
    pack_bundle(bundle, pack, precisions=["int8"], target="node", rewrite=save_in_one_file, overwrite=True)
    exact, ours = {}, {}
    with tfm.load(bundle, provider="cpu", precision="int8") as int8:
        for kind, batch in SOURCES.items():
            longest = max(map(len, batch))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
            both = {"ids": ids.tolist(), "mask": mask.tolist(), "end": END}
            # Without the token that each target starts with.
            exact[kind] = both | {"new": found[:, 1:].tolist()}
            ours[kind] = both | {"new": int8.generate(batch, NEW_TOKENS, do_sample=False, num_beams=1)}
    return [
        {"name": name, "precision": "fp32", "bundle": bundle.name, "dtype": "fp32", "batches": exact},
        {"name": name, "precision": "int8", "bundle": bundle.name, "dtype": "int8", "batches": ours},
        {"name": name, "precision": "int8, packed", "bundle": pack.name, "dtype": "q8", "batches": ours},
    ]


def main(folder: Path, names: Sequence[str]) -> None:
    """Make all, or those that are named."""
    folder.mkdir(parents=True, exist_ok=True)
    exporting.measure_latency = lambda *_: []  # nothing here is about speed
    file, configs = folder / "sequences.json", configurations()
    made = json.loads(file.read_text())["models"] if names and file.is_file() else []
    for name in names or configs:
        made = [one for one in made if one["name"] != name] + make(folder, name, configs[name])
        file.write_text(json.dumps({"new_tokens": NEW_TOKENS, "models": made}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
