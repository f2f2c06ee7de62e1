"""Whether everything can be installed on a Python that may not be here: pip finds wheels for it, and installs none."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomllib
from bundles import REPO
from combinations import PYTHONS
from venvs import find_python

TOO_OLD = "3.10"
_PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_EXTRAS = _PROJECT["optional-dependencies"]


def resolve_all(wheel: Path, folder: Path) -> list[dict[str, Any]]:
    """Resolve the base install and the extras for every Python, and for the one below that is refused.

    torch is left out of [export]: to be resolved it would have to be downloaded, several gigabytes for each Python.
    """
    without_torch = [one for one in _EXTRAS["export"] if not one.startswith(("torch", "tfm-export"))]
    wanted = {
        "base and [text]": [f"{wheel}[text]"],
        "[quantize]": [f"{wheel}[quantize]"],
        "[export] without torch": [f"{wheel}[quantize]", *without_torch],
    }
    found = []
    for python in (TOO_OLD, *PYTHONS):
        here = find_python(python)
        installs = {name: _resolve(python, requirements, folder) for name, requirements in wanted.items()}
        found.append({"python": python, "here": here and _micro(here), "installs": installs})
    return found


def faults(pythons: Sequence[dict[str, Any]]) -> list[str]:
    """Say where the verdict is not what pyproject.toml declares."""
    wrong = []
    for one in pythons:
        for name, said in one["installs"].items():
            if (said is None) == (one["python"] == TOO_OLD):
                wrong.append(f"{name} on Python {one['python']}: {said or 'can be installed'}")
    return wrong


def _resolve(python: str, requirements: Sequence[str], folder: Path) -> str | None:
    """Give pip's last words where it finds no way; None where it does."""
    print(f"resolve {', '.join(requirements)} on Python {python}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
    command += ["--target", str(folder / "nothing"), "--python-version", python, "--only-binary=:all:"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _micro(python: Path) -> str:
    code = "import json, platform; print(json.dumps(platform.python_version()))"
    return str(json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout))
