"""The peers of `minilm_int8.py`: an environment and an int8 model for each, made once and kept."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch>=2.10,<2.14"
PEERS = {
    "ctranslate2": ["ctranslate2==4.8.5", "transformers==4.57.6", TORCH],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0", "transformers==5.23.0", TORCH],
    "onnxruntime": ["onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2", "transformers==5.23.0", TORCH],
    "optimum": ["optimum-onnx==0.1.0", "onnxruntime==1.32.0", "onnx==1.23.2", "transformers==4.57.6", TORCH],
}
"""Environment → what is installed in it."""

TOOLS = Path(__file__).parent
REFERENCE = "PyTorch, float32"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One line of the tables.

    Attributes:
        name: As printed.
        python: Interpreter that has what it needs.
        job: What `peers/worker.py` is told.
        files: What the engine reads of weights and graph.
    """

    name: str
    python: Path
    job: dict[str, str]
    files: Sequence[Path]


def say(text: str) -> None:
    """Tell the progress."""
    print(text, file=sys.stderr, flush=True)


def make_environment(peers: Path, name: str) -> Path:
    """Make what `PEERS` says, unless it is there; give its interpreter."""
    folder, wanted = peers / name, "\n".join(PEERS[name])
    python, ready = folder / "bin" / "python", folder / "installed.txt"
    if not ready.is_file() or ready.read_text() != wanted:
        say(f"install {', '.join(PEERS[name])}")
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name]], check=True, stdout=sys.stderr)
        ready.write_text(wanted)
    return python


def make_model(peers: Path, name: str, checkpoint: Path, calibration: list[list[int]]) -> Path:
    """Convert the checkpoint, unless the same was converted in the same way; give the folder."""
    python, rows = make_environment(peers, name), json.dumps(calibration)
    source = [(TOOLS / "convert.py").read_text(), "\n".join(PEERS[name]), rows]
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    digest = hashlib.sha256("\0".join([*source, weights]).encode()).hexdigest()[:12]
    folder = peers / "models" / f"{name}-{digest}"
    if not folder.is_dir():
        say(f"convert by {name}")
        half_done = folder.with_suffix(".part")
        shutil.rmtree(half_done, ignore_errors=True)
        half_done.mkdir(parents=True)
        (half_done / "calibration.json").write_text(rows)
        command = [python, TOOLS / "convert.py", name, checkpoint, half_done / "calibration.json", half_done]
        subprocess.run(command, check=True, stdout=sys.stderr, env=ENVIRONMENT)
        half_done.rename(folder)
    return folder


def prepare_peers(peers: Path, checkpoint: Path, calibration: list[list[int]]) -> list[Engine]:
    """The other engines, the reference first."""
    folders = {name: make_model(peers, name, checkpoint, calibration) for name in PEERS}

    def engine(name: str, place: str, kind: str, model: Path, files: str, **more: str) -> Engine:
        job, folder = {"engine": kind, "model": str(model), **more}, model if model.is_dir() else model.parent
        return Engine(name=name, python=peers / place / "bin" / "python", job=job, files=sorted(folder.glob(files)))

    xml, hints = folders["openvino"] / "model.xml", {"": {}, ", float32 hint": {"hint": "f32"}}
    plain, optimised = folders["onnxruntime"] / "model.onnx", folders["optimum"] / "model_quantized.onnx"
    return [
        engine(REFERENCE, "onnxruntime", "torch", checkpoint, "model.safetensors"),
        engine("CTranslate2 int8", "ctranslate2", "ctranslate2", folders["ctranslate2"], "model.bin"),
        *(
            engine(f"OpenVINO + NNCF int8{what}", "openvino", "openvino", xml, "model.[bx]*", **hint)
            for what, hint in hints.items()
        ),
        engine("onnxruntime quantize_dynamic int8", "onnxruntime", "onnxruntime", plain, plain.name),
        engine("optimum-onnx dynamic int8", "optimum", "onnxruntime", optimised, optimised.name),
    ]
