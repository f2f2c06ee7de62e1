"""The package as it is installed: what is in it, what it needs, and that the base install does without torch."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

import tfm
from tfm.bundle.requires import OLDEST
from tfm.moved import MOVED

REPO = Path(__file__).resolve().parents[1]
ROOMS = sorted(file.parent.name for file in REPO.glob("*/__init__.py") if file.parent.name != "tfm")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def packages() -> list[str]:
    found = [file.parent for room in ROOMS for file in (REPO / room).rglob("__init__.py")]
    return ["tfm", *sorted(".".join(["tfm", *folder.relative_to(REPO).parts]) for folder in found)]


def requirement_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def test_listed_packages_are_the_folders() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"] == packages()


@pytest.mark.parametrize("room", ROOMS)
def test_templates_are_installed_beside_what_draws_them(room: str) -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for file in (REPO / room).rglob("*.j2"):
        assert file.name in data[".".join(["tfm", *file.parent.relative_to(REPO).parts])], file


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_mapped_and_linked(room: str) -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"tfm.{room}"] == room
    assert (REPO / "tfm" / room).resolve() == REPO / room
    assert getattr(tfm, room) is importlib.import_module(f"tfm.{room}")


def test_base_install_needs_neither_torch_nor_onnx() -> None:
    base = {requirement_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
    assert base == {"click", "numpy", "onnxruntime"}


def needed(extra: str) -> set[str]:
    """Names of all that an extra asks for, through those of our own that it is built on."""
    found = set()
    for requirement in PROJECT["project"]["optional-dependencies"][extra]:
        ours = re.fullmatch(r"tfm-export\[(\w+)\]", requirement)
        found |= needed(ours[1]) if ours else {requirement_name(requirement)}
    return found


def test_quantizing_needs_what_its_room_imports_and_no_torch() -> None:
    base = {requirement_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
    extra = needed("quantize")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (REPO / "quantize").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"tfm"}
    assert imported <= {name.replace("-", "_") for name in base | extra}
    assert {"onnx", "onnx_ir"} <= imported  # else nothing was looked at
    assert not extra & {"torch", "onnxscript", "safetensors", "gguf"}
    assert extra | {"torch", "onnxscript", "safetensors", "gguf"} == needed("export")
    assert needed("export") < needed("dev")


def test_torch_is_bounded() -> None:
    extra = PROJECT["project"]["optional-dependencies"]["export"]
    assert [requirement for requirement in extra if requirement_name(requirement) == "torch"] == ["torch>=2.10,<2.14"]


def kind_then_name(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions: the order that ruff's RUF022 asks of `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("package", packages())
def test_public_names_are_sorted_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__, f"{package} has no docstring"
    names = getattr(module, "__all__", [])
    assert list(names) == sorted(set(names), key=kind_then_name)
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{package}.{name} has no docstring"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_is_public(room: str) -> None:
    assert importlib.import_module(f"tfm.{room}").__all__


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run in a folder outside the repository, with nothing of this process's Python in the environment."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "COV_"))}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)


def run_well(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves build/ and egg-info where it works."""
    return build_wheel(copy_of_checkout(tmp_path_factory.mktemp("source"), links=True), tmp_path_factory.mktemp("dist"))


