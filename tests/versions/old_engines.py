"""Export for older onnxruntimes, and open what was made on each of them. `make engines`.

    python tests/versions/old_engines.py DIR [--page FILE] [--only X.Y …]

MiniLM and a tiny Llama are exported with `--runtime X.Y`, as DIR keeps them, and run on that very onnxruntime, in an
environment of its own, by ask_bundle.py: onnxruntime and numpy, nothing else. What they give is compared with the
golden outputs, which eager PyTorch gave. The table goes into docs/versions.md, between its marks. Exit code 1 where a
graph is refused, or gives something else.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bundles import REPO, export_for
from combinations import Combination
from table import MARKS
from venvs import make_environment

from tfm.quantize import target_of

RUNTIMES = ("1.17", "1.20", "1.22", "1.24", "1.32")
NAMES = {"encoder": "MiniLM", "decoder": "tiny Llama"}

_PYTHON = "3.11"
"""The oldest that tfm-export has; each of the engines has wheels for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, default=REPO / "docs" / "versions.md")
    parser.add_argument("--only", nargs="*", default=RUNTIMES, help="Versions; then the page stays as it is.")
    options = parser.parse_args()
    folder = options.folder.resolve()
    rows = [run(runtime, folder) for runtime in options.only]
    if options.only == RUNTIMES:
        options.page.write_text(renewed(options.page.read_text("utf-8"), table(rows)), encoding="utf-8")
    faults = [fault for row in rows for fault in row["faults"]]
    for fault in faults:
        print(f"✗ {fault}", file=sys.stderr)
    print(f"{len(rows)} engines, {len(faults)} faults", file=sys.stderr)
    sys.exit(1 if faults else 0)


def run(runtime: str, folder: Path) -> dict[str, Any]:
    """Export for one onnxruntime, and ask it."""
    release = target_of(runtime).runtime
    bundles = {kind: export_for(kind, runtime, folder / "bundles") for kind in NAMES}
    pins = {"onnxruntime": release} | ({"numpy": "1.26.4"} if release < "1.19" else {})
    python = make_environment(folder / "venvs", Combination(name=f"ort {runtime}", python=_PYTHON, pins=pins), None)
    assert python is not None, f"there is no Python {_PYTHON} here"
    command = [python, Path(__file__).with_name("ask_bundle.py"), release, *bundles.values()]
    print(f"run {release}", file=sys.stderr)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    found = json.loads(done.stdout)
    row = {"release": release, "numpy": found["numpy"], "kinds": {}, "faults": []}
    for kind, bundle in bundles.items():
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        graphs = found["bundles"][str(bundle)]
        row["kinds"][kind] = {"opset": manifest["opset"], "form": form_of(bundle), "graphs": graphs}
        for precision, roles in graphs.items():
            for role, said in roles.items():
                if said["said"] or not said["passed"]:
                    row["faults"].append(f"{release}: {NAMES[kind]}, {precision} {role}: {said}")
    return row


def form_of(bundle: Path) -> str:
    """What its attentions became."""
    ops = json.loads((bundle / "parity.json").read_text("utf-8"))["graphs"][0]["ops"]
    return ", ".join(dict.fromkeys(op["form"] for op in ops if op["kind"] == "attention"))


def table(rows: list[dict[str, Any]]) -> str:
    """One row for each engine and bundle."""
    head = ["onnxruntime", "numpy", "bundle", "opset", "attention", "fp32", "int8", "int4"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        for kind, one in row["kinds"].items():
            cells = [shown(one["graphs"].get(precision)) for precision in head[5:]]
            lines.append([row["release"], row["numpy"], NAMES[kind], str(one["opset"]), one["form"], *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def shown(roles: Mapping[str, Any] | None) -> str:
    if roles is None:
        return "—"
    (said,) = roles.values()
    if said["said"]:
        return "refused"
    return f"{'✓' if said['passed'] else '✗'} {said['figure']:.1e} ≤ {said['limit']:.1e}"


def renewed(page: str, content: str) -> str:
    """Put a table between the marks of a page."""
    before, _, rest = page.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"the page has no {MARKS[0].strip()} and {MARKS[1].strip()}"
    return f"{before}{MARKS[0]}\n{content}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
