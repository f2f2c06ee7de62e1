"""Modules in the working directory that are called like Python's own: no command imports them, nor what it starts.

A command is run as a user runs it, by its script; `python -m` and `python -c` would import them themselves.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tfm.model import Transformer, save_checkpoint

SCRIPTS = Path(sysconfig.get_path("scripts"))
PLANTED = ("dataclasses", "tokenizers", "random", "json", "numpy", "onnxruntime", "torch", "click", "ctypes", "heapq")
FAST = ("--rounds", "6", "--seconds", "0.002", "--starts", "1", "--batch-size", "1", "--seq", "4", "--no-corpus")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def here(make_model: Callable[..., Transformer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a factory, and modules that say so and end the process where they are imported."""
    folder = tmp_path_factory.mktemp("here")
    model = make_model(kind="encoder", activation="gelu", pooling="mean", d_model=32, dim_feedforward=64)
    save_checkpoint(model, folder / "model.pt")
    (folder / "factory.py").write_text(
        "import torch\n\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU())\n"
        "    return module.eval(), (torch.ones(2, 8),), {'input': {0: 'batch'}}\n"
    )
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"import sys\nprint('planted: {name}')\nsys.exit(70)\n")
    return folder


@pytest.fixture(scope="module")
def run(here: Path) -> Run:
    def invoke(command: str, *arguments: str | Path, **changes: str) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | changes
        line = [str(SCRIPTS / command), *map(str, arguments)]
        return subprocess.run(line, cwd=here, env=environment, capture_output=True, text=True, timeout=600)

    return invoke


def well(done: "subprocess.CompletedProcess[str]") -> str:
    assert "planted" not in done.stdout + done.stderr
    # What is forced is there though a gate failed, and whether it is faster is the machine's to say.
    assert done.returncode == int("✗ forced" in done.stdout), done.stdout + done.stderr
    return done.stdout


def test_what_is_planted_would_run(here: Path) -> None:
    """By `python -m`, which nothing of ours is to be started by."""
    done = subprocess.run(
        [sys.executable, "-m", "tfm.latency.engine"], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert done.stdout.startswith("planted: ")


@pytest.fixture(scope="module")
def exported(run: Run, here: Path) -> Path:
    """Quantized and timed, beside eager, with nothing replaced."""
    out = well(run("tfm-export", "--ckpt", "model.pt", "-o", "m.tfm", "--force"))
    assert "latency, one thread" in out
    return here / "m.tfm"


def test_export(exported: Path) -> None:
    assert (exported / "manifest.json").is_file()


def test_latency(run: Run, exported: Path) -> None:
    assert "eager" in well(run("tfm", "latency", "m.tfm", "--ckpt", "model.pt", "--no-compile", *FAST))


def test_with_an_empty_entry_in_the_python_path(run: Run, exported: Path, tmp_path: Path) -> None:
    """Which the command itself gets from Python: what it starts does not."""
    (tmp_path / "json.py").write_text("import sys\nprint('planted: json')\nsys.exit(70)\n")
    code = "import sys\nimport tfm.cli, tfm.latency, importlib.metadata\n"
    code += "import os; os.chdir(sys.argv[1]); sys.path.insert(0, ''); del sys.argv[1]\ntfm.cli.main(sys.argv[1:])\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "latency", str(exported), *FAST],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    well(done)


def test_quantize(run: Run, exported: Path) -> None:
    assert "latency, one thread" in well(run("tfm", "quantize", "m.tfm", "-o", "q.tfm", "--force"))


def test_a_factory_of_the_working_directory_is_imported_all_the_same(run: Run, here: Path) -> None:
    """Also by the process that times it."""
    well(run("tfm-export", "--model", "factory:make", "-o", "f.tfm", "--precision", "fp32"))
    assert (here / "f.tfm" / "manifest.json").is_file()


def test_activations(run: Run) -> None:
    assert "gelu" in well(run("tfm", "activations", "--activation", "gelu", "--rounds", "6"))


@pytest.mark.parametrize("command", ["tfm", "tfm-export"])
def test_the_commands_themselves(run: Run, here: Path, command: str, tmp_path: Path) -> None:
    """sys.path as a command has it: its script's folder in place of the working directory."""
    code = "import atexit, sys\natexit.register(lambda: print(sys.path))\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    done = run(command, "--version", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (places,) = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert repr(str(SCRIPTS)) in places
    assert repr(str(here)) not in places
    assert "''" not in places
