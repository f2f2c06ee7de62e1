"""Whether an onnxruntime gives a bundle's golden outputs, by nothing but onnxruntime and numpy; prints JSON.

python ask_bundle.py VERSION BUNDLE…    bundle → precision → role → the worst output's figure, its limit, what was said
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_PLAIN = {"onnx", "torch", "tfm"}


def main() -> None:
    version, *bundles = sys.argv[1:]
    assert onnxruntime.__version__ == version, f"{onnxruntime.__version__} is here, not {version}"
    found: dict[str, Any] = {bundle: precisions(Path(bundle)) for bundle in bundles}
    assert not _PLAIN & {name.partition(".")[0] for name in sys.modules}
    print(json.dumps({"numpy": np.__version__, "python": sys.version.split()[0], "bundles": found}))


def precisions(bundle: Path) -> dict[str, Any]:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    limits = json.loads((bundle / "golden.json").read_text("utf-8"))["precisions"]
    with np.load(bundle / "golden.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return {
        precision: {role: graph(bundle / path, role, arrays, limits[precision]) for role, path in roles.items()}
        for precision, roles in manifest["graphs"].items()
    }


def graph(path: Path, role: str, arrays: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Run one graph on its golden inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    errors: dict[str, float] = {}
    sizes: dict[str, float] = {}
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for number in range(len({name.split("/")[1] for name in arrays if name.startswith(f"{role}/")})):
            feeds, expected = (parts(arrays, f"{role}/{number}/{side}/") for side in ("inputs", "outputs"))
            for name, actual in zip(names, session.run(names, feeds)):  # noqa: B905  (of any Python)
                assert actual.shape == expected[name].shape, f"{name} is of shape {actual.shape}"
                add(errors, sizes, name, actual.astype(np.float64), expected[name].astype(np.float64), "atol" in limits)
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        return {"said": f"{type(error).__name__}: {error}"}
    worst = {name: judged(name, errors[name], sizes[name], limits, role) for name in names}
    name = max(worst, key=lambda one: worst[one][0] / worst[one][1] if worst[one][1] else 0.0)
    figure, limit = worst[name]
    passed = all(found <= most for found, most in worst.values() if most)
    return {"output": name, "figure": figure, "limit": limit, "passed": passed, "said": ""}


def parts(arrays: dict[str, Any], start: str) -> dict[str, Any]:
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def add(errors: dict[str, float], sizes: dict[str, float], name: str, actual: Any, expected: Any, exact: bool) -> None:
    """Of float32 the largest difference and value count, else the sums of squares."""
    if exact:
        errors[name] = max(errors.get(name, 0.0), float(np.abs(actual - expected).max(initial=0.0)))
        sizes[name] = max(sizes.get(name, 0.0), float(np.abs(expected).max(initial=0.0)))
    else:
        errors[name] = errors.get(name, 0.0) + float(np.square(actual - expected).sum())
        sizes[name] = sizes.get(name, 0.0) + float(np.square(expected).sum())


def judged(name: str, error: float, size: float, limits: dict[str, Any], role: str) -> tuple[float, float]:
    """The figure of an output, and the most that it may be, as golden.json has it; 0: it tells nothing."""
    if "atol" in limits:
        return error, limits["atol"] + limits["rtol"] * size
    there = limits["nmse"][role][name]
    if there is None or not size:
        return 0.0, 0.0
    return error / size, limits["nmse_floor"] + limits["nmse_factor"] * there


if __name__ == "__main__":
    main()
