"""Every onnxruntime since the first that graphs can be written for, each by itself in a folder, and asked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENGINES = (
    *("1.17.0", "1.17.1", "1.17.3", "1.18.0", "1.18.1", "1.19.0", "1.19.2", "1.20.0", "1.20.1", "1.21.0", "1.21.1"),
    *("1.22.0", "1.22.1"),
    *("1.23.0", "1.23.1", "1.23.2", "1.24.1", "1.24.2", "1.24.3", "1.24.4", "1.25.0", "1.25.1", "1.26.0", "1.27.0"),
    *("1.28.0", "1.29.0", "1.30.0", "1.31.0", "1.31.1", "1.32.0"),
)
"""All that were released; the first is the lowest that `--runtime` takes."""

_BESIDE = {"1.17": ["numpy==1.26.4"], "1.18": ["numpy==1.26.4"]}
"""What else is installed with some: those before 1.19 were built for numpy 1."""


def ask(folder: Path, version: str, *arguments: str | Path) -> Any:
    """Run ask_engine.py on one onnxruntime, which is installed where it is not yet.

    Args:
        folder: Where each has a folder of its own.
        version: Of onnxruntime.
        *arguments: For ask_engine.py.

    Returns:
        What it printed, read as JSON.
    """
    return run_on(folder, version, "ask_engine.py", *arguments)


def ask_values(folder: Path, version: str) -> dict[str, bool]:
    """Run ask_values.py on one onnxruntime: which attributes' values it computes by."""
    return dict(run_on(folder, version, "ask_values.py"))


def run_on(folder: Path, version: str, script: str, *arguments: str | Path) -> Any:
    """Run a script of this folder on one onnxruntime, which is installed where it is not yet.

    Args:
        folder: Where each has a folder of its own.
        version: Of onnxruntime; the script's first argument.
        script: Name of its file.
        *arguments: Further ones.

    Returns:
        What it printed, read as JSON.
    """
    place = folder / version
    if not (place / "installed").is_file():
        print(f"install onnxruntime {version}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", place]
        beside = _BESIDE.get(version.rpartition(".")[0], [])
        subprocess.run([*command, f"onnxruntime=={version}", *beside], check=True, stdout=sys.stderr)
        (place / "installed").touch()
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, Path(__file__).with_name(script), version, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)
