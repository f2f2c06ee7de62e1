"""`tfm doctor` as a person and a machine read it."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tfm.runtime
from tfm.cli.doctor import doctor
from tfm.runtime.doctor import doctor as found

CANARY = found.CanaryState(
    family="Gelu", provider="cuda", verdict="right", max_abs=3.5e-7, limit=2e-5, on=("cuda",), why=None
)
DIAGNOSIS = found.Diagnosis(
    system="Linux 6.1 x86_64", python="3.11.7", onnxruntime="1.32.0", build="ORT Build Info: git-branch=HEAD",
    available=("CUDAExecutionProvider", "CPUExecutionProvider"), processor="Some CPU",
    features={"avx2": True, "avx512_vnni": False}, saturates=True, cores=64, usable=16, quota=1.5, threads=2,
    providers=(
        found.ProviderState(name="cpu", runs=True, why=None),
        found.ProviderState(name="cuda", runs=False, why="libcublas.so.12: cannot open"),
    ),
    canaries=(
        CANARY,
        dataclasses.replace(CANARY, family="GroupQueryAttention", on=("cpu", "cuda"), max_abs=0.0, limit=0.0),
        dataclasses.replace(CANARY, family="QuickGelu", verdict="missing", max_abs=None, on=(), why="no\nkernel"),
    ),
    bundle=found.BundleState(
        path="m.tfm", kind="encoder", provider="cpu", device="cpu", precision="int8", threads=2,
        skipped={"cuda": "libcublas.so.12: cannot open"},
        needs={"fp32": "1.24.1", "int8": "1.24.1", "fp16": "1.25.0"},
    ),
)  # fmt: skip
TABLE = """\
system          Linux 6.1 x86_64, Python 3.11.7
onnxruntime     1.32.0, with CUDAExecutionProvider, CPUExecutionProvider
build           git-branch=HEAD
processor       Some CPU
it has          avx2
it lacks        avx512_vnni
8-bit products  saturate, so exact kernels are asked for
cores           64, 16 for this process, a quota of 1.5: 2 threads
cpu             ✓ runs
cuda            — libcublas.so.12: cannot open
bundle          ✓ m.tfm: encoder, runs int8 on cpu with 2 threads
not on cuda     libcublas.so.12: cannot open
it needs        onnxruntime >= 1.24.1 for fp32, int8
it needs        onnxruntime >= 1.25.0 for fp16

  ops                 on    off by   limit
✓ Gelu                cuda 3.5e-07 2.0e-05
✓ GroupQueryAttention cuda 0.0e+00 0.0e+00 its nodes are on cpu
— QuickGelu           cuda       — 2.0e-05 no kernel

✓ works here: 2 of 3 families of ops ran, and all that ran are right
"""


def invoke(monkeypatch, diagnosis, *args):
    monkeypatch.setattr(tfm.runtime, "diagnose", lambda bundle: diagnosis)
    return CliRunner().invoke(doctor, list(args))


def test_the_table(monkeypatch):
    result = invoke(monkeypatch, DIAGNOSIS)
    assert (result.exit_code, result.stdout) == (0, TABLE)


def test_faults(monkeypatch):
    wrong = dataclasses.replace(CANARY, verdict="wrong", max_abs=0.5, why="off by 5.0e-01, more than 2.0e-05")
    bundle = found.BundleState(path="m.tfm", why="m.tfm is not there")
    result = invoke(monkeypatch, dataclasses.replace(DIAGNOSIS, canaries=(wrong,), bundle=bundle))
    assert result.exit_code == 1
    assert "\n✗ Gelu cuda 5.0e-01 2.0e-05 off by 5.0e-01, more than 2.0e-05\n" in result.stdout
    assert "\nbundle          ✗ m.tfm\n" in result.stdout
    assert result.stdout.endswith(
        "\n✗ does not work here:\n"
        "  Gelu on cuda is wrong: off by 5.0e-01, more than 2.0e-05; try another onnxruntime, or provider='cpu'\n"
        "  m.tfm does not open: m.tfm is not there\n"
    )


def test_what_nobody_knows(monkeypatch):
    unknown = dataclasses.replace(
        DIAGNOSIS, features={}, saturates=None, quota=None, threads=1, canaries=(), bundle=None,
        providers=(found.ProviderState(name="cpu", runs=False, why="no kernels"),),
    )  # fmt: skip
    result = invoke(monkeypatch, unknown)
    assert result.exit_code == 1
    for line in (
        "it has          nothing that its system tells of",
        "it lacks        —",
        "8-bit products  are unknown",
        "cores           64, 16 for this process, no quota: 1 thread",
        "  no provider runs here: install onnxruntime again",
    ):
        assert f"\n{line}\n" in result.stdout


def test_json(monkeypatch):
    result = invoke(monkeypatch, DIAGNOSIS, "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert (values["passed"], values["faults"]) == (True, [])
    assert [gate["name"] for gate in values["gates"]] == [
        "onnxruntime",
        "a provider",
        "Gelu on cuda",
        "GroupQueryAttention on cuda",
        "m.tfm",
    ]
    assert values["canaries"][0]["max_abs"] == 3.5e-7
    assert values["bundle"]["skipped"] == {"cuda": "libcublas.so.12: cannot open"}


@pytest.mark.parametrize("zipped", [False, True])
def test_a_real_bundle(toys, tmp_path, zipped):
    bundle = toys.write_bundle(tmp_path / "encoder", "encoder")
    if zipped:
        bundle = Path(shutil.make_archive(str(bundle), "zip", bundle))
    result = CliRunner().invoke(doctor, [str(bundle)])
    assert result.exit_code == 0
    assert f"✓ {bundle}: encoder, runs " in result.stdout


def test_help_does_not_wait_for_onnxruntime():
    code = "import sys, tfm.cli.doctor; print({'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
