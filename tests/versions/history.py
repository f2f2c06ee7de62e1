"""Renew quantize/onnxruntime_history.json: what each onnxruntime brought that the one before it had not.

    python tests/versions/history.py DIR

DIR keeps the onnxruntimes. What a kernel does with an attribute's value is tried. A kernel that came with its opset is
left out, since the opset says it already, and so are float16's: where there is no kernel for them, onnxruntime computes
in float32.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engines import ENGINES, ask, ask_values

from tfm.bundle.requires import is_older

HISTORY = Path(__file__).parents[2] / "quantize" / "onnxruntime_history.json"
_DOMAINS = ("", "com.microsoft")
_INTERNAL = ("MemcpyFromHost", "MemcpyToHost")
_MANY = 1 << 20
"""Inputs of an operator that takes any number."""


def measure(folder: Path) -> dict[str, Any]:
    """Ask every onnxruntime, the oldest first, and put down what is new in each."""
    found = [(version, ask(folder, version, "has")) for version in ENGINES]
    values = [(version, ask_values(folder, version)) for version in ENGINES]
    opsets = _first_of(found, "opset")
    return {
        "first": ENGINES[0],
        "released": list(ENGINES),
        "newest_ir": found[-1][1]["ir"],
        "newest_opset": found[-1][1]["opset"],
        "ir": _first_of(found, "ir"),
        "opset": opsets,
        "kernels": _kernels(found, opsets),
        "dtypes": _dtypes(found),
        **_schemas(found),
        "values": {key: next(version for version, can in values if can[key]) for key in values[-1][1]},
    }


def _first_of(found: list[tuple[str, Any]], key: str) -> dict[str, str]:
    """Number → the first version that opens it, beyond what the very first does."""
    first: dict[str, str] = {}
    newest = found[0][1][key]
    for version, has in found[1:]:
        first |= {str(number): version for number in range(newest + 1, has[key] + 1)}
        newest = max(newest, has[key])
    return first


def _kernels(found: list[tuple[str, Any]], opsets: dict[str, str]) -> dict[str, str]:
    first: dict[str, str] = {}
    seen = set(_kernel_keys(found[0][1]))
    for version, has in found[1:]:
        for key in sorted(set(_kernel_keys(has)) - seen):
            domain, _, since = key.split(":")
            with_its_opset = not domain and not is_older(opsets.get(since, ENGINES[0]), version)
            if not with_its_opset:
                first[key] = version
            seen.add(key)
    return first


def _kernel_keys(has: Any) -> list[str]:
    return [f"{domain}:{name}:{since}" for domain, name, since, _ in _ours(has)]


def _ours(has: Any) -> list[Any]:
    return [one for one in has["kernels"] if one[0] in _DOMAINS and one[1] not in _INTERNAL]


def _dtypes(found: list[tuple[str, Any]]) -> dict[str, str]:
    """Types that an operator which was there already came to take."""
    first: dict[str, str] = {}
    seen: dict[str, set[str]] = {}
    for version, has in found:
        now: dict[str, set[str]] = {}
        for domain, name, _, dtypes in _ours(has):
            now.setdefault(f"{domain}:{name}", set()).update(dtypes)
        for name, dtypes in sorted(now.items()):
            for dtype in sorted(dtypes - seen.get(name, dtypes) - {"float16"}):
                first[f"{name}:{dtype}"] = version
            seen.setdefault(name, set()).update(dtypes)
    return first


def _schemas(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """Attributes, inputs and outputs that onnxruntime's own operators came to have; ONNX's change with the opset."""
    runs = {(domain, name) for domain, name, _, _ in _ours(found[-1][1])}
    attributes: dict[str, str] = {}
    counts: dict[str, dict[str, dict[str, str]]] = {"inputs": {}, "outputs": {}}
    seen: dict[str, tuple[set[str], int, int]] = {}
    for version, has in found:
        for domain, name, most_in, most_out, names in has["schemas"]:
            if domain != "com.microsoft" or (domain, name) not in runs:
                continue
            key = f"{domain}:{name}"
            before = seen.get(key, (set(names), most_in, most_out))
            attributes |= {f"{key}:{one}": version for one in sorted(set(names) - before[0])}
            for what, was, now in (("inputs", before[1], most_in), ("outputs", before[2], most_out)):
                if was < now < _MANY:
                    counts[what].setdefault(key, {})[str(was + 1)] = version
            seen[key] = (before[0] | set(names), max(before[1], most_in), max(before[2], most_out))
    return {"attributes": attributes, **counts}


if __name__ == "__main__":
    HISTORY.write_text(json.dumps(measure(Path(sys.argv[1]).resolve()), indent=2) + "\n", encoding="utf-8")
