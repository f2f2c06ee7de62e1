"""The golden check on several runtimes, side by side: what an app's own CI asks of each place that it ships to."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from tfm.bundle import Gate, Judged, all_passed, check_digests, folder_of, read_manifest
from tfm.errors import BundleError, InputError, TfmError

from .golden import check_golden

_SECONDS = 600
"""For all graphs of a bundle, in another process."""

_NODE = """
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { checkGolden } from "tfm-runtime";
const ask = createRequire(pathToFileURL(process.cwd() + "/package.json"));
const { version } = ask("onnxruntime-node/package.json");
process.stdout.write(JSON.stringify({ version, gates: await checkGolden(process.argv[1]) }));
"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The verdict of one runtime.

    Attributes:
        name: One of `PLACES`.
        engine: What ran there, with its version; "" where nothing did.
        gates: One for each graph.
    """

    name: str
    engine: str
    gates: tuple[Gate, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix(Judged):
    """What `check_golden_on` found.

    Attributes:
        bundle: The bundle.
        places: In the order in which they were asked for.
    """

    bundle: Path
    places: tuple[Place, ...]

    def gates(self) -> list[Gate]:
        """List the gates of all places, each with its place in its name."""
        return [
            replace(gate, name=f"{gate.name} on {place.name}", reason=gate.reason and f"{place.name}: {gate.reason}")
            for place in self.places
            for gate in place.gates
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give the matrix as JSON values."""
        places = [
            {
                "name": place.name,
                "engine": place.engine,
                "passed": all_passed(place.gates),
                "gates": [gate.to_json() for gate in place.gates],
            }
            for place in self.places
        ]
        return {"bundle": str(self.bundle), "passed": self.passed, "places": places}


def check_golden_on(
    bundle: str | os.PathLike[str], places: Sequence[str], *, precision: Sequence[str] | None = None
) -> Matrix:
    """Compare what a bundle computes in several places with what eager PyTorch computed when it was exported.

    Args:
        bundle: Its folder.
        places: Of `PLACES`, each once. "node" runs tfm-runtime as the working directory's node_modules has it.
        precision: Which the bundle has; None: all.

    Returns:
        The verdict of each place. One that is not there fails: what was asked for and did not run proves nothing.

    Raises:
        InputError: There is no such place.
        BundleError: It is no bundle, is altered, or has no goldens.
    """
    for name in places:
        if name not in PLACES:
            raise InputError(f"there is no place {name!r} to run it; known are {', '.join(PLACES)}")
    folder = folder_of(bundle)
    manifest = read_manifest(folder)
    # First, whatever is asked for: of a bundle that is altered no place is asked.
    check_digests(manifest, manifest.files)
    found = []
    for name in dict.fromkeys(places):
        try:
            found.append(PLACES[name](folder, precision))
        except BundleError:
            raise
        except TfmError as error:
            gate = Gate(name="all graphs", stage="golden", precision="", passed=False, reason=str(error))
            found.append(Place(name=name, engine="", gates=(gate,)))
    return Matrix(bundle=manifest.folder, places=tuple(found))


def _on(provider: str, gates: Sequence[Gate]) -> Place:
    return Place(name=provider, engine=f"onnxruntime {onnxruntime.__version__}", gates=tuple(gates))


def _cpu(folder: Path, precision: Sequence[str] | None) -> Place:
    return _on("cpu", check_golden(folder, provider="cpu", precision=precision).gates())


def _cuda(folder: Path, precision: Sequence[str] | None) -> Place:
    return _on("cuda", check_golden(folder, provider="cuda", precision=precision).gates())


def _node(folder: Path, precision: Sequence[str] | None) -> Place:
    node = shutil.which("node")
    if node is None:
        raise InputError("there is no node here; install Node 20 or newer, or leave node out of --on")
    command = [node, "--input-type=module", "--eval", _NODE, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"node has not ended after {_SECONDS} s") from error
    if done.returncode != 0:
        raise InputError(f"node could not run it: {_why(done.stderr)}")
    content: Mapping[str, Any] = json.loads(done.stdout)
    gates = [Gate(**gate) for gate in content["gates"] if precision is None or gate["precision"] in precision]
    return Place(name="node", engine=f"onnxruntime-node {content['version']}", gates=tuple(gates))


def _why(stderr: str) -> str:
    """Give the line of what node said that tells what is wrong, and what to do."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next((line for line in lines if "Error" in line), lines[0] if lines else "it said nothing")
    return f"{said}; in this directory: npm install tfm-runtime onnxruntime-node" if "ERR_MODULE" in stderr else said


PLACES: Mapping[str, Callable[[Path, Sequence[str] | None], Place]] = {"cpu": _cpu, "cuda": _cuda, "node": _node}
"""Where a bundle can be run from here."""
