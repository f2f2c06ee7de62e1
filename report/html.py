"""Write the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe

from tfm.bundle import check_schema
from tfm.ops import KINDS, is_layer

from . import numbers, tables, verdict
from .bars import chart, is_float
from .curves import ActivationCurve, plot
from .judge import fault_of_fidelity
from .maps import AttentionMap, panel
from .pages import write_page
from .quantization import describe

_PICTURES, _END = "<!-- pictures -->", "<!-- end of pictures -->"
"""Around maps and curves."""

_OPEN = 2
"""How many attentions show their maps without being asked."""


def kept_pictures(page: str) -> str:
    """Take the maps and curves out of an earlier report, to be put into a new one; "" where there are none."""
    _, _, rest = page.partition(_PICTURES)
    kept, end, _ = rest.partition(_END)
    return kept.strip() if end else ""


def write_report(
    path: Path,
    certificate: Mapping[str, Any],
    *,
    maps: Sequence[AttentionMap] = (),
    curves: Sequence[ActivationCurve] = (),
    pictures: str = "",
) -> None:
    """Write the certificate as one HTML file that refers to no other: no network, no script, no font.

    What failed is shown, whatever the certificate says of itself as a whole; so is a curve past its limit.

    Args:
        path: The file.
        certificate: The content of parity.json (docs/parity.md).
        maps: Attention maps of a sample input, in the order of the layers.
        curves: Activations, swept over their domain.
        pictures: Maps and curves of an earlier report, as `kept_pictures` gives them, in place of these.

    Raises:
        BundleError: The certificate is of another version of the schema.
    """
    check_schema(f"{path.name} is written from a certificate", certificate)
    faults = verdict.find_faults(certificate, curves)
    graphs = [
        {
            "anchor": f"g{index}",
            "name": verdict.graph_name(graph),
            "errors": is_float(graph["precision"]),
            # Anchors of ops and outputs begin with their graph's: it passed only where nothing in
            # it is a fault.
            "passed": not any(fault.anchor.split("-")[0] == f"g{index}" for fault in faults),
            "chart": chart(graph, f"g{index}"),
            "fusions": tables.fusions(graph),
            "outputs": tables.outputs(graph),
        }
        for index, graph in enumerate(certificate["graphs"])
    ]
    write_page(
        path,
        Path(__file__).with_name("report.html.j2"),
        certificate=certificate,
        faults=faults,
        tiles=list(verdict.tiles(certificate, faults)),
        graphs=graphs,
        promised=len({(g["role"], op["op"]) for g in certificate["graphs"] for op in verdict.promised(g)}),
        precisions=list(dict.fromkeys(graph["precision"] for graph in certificate["graphs"])),
        quantizations=[
            describe(precision, entry, f"q{index}")
            for index, (precision, entry) in enumerate(verdict.quantized(certificate).items())
        ],
        layers=", ".join(kind for kind in KINDS if is_layer(kind)),
        maps=[panel(attention) for attention in maps],
        open_maps=_OPEN,
        curves=[plot(curve) for curve in curves],
        # Not escaped: these are parts of an earlier page, which was written here.
        pictures=markupsafe.Markup(pictures),
        fidelity=[(entry, fault_of_fidelity(entry)) for entry in certificate["fidelity"]],
        latency=tables.latency(certificate),
        not_judged=certificate.get("not_judged", ()),
        sizes=tables.sizes(certificate),
        error=numbers.error,
        plain=numbers.plain,
        size=numbers.size,
    )