def copy_of_checkout(target: Path, links: bool) -> Path:
    """What git gives; without `links`, as where it makes none (core.symlinks=false): a file that holds the target."""
    for name in run_well("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=REPO).rstrip("\0").split("\0"):
        file, copy = REPO / name, target / name
        if not file.exists():  # removed, and not committed yet
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_symlink():
            copy.write_bytes(file.read_bytes())
        elif links:
            copy.symlink_to(file.readlink())
        else:
            copy.write_text(str(file.readlink()))
    return target


def build_wheel(source: Path, out: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run_well(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_a_checkout_without_links_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    bare = build_wheel(copy_of_checkout(tmp_path / "source", links=False), tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(bare) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert not [name for name in one.namelist() if one.read(name) != other.read(name) and "RECORD" not in name]


def test_the_package_names_its_rooms_and_needs_nothing() -> None:
    assert set(tfm._ROOMS) == {"errors", *ROOMS}
    assert set(dir(tfm)) >= set(tfm.__all__) - {"__version__"}
    program = (
        "import sys, tfm; print(sorted(name for name in sys.modules if name.startswith(('tfm', 'numpy', 'onnx'))))"
    )
    assert run_well(sys.executable, "-c", program, cwd=REPO.parent).strip() == "['tfm', 'tfm.lazy']"
    with pytest.raises(AttributeError, match=r"module 'tfm' has no attribute 'lod'"):
        _ = tfm.lod


def test_the_package_is_a_command(edge: Path, tmp_path: Path) -> None:
    assert "verified ONNX" in run_well(edge / "python", "-m", "tfm", "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def edge(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of an empty environment with the wheel and its base dependencies alone."""
    folder = tmp_path_factory.mktemp("edge")
    run_well(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = (scripts / "python", "-m", "pip", "--disable-pip-version-check")
    run_well(*pip, "install", "-q", wheel, cwd=folder)
    return scripts


def test_wheel_holds_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for package in packages():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert {"tfm/py.typed", "tfm/errors.py", "tfm/__main__.py"} <= set(names)
    for data in ("report.html.j2", "report.css"):
        assert f"tfm/report/{data}" in names
    assert not [name for name in names if not name.startswith(("tfm/", "tfm_export-"))]
    assert [name for name in names if name.endswith("LICENSE")]


def test_base_install_runs_without_torch_and_onnx(edge: Path, tmp_path: Path) -> None:
    program = "import sys, tfm.runtime; print(sorted({'torch', 'onnx', 'onnxscript', 'onnx_ir'} & set(sys.modules)))"
    assert run_well(edge / "python", "-W", "error", "-c", program, cwd=tmp_path).strip() == "[]"
    assert run(edge / "python", "-c", "import torch", cwd=tmp_path).returncode == 1


def test_quantize_extra_brings_no_torch(edge: Path, wheel: Path, tmp_path: Path) -> None:
    """As pip resolves it, requirements of requirements included."""
    pip = (edge / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q", "--dry-run")
    report = json.loads(run_well(*pip, "--report", "-", f"{wheel}[quantize]", cwd=tmp_path))
    names = {part["metadata"]["name"].lower() for part in report["install"]}
    assert {"onnx", "onnx-ir", "tokenizers", "jinja2", "rich"} <= {name.replace("_", "-") for name in names}
    assert not names & {"torch", "onnxscript", "safetensors", "gguf"}


def test_base_install_has_the_command_line(edge: Path, tmp_path: Path) -> None:
    help_text = run_well(edge / "tfm", "--help", cwd=tmp_path)
    assert "export" in help_text
    assert "run" in help_text
    assert "--ckpt" in run_well(edge / "tfm-export", "--help", cwd=tmp_path)


@pytest.mark.parametrize("command", [("tfm-export",), ("tfm", "export")], ids=" ".join)
def test_export_without_torch_says_what_to_install(edge: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "x").write_bytes(b"x")
    done = run(edge / command[0], *command[1:], "--ckpt", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'tfm-export[export]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_oldest_onnxruntime_is_the_declared_one() -> None:
    assert f"onnxruntime>={OLDEST}" in PROJECT["project"]["dependencies"]


@pytest.mark.parametrize(
    ("room", "old", "new"),
    [
        ("runtime", "Figures", "ErrorStats"),
        ("quantize", "quantise_bundle", "quantize_bundle"),
        ("latency", "Work", "Workload"),
    ],
)
def test_an_old_name_says_the_new_one(room: str, old: str, new: str) -> None:
    module = importlib.import_module(f"tfm.{room}")
    with pytest.raises(AttributeError, match=rf"has no attribute '{old}'; it is called {new} now"):
        getattr(module, old)
    with pytest.raises(ImportError, match=f"cannot import name '{old}'"):
        exec(f"from tfm.{room} import {old}")
    assert getattr(module, new)


def test_a_page_that_has_moved_says_where_it_is() -> None:
    for name in ("write_activations", "write_inspect", "write_latency"):
        with pytest.raises(AttributeError, match=rf"it is called tfm\.[\w.]+\.{name} now") as caught:
            getattr(tfm.report, name)
        place = str(caught.value).split("it is called ")[1].removesuffix(" now").rpartition(".")[0]
        assert getattr(importlib.import_module(place), name)


def test_a_module_that_has_moved_says_where_it_is() -> None:
    for old, new in MOVED.items():
        if new.startswith("tfm."):
            assert importlib.util.find_spec(new), new
        else:  # out of the package: where it is in a checkout
            assert list(REPO.glob(f"{new.replace('.', '/')}*")), new
        with pytest.raises(ModuleNotFoundError) as caught:
            importlib.import_module(old)
        said = re.fullmatch(r"(tfm\.[\w.]+) is ([\w.]+) now", str(caught.value))
        assert said is not None
        assert old.startswith(said[1])  # the module, or the package that it was in
        assert MOVED[said[1]] == said[2]
    with pytest.raises(ModuleNotFoundError, match=r"tfm\.runtime\.providers is tfm\.runtime\.sessions\.providers now"):
        exec("from tfm.runtime import providers")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'tfm\.nothing'$"):
        importlib.import_module("tfm.nothing")
