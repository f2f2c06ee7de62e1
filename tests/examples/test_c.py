"""examples/c is built by CMake and gives the vectors that the runtime gives."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from filelock import FileLock

import tfm
from tests.support.javascript import cache, not_installed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "c"
HEADERS = "com.github.asus4.onnxruntime", "0.4.9"
"""A package of npm that has onnxruntime's headers, which its wheel lacks, and their version."""


def include() -> Path:
    """The folder of onnxruntime_c_api.h: $ONNXRUNTIME_INCLUDE, else of the package, of which nothing else is kept."""
    if (chosen := os.environ.get("ONNXRUNTIME_INCLUDE")) is not None:
        return Path(chosen)
    folder = cache() / f"onnxruntime-headers-{HEADERS[1]}"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "onnxruntime_c_api.h").is_file():
            if shutil.which("npm") is None:
                pytest.skip("onnxruntime's headers are missing: set ONNXRUNTIME_INCLUDE, or install npm")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            command = ["npm", "pack", "--loglevel=error", "@".join(HEADERS)]
            found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if found.returncode:
                not_installed(HEADERS[0], found.stderr)
            [archive] = folder.glob("*.tgz")
            _extract_headers(archive, folder)
            archive.unlink()
    return folder


def _extract_headers(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as content:
        for member in content:
            if "/ios-arm64/" in member.name and member.name.endswith(".h"):
                source = content.extractfile(member)
                assert source is not None
                (folder / Path(member.name).name).write_bytes(source.read())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: install cmake and a C compiler")
    release = tmp_path_factory.mktemp("onnxruntime")
    (release / "lib").mkdir()
    (release / "include").symlink_to(include())
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # what a linker looks for, and what a program does
        (release / "lib" / name).symlink_to(library)
    build = tmp_path_factory.mktemp("build")
    for command in (["cmake", "-S", EXAMPLE, "-B", build, f"-DONNXRUNTIME={release}"], ["cmake", "--build", build]):
        found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
    return build / "embed"


def run(program: Path, *arguments: str, lines: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program, *arguments], input=lines, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_vectors_of_the_runtime(program: Path, packs: Path, precision: str) -> None:
    pack = packs / f"minilm-{precision}"
    with tfm.load(pack, provider="cpu", threads=1) as model:
        rows = model.tokenize(["A man eats pasta.", "Somebody is having lunch.", "x"])
        expected = model.embed(rows)
        graph = pack / model.manifest.graphs[precision]["model"]
    found = run(program, str(graph), lines="\n".join(" ".join(map(str, row)) for row in rows))
    assert found.returncode == 0, found.stderr
    vectors = np.array([line.split() for line in found.stdout.splitlines()], np.float32)
    # The same library on the same numbers; fused otherwise than the runtime has it.
    np.testing.assert_allclose(vectors, expected, atol=2e-6 if precision == "fp32" else 5e-3)
    assert np.abs(expected).max() > 0.1


def test_what_is_wrong_ends_it(program: Path, packs: Path) -> None:
    graph = next((packs / "minilm-fp32").rglob("*.onnx"))
    for arguments, lines, said in (
        ([], "", "usage: embed MODEL.onnx < IDS"),
        (["nosuch.onnx"], "", "nosuch.onnx"),
        ([str(graph)], "101 -1 102", "no token id: -1"),
        ([str(graph)], "101 man 102", "no token id: man"),
    ):
        found = run(program, *arguments, lines=lines)
        assert found.returncode == 1
        assert found.stdout == ""
        assert said in found.stderr
