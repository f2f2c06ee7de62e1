"""Run the base install, without torch, on every combination of versions; write docs/versions.md. `make test-versions`.

    python tests/versions/matrix.py DIR [--table FILE] [--only NAME …]

DIR keeps what takes long: bundles, environments, onnxruntimes; what is there is used again. An environment is made of
one Python, the wheel that is built here and the pinned packages; what it does is judged by the bundles' manifests
(a graph that needs a newer onnxruntime must be refused in so many words, any other must run) and, in fp32, by what the
environment that exports computes. Exit code 1 where a combination does neither.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import resolve
import table
from bundles import REPO, make_bundles
from combinations import COMBINATIONS, EXPORTING, Combination
from engines import ENGINES, ask
from venvs import make_environment, make_wheel

from tfm.bundle.requires import is_older, newest

PROBE = Path(__file__).with_name("probe.py")
BRINGS = {"text": (), "quantize": ("onnx", "onnx_ir"), "export": ("onnx", "onnx_ir", "torch")}
CLOSE = 1e-4
"""Of the largest value: parity allows these graphs 2e-5 to 8e-5, and a wrong kernel is off by far more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, default=REPO / "docs" / "versions.md")
    parser.add_argument("--only", nargs="*", help="Names of combinations; then no table is written.")
    parser.add_argument("--export", action="store_true", help="Run the oldest that exports too, with torch.")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    bundles = make_bundles(folder / "bundles")
    manifests = {kind: json.loads((path / "manifest.json").read_text("utf-8")) for kind, path in bundles.items()}
    wheel = make_wheel(folder / "wheel")
    reference = probe(Path(sys.executable), bundles, folder / "reference.json")
    rows, faults = [], []
    for one in (*COMBINATIONS, *([EXPORTING] if options.export else [])):
        if options.only and one.name not in options.only:
            continue
        row, wrong = run_combination(one, folder, wheel, bundles, manifests, reference)
        rows.append(row)
        faults += [f"{one.name}: {fault}" for fault in wrong]
    if not options.only:
        lowest, wrong = check_lowest(folder / "onnxruntime", bundles, manifests)
        pythons = resolve.resolve_all(wheel, folder)
        faults += wrong + resolve.faults(pythons)
        older = between(options.table.read_text(encoding="utf-8"), table.MARKS)
        options.table.write_text(table.render(rows, lowest, pythons, ENGINES, older), encoding="utf-8")
    for fault in faults:
        print(f"✗ {fault}", file=sys.stderr)
    print(f"{len(rows)} combinations, {len(faults)} faults", file=sys.stderr)
    sys.exit(1 if faults else 0)


def between(page: str, marks: tuple[str, str]) -> str:
    """Give what stands between two marks, and these."""
    start, end = page.index(marks[0]), page.index(marks[1])
    return page[start : end + len(marks[1])]


