"""Every onnxruntime since the first that any of our graphs could open on, each by itself in a folder, and asked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENGINES = (
    *("1.23.0", "1.23.1", "1.23.2", "1.24.1", "1.24.2", "1.24.3", "1.24.4", "1.25.0", "1.25.1", "1.26.0", "1.27.0"),
    *("1.28.0", "1.29.0", "1.30.0", "1.31.0", "1.31.1", "1.32.0"),
)
"""All that were released; opset 23, the lowest that is exported, came with the first."""

_CHILD = Path(__file__).with_name("ask_engine.py")


def ask(folder: Path, version: str, *arguments: str | Path) -> Any:
    """Run ask_engine.py on one onnxruntime, which is installed where it is not yet.

    Args:
        folder: Where each has a folder of its own.
        version: Of onnxruntime.
        *arguments: For ask_engine.py.

    Returns:
        What it printed, read as JSON.
    """
    place = folder / version
    if not (place / "installed").is_file():
        print(f"install onnxruntime {version}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", place]
        subprocess.run([*command, f"onnxruntime=={version}"], check=True, stdout=sys.stderr)
        (place / "installed").touch()
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, _CHILD, version, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)
