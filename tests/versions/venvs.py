"""The wheel, Pythons, and an environment of its own for each combination; each made once and kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bundles import REPO
from combinations import Combination

_PIP = ("-m", "pip", "--disable-pip-version-check")


def make_wheel(folder: Path) -> Path:
    """Build the wheel, from a copy: setuptools leaves build/ and egg-info where it works."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPO / name, source / name)
    for room in (file.parent for file in REPO.glob("*/__init__.py")):
        shutil.copytree(room, source / room.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, *_PIP, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, source]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def find_python(version: str) -> Path | None:
    """Find a Python of this minor version: on the path, or as pyenv keeps them. None: there is none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(root.glob(f"versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *kept):
        if candidate is not None:
            shown = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(shown, capture_output=True, text=True)
            if done.stdout.strip() == version:  # pyenv puts a python of every version on the path that does not run
                return Path(candidate)
    return None


def make_environment(folder: Path, one: Combination, wheel: Path | None) -> Path | None:
    """Make a combination's environment unless it is there, and install the wheel anew.

    Args:
        folder: Where environments are kept.
        one: The combination.
        wheel: Of tfm-export; None: nothing but what is pinned is installed.

    Returns:
        Its interpreter; None where there is no Python of its version.
    """
    base = find_python(one.python)
    if base is None:
        return None
    place = folder / one.name.replace(" ", "-")
    python, ready = place / "bin" / "python", place / "installed.txt"
    wanted = "\n".join([str(base), *one.requirements()])
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        print(f"install {one.name}: Python {one.python}, {', '.join(one.requirements())}", file=sys.stderr)
        subprocess.run([base, "-m", "venv", "--clear", place], check=True, stdout=sys.stderr)
        requirements = [*([f"{wheel}[{one.extra}]"] if wheel else []), *one.requirements()]
        subprocess.run(
            [python, *_PIP, "install", "-q", "--only-binary=:all:", *requirements], check=True, stdout=sys.stderr
        )
        ready.write_text(wanted, encoding="utf-8")
    if wheel is None:
        return python
    again = [python, *_PIP, "install", "-q", "--no-deps", "--force-reinstall", wheel]
    subprocess.run(again, check=True, stdout=sys.stderr)
    return python