def run_combination(
    one: Combination,
    folder: Path,
    wheel: Path,
    bundles: Mapping[str, Path],
    manifests: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Make an environment, use the bundles in it and judge what it did; give a row of the table, and the faults."""
    python = make_environment(folder / "venvs", one, wheel)
    if python is None:
        return {"combination": one, "found": None, "verdicts": {}}, []
    print(f"run {one.name}", file=sys.stderr)
    found = probe(python, bundles, folder / "venvs" / f"{one.name}.json")
    faults = [f"{name} is installed" for name in found["heavy"] if name not in BRINGS[one.extra]]
    faults += make_anew(one, python, bundles["decoder"], folder / "made.tfm")
    verdicts = {}
    for kind, manifest in manifests.items():
        wrong = list(judge(kind, found, manifest, reference))
        faults += wrong
        refused = refusals(found["versions"]["onnxruntime"], manifest)
        verdicts[kind] = "✗" if wrong else f"refused: needs ≥ {newest(refused.values())}" if refused else "✓"
    return {"combination": one, "found": found, "verdicts": verdicts}, faults


def make_anew(one: Combination, python: Path, decoder: Path, output: Path) -> list[str]:
    """Quantize or export, where the combination is for that."""
    commands: dict[str, list[str | Path]] = {
        "text": [],
        "quantize": ["tfm", "quantize", decoder, "-o", output],
        "export": ["tfm-export", "--ckpt", decoder.with_name("llama"), "-o", output],
    }
    if not commands[one.extra]:
        return []
    shutil.rmtree(output, ignore_errors=True)
    command, *arguments = commands[one.extra]
    done = subprocess.run([python.with_name(str(command)), *arguments, "--force"], capture_output=True, text=True)
    made = done.returncode in (0, 1) and (output / "onnx" / "model_int8.onnx").is_file()
    return [] if made else [f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"]


def probe(python: Path, bundles: Mapping[str, Path], report: Path) -> Any:
    """Run probe.py in an environment, outside the repository."""
    pairs = [f"{kind}={path}" for kind, path in bundles.items()]
    subprocess.run([python, PROBE, report, *pairs], check=True, stdout=sys.stderr, cwd=report.parent)
    return json.loads(report.read_text(encoding="utf-8"))


def refusals(here: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Precisions that an onnxruntime must not open → the lowest that does."""
    lowest = {name: newest(roles.values()) for name, roles in manifest["requires"]["onnxruntime"].items()}
    return {name: version for name, version in lowest.items() if is_older(here, version)}


def judge(kind: str, found: Mapping[str, Any], manifest: Mapping[str, Any], reference: Any) -> Iterator[str]:
    """Say what is wrong with what an environment did with one bundle."""
    here = found["versions"]["onnxruntime"]
    refused = refusals(here, manifest)
    kinds, expected = found["kinds"][kind], reference["kinds"][kind]
    for precision, did in kinds["precisions"].items():
        said = did["steps"]
        if precision in refused:
            sentence = f"needs onnxruntime >= {refused[precision]}, and this is {here}: pip install -U onnxruntime"
            if list(said) != ["load"] or not said["load"].endswith(sentence):
                yield f"{kind} {precision} was not refused as it should be: {said}"
            continue
        yield from (f"{kind} {precision}: {step} said {what}" for step, what in said.items() if what != "ok")
        if said.keys() != expected["precisions"][precision]["steps"].keys():
            yield f"{kind} {precision}: only {', '.join(said)} were tried"
        elif precision == "fp32":
            for step, answer in did["answers"].items():
                if not is_same(answer, expected["precisions"][precision]["answers"][step]):
                    yield f"{kind} {precision}: {step} gives something else than the newest versions"
    for name, done in kinds["commands"].items():
        wanted = 0 if not refused else 2 if name == "tfm run" else 1
        sentence = "pip install -U onnxruntime" if refused else ""
        if done["code"] != wanted or sentence not in done["said"] or "Traceback" in done["said"]:
            yield f"{kind}: {name} is to end with {wanted} {sentence!r}, but did with {done['code']}: {done['said']}"


def is_same(answer: Any, expected: Any) -> bool:
    """Compare texts and ids exactly, numbers closely."""
    if isinstance(expected, Mapping):
        return answer.keys() == expected.keys() and all(is_same(answer[name], expected[name]) for name in expected)
    mine, theirs = (np.asarray(value) if _is_array(value) else value for value in (answer, expected))
    if not isinstance(theirs, np.ndarray) or theirs.dtype.kind != "f":
        return bool(np.array_equal(mine, theirs)) if isinstance(theirs, np.ndarray) else bool(mine == theirs)
    close = CLOSE * float(np.abs(theirs).max(initial=0.0))
    return mine.shape == theirs.shape and bool((np.abs(mine - theirs) <= close).all())


def _is_array(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, float)


def check_lowest(
    folder: Path, bundles: Mapping[str, Path], manifests: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Open every graph on every onnxruntime, by itself, and compare with what the manifests say."""
    graphs = [
        {"kind": kind, "precision": precision, "role": role, "file": str(bundles[kind] / path)}
        | {"lowest": manifest["requires"]["onnxruntime"][precision][role]}
        for kind, manifest in manifests.items()
        for precision, roles in manifest["graphs"].items()
        for role, path in roles.items()
    ]
    said = {version: ask(folder, version, "opens", *(graph["file"] for graph in graphs)) for version in ENGINES}
    faults = []
    for graph in graphs:
        opens = [version for version in ENGINES if said[version][graph["file"]] is None]
        graph["last refused"], graph["first opened"] = _boundary(opens)
        if opens != [version for version in ENGINES if not is_older(version, graph["lowest"])]:
            faults.append(f"{graph['file']} needs {graph['lowest']}, says its manifest, but opens on {opens}")
    return graphs, faults


def _boundary(opens: Sequence[str]) -> tuple[str, str]:
    first = ENGINES.index(opens[0]) if opens else len(ENGINES)
    return ENGINES[first - 1] if first else "", opens[0] if opens else ""


if __name__ == "__main__":
    main()
