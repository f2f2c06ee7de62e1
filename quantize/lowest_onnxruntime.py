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
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from tfm.bundle import newest

_STANDARD = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"


def lowest_onnxruntime(file: Path) -> str:
    """Give the lowest onnxruntime that opens an ONNX file on the CPU.

    Where the graph holds what no measured onnxruntime had, that is the one here, which has opened it.

    Args:
        file: The ONNX file; its weights are not read.
    """
    model = ir.load(file)
    history = _history()
    found = [history["first"], history["ir"].get(str(model.ir_version), history["first"])]
    if model.ir_version > history["newest_ir"]:
        found.append(onnxruntime.__version__)
    bodies: list[tuple[Iterable[ir.Node], Mapping[str, int]]] = [(model.graph.all_nodes(), model.opset_imports)]
    bodies += [(function.all_nodes(), function.opset_imports) for function in model.functions.values()]
    for nodes, opsets in bodies:
        found += _of_opsets(opsets)
        for node in nodes:
            # The call of a function needs no kernel: the nodes of its body do.
            if node.op_identifier() not in model.functions:
                found += _of_node(node, opsets)
    return newest(found)


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


def _of_opsets(opsets: Mapping[str, int]) -> Iterator[str]:
    history = _history()
    for domain, version in opsets.items():
        if domain in _STANDARD:
            first = history["opset"].get(str(version), history["first"])
            yield first if version <= history["newest_opset"] else onnxruntime.__version__


def _of_node(node: ir.Node, opsets: Mapping[str, int]) -> Iterator[str]:
    history = _history()
    if node.domain not in (*_STANDARD, _MICROSOFT):  # an operator of a library, which nothing was measured of
        yield onnxruntime.__version__
        return
    domain = "" if node.domain in _STANDARD else node.domain
    name = f"{domain}:{node.op_type}"
    yield from _known(history["kernels"], f"{name}:{_since(node.op_type, domain, opsets)}")
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None:
            yield from _known(history["dtypes"], f"{name}:{value.dtype.name.lower()}")
    for attribute in node.attributes:
        yield from _known(history["attributes"], f"{name}:{attribute}")
    for counts, used in ((history["inputs"], len(node.inputs)), (history["outputs"], len(node.outputs))):
        yield from (version for most, version in counts.get(name, {}).items() if used >= int(most))


def _known(part: Mapping[str, str], key: str) -> Iterator[str]:
    if key in part:
        yield part[key]


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
