"""What the report says first: whether the bundle is verified, and if not, what failed first, by name."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfm.ops import is_layer

from . import numbers
from .bars import is_float
from .curves import ActivationCurve
from .judge import fault_of_fidelity, fault_of_op, fault_of_output, fault_of_quantization, fault_of_speed


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that failed.

    Attributes:
        what: The op or the output.
        text: Why.
        where: In which graph.
        source: The line of eager's source that makes the op; "" where none is known.
        anchor: Where in the page it stands; "" where nowhere.
    """

    what: str
    text: str
    where: str = ""
    source: str = ""
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One figure of the summary."""

    value: str
    label: str
    note: str


def graph_name(graph: Mapping[str, Any]) -> str:
    """A graph's role, precision and provider, as "model · fp32 · CPU"."""
    return f"{graph['role']} · {graph['precision']} · {graph['provider'].removesuffix('ExecutionProvider')}"


def quantized(certificate: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What the certificate says of each quantized precision; nothing in schema 2, which had no such field."""
    return certificate.get("quantization") or {}


def speeds(certificate: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """How the precisions' times compare with those of eager and fp32; nothing where an older certificate does not say.

    The times of an older one are shown all the same, and nothing is concluded from them.
    """
    return certificate.get("speed") or ()


def find_faults(certificate: Mapping[str, Any], curves: Sequence[ActivationCurve] = ()) -> list[Fault]:
    """Everything that failed, the first fault of each graph first.

    What a certificate says of itself is not believed over its figures: a figure that is infinite or past its limit is
    a fault wherever it stands, and so are a certificate and a graph that hold nothing.
    """
    found: list[Fault] = []
    for index, graph in enumerate(certificate["graphs"]):
        found += _faults_of_graph(graph, f"g{index}")
    for entry in certificate["fidelity"]:
        if text := fault_of_fidelity(entry):
            found.append(Fault(f"{entry['measure']} in {entry['precision']}", text, anchor="fidelity"))
    for index, (precision, entry) in enumerate(quantized(certificate).items()):
        if text := fault_of_quantization(entry):
            found.append(Fault(f"quantization to {precision}", text, anchor=f"q{index}"))
    for entry in speeds(certificate):
        if text := fault_of_speed(entry):
            found.append(Fault(f"the speed of {entry['precision']}", text, anchor="speed"))
    for curve in curves:
        if not curve.passed:
            text = f"off by {numbers.error(curve.max_error)}, more than {numbers.error(curve.limit)}"
            found.append(Fault(f"the sweep of {curve.name}", text, anchor="curves"))
    # Nothing compared is no pass.
    if not certificate["graphs"]:
        found.append(Fault("the certificate", "it holds no graph: nothing was compared"))
    if certificate["passed"] is not True and not found:
        found.append(Fault("the certificate", "it says that it failed, and nothing in it says why"))
    return found


def _faults_of_graph(graph: Mapping[str, Any], anchor: str) -> list[Fault]:
    where = graph_name(graph)
    found = []
    for index, op in enumerate(graph["ops"]):
        if text := fault_of_op(op):
            found.append(Fault(op["op"], text, where, op["source"], f"{anchor}-{index}"))
    for output in graph["outputs"]:
        if text := fault_of_output(output):
            name = _output_name(output["name"], output["level"])
            found.append(Fault(name, text, where, anchor=f"{anchor}-outputs"))
    if not (graph["ops"] and graph["outputs"]):
        found.append(Fault(f"the {graph['role']} graph", "nothing was compared in it", where, anchor=anchor))
    # The export knows which of them came first, along the graph; that one is to be read first. An older certificate
    # says so in words alone, which are not taken apart: its faults are read in their own order.
    first = _name_of(graph.get("first_failed"))
    if any(fault.what == first for fault in found):
        found.sort(key=lambda fault: fault.what != first)
    elif graph["first_fault"] and not (found and "first_failed" not in graph):
        # It names nothing that stands here, and is said all the same.
        text = numbers.prose(graph["first_fault"])
        found.insert(0, Fault(f"the {graph['role']} graph", text, where, anchor=anchor))
    if graph["passed"] is not True and not found:
        found.append(Fault(f"the {graph['role']} graph", "it failed, and nothing in it says why", where, anchor=anchor))
    return found


def _name_of(key: Mapping[str, Any] | None) -> str | None:
    """What a graph's `first_failed` is called here; None where it names nothing."""
    if not key:
        return None
    return str(key["op"]) if "op" in key else _output_name(key["output"], key["level"])


def _output_name(name: str, level: str) -> str:
    return f"output {name} ({level})"


def promised(graph: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ops of a graph that are promised: all but the layers around them."""
    return [op for op in graph["ops"] if not is_layer(op["kind"])]


def tiles(certificate: Mapping[str, Any], faults: Sequence[Fault]) -> Iterator[Tile]:
    """The summary."""
    bad = {(fault.where, fault.what) for fault in faults}
    ops: dict[tuple[str, str], bool] = {}
    for graph in certificate["graphs"]:
        for op in promised(graph):
            key = (graph["role"], op["op"])
            # An op counts once, and as verified only where it is right in every precision.
            ops[key] = ops.get(key, True) and (graph_name(graph), op["op"]) not in bad
    precisions = " and ".join(dict.fromkeys(graph["precision"] for graph in certificate["graphs"]))
    yield Tile(f"{sum(ops.values())} of {len(ops)}", "attention and activation ops verified", f"in {precisions}")
    yield from _closest(certificate)
    yield from _end_to_end(certificate)
    for entry in certificate["fidelity"]:
        if not is_float(entry["precision"]):
            note = f"{entry['count']} {entry['data']}"
            yield Tile(numbers.plain(entry["value"]), f"{entry['measure']} in {entry['precision']}", note)
            break
    yield from _speed_and_size(certificate)


def _closest(certificate: Mapping[str, Any]) -> Iterator[Tile]:
    shares = []
    for graph in certificate["graphs"]:
        for op in promised(graph):
            value, limit = numbers.finite(op["own"]["max_abs"]), numbers.finite(op["own"].get("limit"))
            if op["own"]["count"]:
                # A limit of 0 allows no error at all: 0 of it is used up, or all.
                share = float("inf") if value is None else value / limit if limit else float(bool(value))
                shares.append((share, op["op"]))
    if shares:
        share, op = max(shares)
        if share > 1:
            text = "∞" if share == float("inf") else f"{share:.1f}×"
            yield Tile(text, "its tolerance, by itself, for the op that is furthest past it", op)
        else:
            yield Tile(f"{100 * share:.0f} %", "of its tolerance, by itself, for the op that comes closest", op)


def _end_to_end(certificate: Mapping[str, Any]) -> Iterator[Tile]:
    for precision in dict.fromkeys(graph["precision"] for graph in certificate["graphs"]):
        outputs = [o for graph in certificate["graphs"] if graph["precision"] == precision for o in graph["outputs"]]
        outputs = [output for output in outputs if output["count"]]
        if is_float(precision) and outputs:
            worst = max(outputs, key=_size_of_error)
            text = f"largest error of an output in {precision}, values up to {numbers.plain(worst['scale'], 2)}"
            yield Tile(numbers.error(worst["max_abs"]), text, worst["name"])
            return


def _size_of_error(figures: Mapping[str, Any]) -> float:
    value = numbers.finite(figures["max_abs"])
    return float("inf") if value is None else value


def _speed_and_size(certificate: Mapping[str, Any]) -> Iterator[Tile]:
    sizes = certificate["sizes"]
    smallest = min(sizes, key=lambda name: sizes[name], default="")
    # The speed that is shown is that of the smallest that was timed.
    times = {name for entry in certificate["latency"] for name in entry["milliseconds"]}
    timed = min((name for name in sizes if name in times), key=lambda name: sizes[name], default="")
    yield from [_speed(entry) for entry in speeds(certificate) if entry["precision"] == timed][:1]
    if smallest:
        largest = max(sizes, key=lambda name: sizes[name])
        note = f"{sizes[largest] / sizes[smallest]:.1f}× smaller than {largest}" if largest != smallest else ""
        yield Tile(numbers.size(sizes[smallest]), f"of graphs in {smallest}", note)


def _speed(entry: Mapping[str, Any]) -> Tile:
    """How fast a precision is beside eager, or fp32 where eager was not timed: with its interval, or nothing."""
    baseline = "eager PyTorch" if entry["baseline"] == "eager" else entry["baseline"]
    precision, verdict = entry["precision"], entry["verdict"]
    value, low, high = (numbers.finite(entry[name]) for name in ("ratio", "low", "high"))
    # The verdict is that of the one rule for what is faster, and not concluded anew.
    if verdict in ("faster", "slower") and value and low and high:
        what = "as fast as"
        if verdict == "slower":
            what, value, low, high = "the time of", 1 / value, 1 / high, 1 / low
        interval = f"{numbers.factor(low)}–{numbers.factor(high)}"
        note = f"95 % interval {interval}, one thread"
        return Tile(f"{numbers.factor(value)}×", f"{what} {baseline}, in {precision}", note)
    if verdict == "too noisy":
        return Tile("—", f"too noisy a machine to compare {precision} with {baseline}", "one thread")
    return Tile("—", f"no difference shown between the time of {precision} and {baseline}", "one thread")
