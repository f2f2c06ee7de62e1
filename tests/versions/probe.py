"""Use the installed tfm as an app and a shell would, on the onnxruntime, numpy, click and tokenizers beside it.

python probe.py REPORT KIND=BUNDLE…

A kind may have more words behind it, which tell bundles of one kind apart.

Writes JSON: "versions", and kind → precision → step → what came of it: "ok", or the error's own words; and answers,
by which this environment is compared with another. Needs nothing but tfm and what its base install brings.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfm.runtime import load

PACKAGES = ("onnxruntime", "numpy", "click", "tokenizers")
OTHERS = ("torch", "onnx", "onnx-ir", "onnxscript", "rich", "jinja2", "safetensors", "gguf")
TEXTS = ["A cat sat on the mat.", "Ein Hund läuft schnell — naïve café, 東京 🙂"]
WORDS = ["onnx", "transformer"]


def main() -> None:
    report, *pairs = sys.argv[1:]
    bundles = dict(pair.split("=", 1) for pair in pairs)
    kinds = {name: look_at(name.partition(" ")[0], Path(bundle)) for name, bundle in bundles.items()}
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": versions_of(PACKAGES),
        "others": versions_of(OTHERS),
        "heavy": [name for name in ("torch", "onnx", "onnx_ir") if importlib.util.find_spec(name) is not None],
        "kinds": kinds,
    }
    Path(report).write_text(json.dumps(found), encoding="utf-8")


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def look_at(kind: str, bundle: Path) -> dict[str, Any]:
    precisions = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["graphs"]
    found: dict[str, Any] = {name: use(kind, bundle, name) for name in precisions}
    commands = {"parity": ["parity", bundle], "doctor": ["doctor", bundle]}
    if kind != "module":  # that takes arrays, which no command does
        commands["tfm run"] = ["run", bundle, *inputs_of(kind)]
    return {"precisions": found, "commands": {name: run_command(parts) for name, parts in commands.items()}}


def inputs_of(kind: str) -> list[Any]:
    return ["--max-new-tokens", "8", TEXTS[0]] if kind == "decoder" else [WORDS[0]]


def run_command(parts: list[Any]) -> dict[str, Any]:
    command = Path(sys.executable).with_name("tfm")
    done = subprocess.run([command, *parts], capture_output=True, text=True, encoding="utf-8", timeout=600)
    return {"code": done.returncode, "said": (done.stdout + done.stderr)[-4000:]}


def use(kind: str, bundle: Path, precision: str) -> dict[str, Any]:
    """Load a bundle, run its graph on the golden inputs, and do its tasks."""
    answers: dict[str, Any] = {}
    steps: dict[str, str] = {}
    opened: list[Any] = []

    def step(name: str, work: Callable[[], Any]) -> None:
        try:
            answers[name] = work()
        except Exception as error:  # whatever it is, it is what this combination does
            steps[name] = f"{type(error).__name__}: {error}"
        else:
            steps[name] = "ok"

    step("load", lambda: opened.append(load(bundle, provider="cpu", precision=precision, threads=1)))
    answers.pop("load", None)
    if opened:
        (model,) = opened
        step("run", lambda: run(model, bundle, kind))
        if kind == "encoder":
            step("embed", lambda: model.embed(TEXTS).tolist())
        if kind == "encoder-decoder":
            step("generate", lambda: model.generate(WORDS))
        if kind == "decoder":
            step("generate", lambda: model.generate(TEXTS, max_new_tokens=8))
            step("tokenize", lambda: model.tokenize(TEXTS))
    return {"steps": steps, "answers": answers}


def run(model: Any, bundle: Path, kind: str) -> dict[str, Any]:
    """Run the first golden inputs."""
    role = "encoder" if kind == "encoder-decoder" else "model"
    start = f"{role}/0/inputs/"
    with np.load(bundle / "golden.npz", allow_pickle=False) as stored:
        arrays = {name.removeprefix(start): stored[name] for name in stored.files if name.startswith(start)}
    if kind == "encoder-decoder":  # its run reads the source, and then a target
        arrays["decoder_input_ids"] = np.ones((len(arrays["input_ids"]), 1), np.int64)
        found = model.run(**arrays)
    else:
        found = model.run(arrays)
    return {name: array.tolist() for name, array in found.items()}


if __name__ == "__main__":
    main()
