"""Environments and converted models of the peers, each made once and kept.

    python benchmarks/peers/environments.py DIR [NAME …]

makes the environments, all unless some are named; the comparisons make what they need themselves. Which index torch
comes from is for pip's own configuration to say.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from side_by_side import environment, say

TORCH = "torch>=2.10,<2.14"
ENVIRONMENTS = {
    "ctranslate2": ["ctranslate2==4.8.5", "transformers==4.57.6", TORCH],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0", "transformers==5.23.0", TORCH],
    "onnxruntime": ["onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2", "transformers==5.23.0", TORCH],
    "optimum": [
        "optimum-onnx==0.1.0",
        "sentence-transformers==5.7.0",  # the newest that allows a transformers which optimum-onnx allows
        "onnxruntime==1.32.0",
        "onnx==1.23.2",
        "transformers==4.57.6",
        TORCH,
    ],
    "torchao": ["torchao==0.18.0", "transformers==5.23.0", "gguf==0.19.0", TORCH],
    "genai": [  # the last two are what transformers wants to read GGUF files
        "onnxruntime-genai==0.18.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "transformers==5.23.0",
        TORCH,
        "gguf==0.19.0",
        "accelerate==1.15.0",
    ],
    "llama": [  # compiled here, for this machine's own instructions
        "llama-cpp-python==0.3.36",
        "--no-binary=llama-cpp-python",
        "--config-settings=cmake.args=-DGGML_NATIVE=ON;-DLLAVA_BUILD=OFF",
    ],
}
"""Environment → what is installed in it."""

TOOLS = Path(__file__).parent


def python_of(peers: Path, name: str) -> Path:
    """Make the environment unless it is there; give its interpreter."""
    folder, wanted = peers / name, "\n".join(ENVIRONMENTS[name])
    python, ready = folder / "bin" / "python", folder / "installed.txt"
    if not ready.is_file() or ready.read_text() != wanted:
        say(f"install {', '.join(ENVIRONMENTS[name])}")
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-I", "-m", "pip", "install", "-q", *ENVIRONMENTS[name]], check=True, stdout=sys.stderr)
        ready.write_text(wanted)
    return python


def make_model(
    peers: Path, name: str, python_environment: str, script: Path, arguments: Sequence[str | Path], made_from: str
) -> Path:
    """Run `script NAME ARGUMENTS… FOLDER` unless that was done before in the same way.

    Args:
        peers: Where models and environments are kept.
        name: Of the model.
        python_environment: The one that it is made in.
        script: What fills the folder.
        arguments: For the script.
        made_from: What else the model depends on, such as a digest of the checkpoint: where it, the script or the
            environment changes, the model is made anew.

    Returns:
        The folder.
    """
    python = python_of(peers, python_environment)
    source = "\0".join([script.read_text(), "\n".join(ENVIRONMENTS[python_environment]), made_from])
    folder = peers / "models" / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        say(f"make {name}")
        half_done = folder.with_suffix(".part")
        shutil.rmtree(half_done, ignore_errors=True)
        half_done.mkdir(parents=True)
        subprocess.run([python, script, name, *arguments, half_done], check=True, stdout=sys.stderr, env=environment(1))
        half_done.rename(folder)
    return folder


def digest_of(*files: Path) -> str:
    """SHA-256 of files one after the other."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def versions(peers: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Environment → every package in it → version."""
    found = {}
    for name in names:
        command = [python_of(peers, name), "-I", "-m", "pip", "list", "--format", "json"]
        listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment(1)).stdout
        found[name] = {package["name"]: package["version"] for package in json.loads(listed)}
    return found


if __name__ == "__main__":
    for wanted in sys.argv[2:] or ENVIRONMENTS:
        python_of(Path(sys.argv[1]).resolve(), wanted)
