"""docs/versions.md, of what was found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_HEAD = """# Versions

`make test-versions` installs the wheel, without torch, in an environment of its own for each row below, and uses a
bundle of each kind there as an app and a shell would, in every precision that it has: load, run, embed or generate,
`tfm run`, `tfm parity`, `tfm doctor`. It writes this page. What an environment gives in fp32 is compared with what the
newest versions give, texts and token ids exactly.

"✓": all of that. "refused": the onnxruntime is too old for a graph of the bundle, and every way in says so in one
sentence, "needs onnxruntime >= X, and this is Y: pip install -U onnxruntime", before anything is opened. With the extra
"quantize" a bundle is quantized there too, and with "export" a checkpoint is exported.
"""
_LOWEST = """## The lowest onnxruntime of a graph

manifest.json carries it for each graph (`requires`), told by the graph's opset, IR version, operators, their types,
attributes and numbers of inputs. What each onnxruntime has is in quantize/onnxruntime_history.json, which
`python tests/versions/history.py DIR` measures on every release. Here, every graph was opened on every release from
{first} to {last}:
"""
_OLDER = """## Bundles for older onnxruntimes

`make engines` exports MiniLM and a tiny Llama of random weights with `--runtime X.Y`, and runs each on that very
release in an environment of its own, which has onnxruntime and numpy alone. The figures are the worst output's beside
what eager PyTorch gave, and what golden.json allows: the largest difference in fp32, NMSE in int8 and int4.
"""
_PYTHONS = """## Pythons

"run" where a combination above ran on it; "wheels" where pip finds a wheel of everything for it, which was not run
here; "refused" where pip installs nothing. torch is not looked for, since it would have to be downloaded for each.
"""

MARKS = "<!-- older engines -->\n", "<!-- /older engines -->\n"
"""Around what `old_engines.py` writes."""

_NAMES = {"encoder": "encoder (MiniLM)", "decoder": "decoder (tiny Llama)", "encoder-decoder": "encoder-decoder (g2p)"}
_WITHIN = (("text", "quantize", "export"), ("quantize", "export"), ("export",))
"""Of each of resolve.py's installs, the extras that hold it."""

_PACKAGES = ("onnxruntime", "numpy", "click", "tokenizers")


def render(
    rows: Sequence[Any], lowest: Sequence[Any], pythons: Sequence[Any], engines: Sequence[str], older: str
) -> str:
    """Write the page; `older` is the part between the marks of `old_engines.py`, as it is."""
    kinds = list(next(row["verdicts"] for row in rows if row["verdicts"]))
    head = ["Python", *_PACKAGES, "extra", *(_NAMES.get(kind, kind) for kind in kinds)]
    parts = [_HEAD, _table(head, (_row(row, kinds) for row in rows)), *map(_others, rows)]
    parts += [
        _LOWEST.format(first=engines[0], last=engines[-1]),
        _lowest(lowest),
        _OLDER,
        older,
        _PYTHONS,
        _pythons(pythons, rows),
    ]
    return "\n".join(part for part in parts if part)


def _row(row: Mapping[str, Any], kinds: Iterable[str]) -> list[str]:
    found, one = row["found"], row["combination"]
    if found is None:
        pins = [one.pins.get(name, "newest") for name in _PACKAGES]
        return [f"{one.python}: not here", *pins, one.extra, *("—" for _ in kinds)]
    versions = [found["versions"][name] for name in _PACKAGES]
    return [found["python"], *versions, one.extra, *(row["verdicts"][kind] for kind in kinds)]


def _others(row: Mapping[str, Any]) -> str:
    """What else is installed where an extra is."""
    found, extra = row["found"], row["combination"].extra
    if found is None or extra == "text":
        return ""
    return f"[{extra}]: " + ", ".join(f"{name} {version}" for name, version in found["others"].items()) + ".\n"


def _lowest(graphs: Sequence[Mapping[str, Any]]) -> str:
    """One row for all precisions of a graph that need the same."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for graph in graphs:
        name = graph["kind"] if graph["role"] == "model" else f"{graph['kind']}, {graph['role']}"
        key = (name, graph["lowest"], graph["last refused"], graph["first opened"])
        joined.setdefault(key, []).append(graph["precision"])
    rows = ([key[0], ", ".join(precisions), *key[1:]] for key, precisions in joined.items())
    return _table(["Graph", "Precisions", "Its manifest says", "Last that refuses it", "First that opens it"], rows)


def _pythons(pythons: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    ran = {(row["found"]["python"], row["combination"].extra) for row in rows if row["found"]}
    lines = []
    for one in pythons:
        cells = [
            "refused"
            if said is not None
            else "run"
            if any((one["here"], extra) in ran for extra in extras)
            else "wheels"
            for said, extras in zip(one["installs"].values(), _WITHIN, strict=True)
        ]
        lines.append([one["here"] or one["python"], *cells])
    return _table(["Python", *pythons[0]["installs"]], lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
