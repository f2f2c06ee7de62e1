"""genai_config.json, by which onnxruntime-genai runs a decoder's bundle: it names one graph of those that there are."""

from collections.abc import Mapping
from pathlib import Path

from .checked_json import parse_json
from .files import read_file
from .json_files import write_json

GENAI_CONFIG = "genai_config.json"

_PREFERRED = ("int8", "fp32")
_MOST_BYTES = 1 << 20


def graph_of_genai(graphs: Mapping[str, Mapping[str, str]]) -> str:
    """Choose the graph that it names: what `tfm.runtime.load` takes on the CPU.

    Args:
        graphs: Precision → role → path within the bundle.
    """
    return graphs[next(name for name in (*_PREFERRED, *graphs) if name in graphs)]["model"]


def renew_genai_config(folder: Path, graphs: Mapping[str, Mapping[str, str]]) -> None:
    """Let a bundle's genai_config.json, if it has one, name one of the graphs that are there now.

    Args:
        folder: The bundle.
        graphs: Precision → role → path within it.

    Raises:
        BundleError: It is malformed.
    """
    path = folder / GENAI_CONFIG
    if not path.is_file():
        return
    content = parse_json(path, read_file(path, _MOST_BYTES))
    decoder = content["model"]["decoder"]
    decoder.fields()
    decoder.value["filename"] = graph_of_genai(graphs)
    write_json(path, content.value)
