"""The pictures of a bundle's report: what every head looks at, and the curves of its activations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm.model import TransformerConfig
from tfm.report import write_report

from .attention_maps import attention_maps
from .generic.graph import GenericConfig
from .source import Source
from .sweeps import activation_curve


def draw_report(
    folder: Path, subject: Source, files: Mapping[str, Mapping[str, Path]], certificate: Mapping[str, Any]
) -> None:
    """Write report.html into a bundle's folder.

    Args:
        folder: The bundle; its tokenizer splits the sample text.
        subject: What was exported.
        files: Precision → role → ONNX file; the maps are of fp32.
        certificate: The content of parity.json.
    """
    maps = [drawn for graph in subject.graphs for drawn in attention_maps(graph, files["fp32"][graph.role], folder)]
    curves = [activation_curve(name) for name in _activations(subject.config)]
    write_report(folder / "report.html", certificate, maps=maps, curves=curves)


def _activations(config: TransformerConfig | GenericConfig) -> list[str]:
    """The activations that a configuration names; of a module that is not native, none is known by name."""
    if not isinstance(config, TransformerConfig):
        return []
    # A projected residual has an activation of its own, relu unless it says otherwise.
    residual = (config.residual_activation or "relu") if config.residual == "projected" else None
    names = [config.activation, residual, "tanh" if config.pooler else None, config.head_activation]
    return list(dict.fromkeys(name for name in names if name))
