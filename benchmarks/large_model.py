"""What a large model takes to be exported: a made-up llama in bfloat16, time and memory of every stage.

    python benchmarks/large_model.py [--layers 22] [--precision fp32 --precision int4] [--search none] [--most 13]

By default it has the 1.1 billion parameters and the shapes of TinyLlama, drawn from a fixed seed; fewer layers make a
smaller one. The checkpoint is a folder as Hugging Face writes it. It is exported by a process of its own, every gate
included, whose memory and that of the processes it starts is added up every other second, what they share once
(PSS). Where that is more than --most GB the export is ended, so that nobody else's work is. Linux only.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from tfm.latency.processes import python_command

SHAPES = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "heads": 32, "kv_heads": 4}
_EVERY = 2.0
_CHUNK = 1 << 22

_EXPORT = """
import contextlib, resource, sys, time
from tfm.export import export_checkpoint

def cpu():
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))

@contextlib.contextmanager
def stage(name):
    began, used = time.perf_counter(), cpu()
    print(f"> {name}", flush=True)
    yield lambda *_: None  # steps are not shown
    print(f"< {time.perf_counter() - began:.1f} {cpu() - used:.1f}", flush=True)

report = export_checkpoint(sys.argv[1], sys.argv[2], precisions=sys.argv[4:], search=sys.argv[3], stage=stage)
for name, size in report.sizes.items():
    print(f"{name}: {size / 1e9:.3f} GB of ONNX")
for entry in report.certificate["quantization"].values():
    print(f"drop {entry['held_out']['drop']:.4f} of {entry['max_drop']} allowed")
print("\\n".join(report.faults()) or "every gate passed", flush=True)
sys.exit(not report.passed)
"""


def main() -> int:
    """Measure; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--precision", action="append", choices=["fp32", "int8", "int4"], help="[default: fp32, int4]")
    parser.add_argument("--search", default="none", choices=["full", "quick", "none"])
    parser.add_argument("--most", type=float, default=13.0, help="GB at which the export is ended [default: 13]")
    parser.add_argument("--folder", type=Path, help="Where to write [default: a temporary folder].")
    options = parser.parse_args()
    precisions = options.precision or ["fp32", "int4"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        count = write_checkpoint(Path(folder) / "llama", options.layers)
        load = os.getloadavg()[0]
        print(f"{count / 1e9:.3f} billion parameters, {4 * count / 1e9:.2f} GB in float32; load {load:.1f}", flush=True)
        return export(Path(folder), [options.search, *precisions], options.most, 4 * count / 1e9)


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write a llama of random weights in bfloat16, a piece at a time; gives the number of its parameters."""
    width, inner = SHAPES["hidden_size"], SHAPES["intermediate_size"]
    cached = width // SHAPES["heads"] * SHAPES["kv_heads"]
    of_layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (cached, width),
        "self_attn.v_proj": (cached, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (SHAPES["vocab_size"], width)}
    shapes |= {f"model.layers.{n}.{key}.weight": shape for n in range(layers) for key, shape in of_layer.items()}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (SHAPES["vocab_size"], width)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "num_attention_heads": SHAPES["heads"],
        "num_key_value_heads": SHAPES["kv_heads"],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **{key: SHAPES[key] for key in ("vocab_size", "hidden_size", "intermediate_size")},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", shapes)
    return sum(int(np.prod(shape)) for shape in shapes.values())


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write normal weights of a fiftieth, norms about 1, in bfloat16.

    The head has the rows of the table, which is fifty times as large: the model says again what it read, and is sure
    of it. Of a model that is sure of nothing, every rounding changes the next token.
    """
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        for number, (name, shape) in enumerate(shapes.items()):
            table, head = "embed_tokens" in name, "lm_head" in name
            rng, scale = np.random.default_rng(0 if table or head else 1 + number), np.float32(1 if table else 0.02)
            left, middle = int(np.prod(shape)), np.float32(len(shape) == 1)
            while left:
                count = min(left, _CHUNK)
                values = middle + rng.standard_normal(count, np.float32) * scale
                stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count


def export(folder: Path, arguments: list[str], most: float, weights: float) -> int:
    """Run the export and print a line for each of its stages; gives its exit code."""
    command = python_command(_EXPORT, str(folder / "llama"), str(folder / "llama.tfm"), *arguments)
    began, whole, peak, name = time.perf_counter(), 0.0, 0.0, ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
    line: str | None = ""
    while line is not None:
        used = memory_of(process.pid)
        peak, whole = max(peak, used), max(whole, used)
        if used > most:
            print(f"ended in {name!r}: {used:.2f} GB, more than {most:g}")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            most = float("inf")
        try:
            line = lines.get(timeout=_EVERY)
        except queue.Empty:
            continue
        if line is None or not line.startswith(("> ", "< ")):
            print(line or "", flush=True)
        elif line.startswith("> "):
            name, peak = line[2:], used
        else:
            seconds, processor = map(float, line[2:].split())
            print(f"  {name:48} {seconds:7.1f} s  {processor:7.1f} s of processors  {peak:6.2f} GB", flush=True)
    code, times = process.wait(), os.times()
    used_by_all = times.children_user + times.children_system
    print(
        f"export: {time.perf_counter() - began:.0f} s, {used_by_all:.0f} s of processors, "
        f"at most {whole:.2f} GB, {whole / weights:.2f} times the weights"
    )
    return code


def _listen(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def memory_of(pid: int) -> float:
    """GB that a process and all that it started hold, what they share counted once."""
    return sum(_held(one) for one in _tree(pid)) / 1e6


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    sys.exit(main())
