"""What is exported, or compared with a bundle: a native Transformer and its graphs, or any module as the one it is."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from tfm.bundle import read_json
from tfm.errors import CheckpointError
from tfm.model import Transformer, TransformerConfig, find_adapter, locate_checkpoint
from tfm.quantize import Stage, silent

from .generic.graph import GenericConfig, GenericGraph
from .generic.open import read_model
from .generic.vectors import from_vectors
from .graphs import DecoderGraph, Graph, graphs_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model in eager PyTorch.

    Attributes:
        eager: The native model, or the graph of any other.
        graphs: What it becomes.
        config: Its configuration.
        family: Where its weights came from: "transformer" for our own checkpoints, a Hugging Face model_type, or how a
            module that is not native was read.
        path: The checkpoint on this machine, None where a factory alone made it.
        base: Of an adapter, the folder with the weights that it is for; None: the checkpoint is no adapter.
    """

    eager: Transformer | GenericGraph
    graphs: Sequence[Graph]
    config: TransformerConfig | GenericConfig
    family: str
    path: Path | None
    base: Path | None = None

    @property
    def folders(self) -> list[Path]:
        """Where what belongs to the checkpoint is looked for: with an adapter, then with its base."""
        return [folder for folder in dict.fromkeys((self.folder, self.base)) if folder is not None]

    @property
    def folder(self) -> Path | None:
        """The folder with what belongs to the checkpoint: configuration, tokenizer."""
        return self.path if self.path is None or self.path.is_dir() else self.path.parent

    def without_room(self) -> "Source":
        """Give the same for engines whose attention cannot write into a cache that is longer than what is in it."""
        graphs = [graph.without_room() if isinstance(graph, DecoderGraph) else graph for graph in self.graphs]
        return dataclasses.replace(self, graphs=graphs)

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.eager.parameters())


def open_source(
    checkpoint: str | os.PathLike[str] | None,
    *,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    stage: Stage = silent,
) -> Source:
    """Read a checkpoint.

    Args:
        checkpoint: What `tfm.model.load_checkpoint` reads; a `.pt2` file of torch.export.save; a Hugging Face folder of
            a family that is not native; with `model`, a state_dict for it, or None.
        model: "package.module:factory" of any nn.Module.
        config: Configuration of weights that come without one, as `tfm.model.load_checkpoint` takes it.
        nhead: Number of heads, where only the user knows it.
        stage: Told of every stage.

    Raises:
        TfmError: It cannot be read.
    """
    path = None if checkpoint is None else Path(locate_checkpoint(checkpoint))
    base = None if path is None or model is not None else _base_of(path)
    # Said aloud: what is exported is not the folder that was named, or in neither folder by itself.
    merges = _what_else(checkpoint, path, base)
    options = {"config": config, "nhead": nhead}
    read = read_model(path, model=model, options=options, stage=stage, merges=merges)
    if isinstance(read, GenericGraph):
        about = read.config
        return Source(eager=read, graphs=read.graphs, config=about, family=about.family, path=path, base=base)
    # What no checkpoint is, a factory has made.
    assert path is not None
    # float32 whatever the weights are stored in: it is what ONNX graphs are compared with.
    native = read.float()
    _check_finite(path, native)
    family = family_of(_config_of(path, base) if config is None else Path(config))
    # What it would generate are vectors, of which no next token can be chosen: no cache, one graph.
    if native.config.reads_vectors:
        whole = from_vectors(native)
        return Source(eager=whole, graphs=[whole], config=whole.config, family=family, path=path, base=base)
    return Source(eager=native, graphs=graphs_of(native), config=native.config, family=family, path=path, base=base)


def _what_else(checkpoint: str | os.PathLike[str] | None, path: Path | None, base: Path | None) -> str:
    """Say what is read beside, or in place of, the folder that was named."""
    last = checkpoint is not None and path is not None and path.parent == Path(checkpoint)
    newest = f" {path.name}, the last" if last and path is not None else ""
    return newest if base is None else f"{newest} and merge the LoRA adapter of {path} into {base}"


def _base_of(path: Path) -> Path | None:
    adapter = find_adapter(path)
    return None if adapter is None else adapter.base


def _config_of(path: Path, base: Path | None) -> Path:
    # An adapter has a configuration of its own, which says nothing of the model.
    return (base or (path if path.is_dir() else path.parent)) / "config.json"


def family_of(config: Path) -> str:
    """Tell the model_type of a Hugging Face configuration; "transformer" of any other, and of none."""
    if not os.path.isfile(config) or config.suffix != ".json":
        return "transformer"
    return str(read_json(config).get("model_type", "transformer"))


def _check_finite(path: Path, model: Transformer) -> None:
    """Refuse weights that are NaN or infinite: they spread to every output, where nothing can be compared."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(f"{path}: NaN or infinity in the weights {', '.join(bad[:3])}{more}")
