"""An export of more than 2 GiB, which no protobuf message holds: time and memory of every stage, and that it runs.

    python benchmarks/export_large.py [--kind decoder] [--vocabulary 300000] [--width 1920] [--precision fp32]

Makes a model up whose table of embeddings is nearly all of it (a decoder's: half, the output projection being the other
half), exports it in a process of its own, every gate included, and runs the bundle in a third. Exits with 1 where a
gate fails, or the weights do not lie beside the graph. Needs twice the size of the weights on the disk, and the memory
that RESULTS.md tells of. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tfm.latency.processes import python_command

_PEAK = """
import re, sys, time

def peak():  # getrusage's would include the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e6

start = time.perf_counter()
"""

_WRITE = """
import sys, torch
from tfm.model import Transformer, TransformerConfig, save_checkpoint
torch.manual_seed(0)
save_checkpoint(
    Transformer(
        TransformerConfig(
            kind=sys.argv[2], vocab_size=int(sys.argv[3]), d_model=int(sys.argv[4]), nhead=8, num_encoder_layers=1,
            num_decoder_layers=1, dim_feedforward=64, max_positions=64, activation="gelu", pad_token_id=0,
            tie_embeddings=False,
        )
    ).eval(),
    sys.argv[1],
)
"""

_EXPORT = (
    _PEAK
    + """
import contextlib
from tfm.export import export_checkpoint

@contextlib.contextmanager
def stage(name):
    began = time.perf_counter()
    yield lambda *_: None  # steps are not shown
    print(f"  {name:32} {time.perf_counter() - began:7.1f} s   peak so far {peak():6.2f} GB", flush=True)

before = peak()
report = export_checkpoint(sys.argv[1], sys.argv[2], precisions=sys.argv[3:], stage=stage)
print(f"export: {time.perf_counter() - start:.1f} s, peak {peak():.2f} GB (imports alone {before:.2f} GB)")
for name, size in report.sizes.items():
    print(f"  {name}: {size / 1e9:.3f} GB of ONNX")
for row in report.latency:
    print(f"  {row.work}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in row.milliseconds.items()))
print("\\n".join(report.faults()) or "every gate passed")
sys.exit(not report.passed)
"""
)

_RUN = (
    _PEAK
    + """
import numpy as np
from tfm.runtime import load

model = load(sys.argv[1], precision=sys.argv[2])
loaded, last = time.perf_counter() - start, int(sys.argv[3]) - 1
if hasattr(model, "generate"):
    (found,) = model.generate([[1, last, 7]], max_new_tokens=4)
    good = len(found) == 4
else:
    ids = np.array([[1, last, 7]])
    found = model.run(input_ids=ids, attention_mask=np.ones_like(ids))["last_hidden_state"]
    good = np.isfinite(found).all() and found.std() > 0.1
ran = time.perf_counter() - start - loaded
print(
    f"run {sys.argv[2]}: loaded in {loaded:.1f} s, digests included; run in {ran:.1f} s, "
    f"peak {peak():.2f} GB; {'good' if good else f'wrong: {found}'}"
)
sys.exit(not good)
"""
)


def run(program: str, *arguments: object) -> bool:
    """Run a program in a process of its own; tell whether it ended well."""
    return subprocess.run(python_command(program, *map(str, arguments)), check=False).returncode == 0


def main() -> int:
    """Measure; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["encoder", "decoder"], default="encoder")
    parser.add_argument("--vocabulary", type=int, help="[default: 300000, of a decoder 160000]")
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--precision", action="append", choices=["fp32", "int8"], help="[default: fp32 alone]")
    parser.add_argument("--folder", type=Path, help="Where to write [default: a temporary folder].")
    options = parser.parse_args()
    precisions = options.precision or ["fp32"]
    vocabulary = options.vocabulary or {"encoder": 300_000, "decoder": 160_000}[options.kind]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint, bundle = Path(folder) / "model.pt", Path(folder) / "large.tfm"
        if not run(_WRITE, checkpoint, options.kind, vocabulary, options.width):
            return 1
        print(f"checkpoint: {checkpoint.stat().st_size / 1e9:.3f} GB, float32", flush=True)
        if not run(_EXPORT, checkpoint, bundle, *precisions):
            return 1
        files = {file.name: file.stat().st_size for file in sorted((bundle / "onnx").iterdir())}
        print("files: " + ", ".join(f"{name} {size} B" for name, size in files.items()), flush=True)
        ran = [run(_RUN, bundle, name, vocabulary) for name in precisions]
        return int(not all(ran) or "model.onnx_data" not in files)


if __name__ == "__main__":
    sys.exit(main())
