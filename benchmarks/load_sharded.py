"""How much memory loading a large checkpoint in several files takes: at most its size and a quarter of it.

    python benchmarks/load_sharded.py [--gigabytes 2] [--dtype bfloat16] [--folder DIR]

Makes a Llama up, in shards as Hugging Face writes them, loads it in a process of its own, and compares the peak of that
process's resident memory, less what it was before, with the size of the weights. Every weight is then read once, as an
export would. Exits with 1 where the peak is too high. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from tfm.latency.processes import python_command

ALLOWED = 1.25
"""Peak over size."""

_WIDTH, _FEED_FORWARD, _VOCABULARY, _HEADS = 2048, 5632, 32000, 16

_LOAD = """
import re, sys, time
import torch
from tfm.model import load_checkpoint

def peak():  # getrusage's would include the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before, start = peak(), time.perf_counter()
model = load_checkpoint(sys.argv[1])
seconds, loaded = time.perf_counter() - start, peak()
for parameter in model.parameters():
    parameter.sum()
print(seconds, loaded - before, peak() - before)
"""


def write(folder: Path, gigabytes: float, dtype: torch.dtype) -> int:
    """Write config.json, shards of some 200 MB and their index; give the number of bytes of all weights."""
    layer = {
        **{f"self_attn.{part}_proj.weight": (_WIDTH, _WIDTH) for part in "qkvo"},
        **{f"mlp.{part}_proj.weight": (_FEED_FORWARD, _WIDTH) for part in ("gate", "up")},
        "mlp.down_proj.weight": (_WIDTH, _FEED_FORWARD),
        "input_layernorm.weight": (_WIDTH,),
        "post_attention_layernorm.weight": (_WIDTH,),
    }
    per_layer = sum(torch.Size(shape).numel() for shape in layer.values()) * dtype.itemsize
    layers = max(1, round(gigabytes * 1e9 / per_layer))
    groups = [{"model.embed_tokens.weight": (_VOCABULARY, _WIDTH), "model.norm.weight": (_WIDTH,)}]
    groups += [{f"model.layers.{n}.{name}": shape for name, shape in layer.items()} for n in range(layers)]
    places, size = {}, 0
    for index, group in enumerate(groups):
        file = f"model-{index + 1:05}-of-{len(groups):05}.safetensors"
        weights = {name: (torch.randn(shape) * 0.02).to(dtype) for name, shape in group.items()}
        safetensors.torch.save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, file)
        size += sum(weight.nbytes for weight in weights.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    values = {
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _WIDTH,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": layers,
        "intermediate_size": _FEED_FORWARD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return size


def main() -> int:
    """Measure; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--folder", type=Path, help="Where to write the checkpoint [default: a temporary folder].")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write(Path(folder), options.gigabytes, getattr(torch, options.dtype))
        done = subprocess.run(python_command(_LOAD, folder), stdout=subprocess.PIPE, text=True, check=True)
    seconds, loaded, used = (float(word) for word in done.stdout.split())
    print(f"weights        {size / 1e9:6.2f} GB, {options.dtype}, in files of one layer each")
    print(f"peak, loading  {loaded / 1e9:6.2f} GB, {loaded / size:.2f} of the weights, in {seconds:.1f} s")
    print(f"peak, all read {used / 1e9:6.2f} GB, {used / size:.2f} of the weights; allowed: {ALLOWED}")
    return int(used > ALLOWED * size)


if __name__ == "__main__":
    sys.exit(main())
