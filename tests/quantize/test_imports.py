"""Quantizing needs no torch: not to be imported, not to time a bundle, nor in the processes that are timed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import toys

ABSENT = ("torch", "onnxscript", "safetensors", "gguf", "transformers")

PROGRAM = """
import pkgutil, sys
from importlib import import_module
from pathlib import Path
import tfm.quantize
names = [module.name for module in pkgutil.walk_packages(tfm.quantize.__path__, "tfm.quantize.")]
for name in names:
    import_module(name)
print("tfm.quantize.workloads" in names, [name for name in sys.modules if name.startswith(("tfm.export", "tfm.model"))])
from tfm.latency import onnx_job, time_engines
from tfm.quantize import bundle_workloads
from tfm.bundle.manifest import read_manifest
manifest = read_manifest(Path(sys.argv[1]))
job = onnx_job({"model": manifest.folder / manifest.graphs["fp32"]["model"]})
(line,) = time_engines({"fp32": job}, bundle_workloads(manifest), rounds=1)
print(line.work, list(line.milliseconds))
"""


def test_it_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    bundle = toys.write_bundle(tmp_path / "toy", "encoder")
    (tmp_path / "absent").mkdir()
    for name in ABSENT:  # before the installed ones on the path, here and in the processes that this one starts
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "absent")}
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)

    for name in ABSENT:
        assert f"no {name}" in run("-c", f"import {name}").stderr
    done = run("-W", "error", "-c", PROGRAM, str(bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True []", "model 1×7 ['fp32']"]
