"""The lowest onnxruntime that opens a graph, told by what the graph is made of.

What each onnxruntime has was measured, not read: tests/versions/history.py installs each of them, asks it for its CPU
kernels and operators, and has it open a graph of each opset and IR version. onnxruntime_history.json keeps what came
after the first of them.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import onnxruntime

from tfm.bundle import is_older, newest

_STANDARD = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"


def lowest_onnxruntime(file: Path) -> str:
    """Give the lowest onnxruntime that opens an ONNX file on the CPU.

    Where the graph holds what no measured onnxruntime had, that is the one here, which has opened it.

    Args:
        file: The ONNX file; its weights are not read.
    """
    return newest([_history()["first"], *(need.version for need in needs_of(ir.load(file)))])


class Need(NamedTuple):
    """What a graph holds that the first onnxruntime had not.

    Attributes:
        version: The first that has it.
        what: In words.
    """

    version: str
    what: str


def needs_of(model: ir.Model) -> Iterator[Need]:
    """List what a graph needs of onnxruntime's CPU provider, beyond what the first that was measured has."""
    history = _history()
    if (version := model.ir_version) > history["newest_ir"]:
        yield Need(onnxruntime.__version__, f"IR version {version}")
    elif str(version) in history["ir"]:
        yield Need(history["ir"][str(version)], f"IR version {version}")
    bodies: list[tuple[Iterable[ir.Node], Mapping[str, int]]] = [(model.graph.all_nodes(), model.opset_imports)]
    bodies += [(function.all_nodes(), function.opset_imports) for function in model.functions.values()]
    for nodes, opsets in bodies:
        yield from _of_opsets(opsets)
        for node in nodes:
            # The call of a function needs no kernel: the nodes of its body do.
            if node.op_identifier() not in model.functions:
                yield from needs_of_node(node, opsets)


def releases() -> list[str]:
    """List the onnxruntimes that were measured, the oldest first."""
    return list(_history()["released"])


def newest_opened(what: str, version: str) -> int:
    """Give the newest "opset" or "ir" that an onnxruntime opens."""
    # The first of all opened opset 20 and IR version 9, below which nothing is told apart.
    known = {"opset": 20, "ir": 9}[what]
    return max([known, *(int(number) for number, first in _history()[what].items() if not is_older(version, first))])


def lowest_of_graphs(folder: Path, graphs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, dict[str, str]]]:
    """Give what a manifest's `requires` says.

    Args:
        folder: The bundle.
        graphs: Precision → role → path within it.
    """
    lowest = {
        precision: {role: lowest_onnxruntime(folder / path) for role, path in roles.items()}
        for precision, roles in graphs.items()
    }
    return {"onnxruntime": lowest}


def _of_opsets(opsets: Mapping[str, int]) -> Iterator[Need]:
    history = _history()
    for domain, version in opsets.items():
        if domain in _STANDARD:
            first = history["opset"].get(str(version), history["first"])
            yield Need(first if version <= history["newest_opset"] else onnxruntime.__version__, f"opset {version}")


def needs_of_node(node: ir.Node, opsets: Mapping[str, int]) -> Iterator[Need]:
    """List what a node needs of onnxruntime's CPU provider.

    Args:
        node: The node.
        opsets: Of its graph, by domain.
    """
    history = _history()
    if node.domain not in (*_STANDARD, _MICROSOFT):  # an operator of a library, which nothing was measured of
        yield Need(onnxruntime.__version__, f"{node.domain}.{node.op_type}")
        return
    domain = "" if node.domain in _STANDARD else node.domain
    name, said = f"{domain}:{node.op_type}", f"{domain}.{node.op_type}".removeprefix(".")
    yield from _known(history["kernels"], f"{name}:{_since(node.op_type, domain, opsets)}", said)
    for value in (*_of_any_type(node, domain, opsets), *node.outputs):
        if value is not None and value.dtype is not None:
            dtype = value.dtype.name.lower()
            yield from _known(history["dtypes"], f"{name}:{dtype}", f"{said} of {dtype}")
    for attribute in node.attributes.values():
        key = f"{name}:{attribute.name}"
        yield from _known(history["attributes"], key, f"{said} with {attribute.name}")
        # A schema lists attributes alone: which of their values a kernel takes was tried.
        setting = f"{attribute.name}={attribute.value}"
        yield from _known(history["values"], f"{name}:{setting}", f"{said} with {setting}")
    for part, values in (("inputs", node.inputs), ("outputs", node.outputs)):
        for most, version in history[part].get(name, {}).items():
            if len(values) >= int(most):
                yield Need(version, f"{said} with {len(values)} {part}")


def _known(part: Mapping[str, str], key: str, what: str) -> Iterator[Need]:
    if key in part:
        yield Need(part[key], what)


def _of_any_type(node: ir.Node, domain: str, opsets: Mapping[str, int]) -> list[ir.Value | None]:
    """Inputs but for those that are of one type always, as the axes of ReduceMean: kernels differ in the others."""
    try:
        formal = onnx.defs.get_schema(node.op_type, opsets.get(domain) or opsets.get("ai.onnx", 1), domain).inputs
    except onnx.defs.SchemaError:  # onnxruntime's own
        return list(node.inputs)
    return [
        value
        for place, value in enumerate(node.inputs)
        if not formal[min(place, len(formal) - 1)].type_str.startswith("tensor(")
    ]


def _since(op_type: str, domain: str, opsets: Mapping[str, int]) -> int:
    """Find the version of an operator that an opset has."""
    version = opsets.get(domain) or opsets.get(domain or "ai.onnx", 1)
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except onnx.defs.SchemaError:  # onnxruntime's own, also in ONNX's domain
        return 1


@functools.cache
def _history() -> dict[str, Any]:
    return dict(json.loads(resources.files(__package__).joinpath("onnxruntime_history.json").read_text("utf-8")))
