"""What every head looks at, in eager PyTorch and in the ONNX graph, for one sample input."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import tokenizers
import torch
from torch import Tensor

from tfm.ops import ATTENTION, SOFTMAX, OpId
from tfm.report import AttentionMap

from .graphs import EncoderGraph, Graph, SourceGraph
from .verify.hooks import RecordedCall, watch
from .verify.regions import Array, Region, cuts_of, find_regions
from .verify.subgraphs import Subgraphs, load_graph, open_nodes
from .verify.verify import CPU

_SENTENCE = "The animal did not cross the street because it was too tired."
_WORD = "transformer"
_LENGTH = 12


def attention_maps(graph: Graph, path: Path, folder: Path) -> list[AttentionMap]:
    """Compute the attention weights of one sample input, as eager and the ONNX file do by themselves.

    The weights are seen by attending to the rows of an identity matrix instead of to the values: the result is then
    what softmax(QKᵀ/√d + mask) is, whatever kernel computes it.

    Args:
        graph: The eager graph.
        path: Its ONNX file.
        folder: The bundle, whose tokenizer splits the sample where it has one.

    Returns:
        One map per attention, of the sample's only row; none of attentions that are neither whole nor a softmax of
        (B, N, S, T).
    """
    tokens, case = _sample(graph, folder)
    model = load_graph(path)
    regions = {op: region for op, region in find_regions(model).items() if OpId.parse(op).kind in (ATTENTION, SOFTMAX)}
    feeds = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)}
    run = Subgraphs(model, cuts_of(regions), path.parent, [CPU]).start(feeds)
    maps = []

    def look(call: RecordedCall) -> None:
        region = regions.get(str(call.op))
        if region is None:
            return
        # Written by hand, its result is the weights already.
        if call.op.kind == SOFTMAX:
            eager, found = call.output.numpy(), run.take(str(call.op))[0]
        elif call.attend is not None and call.inputs[0] is not None and call.inputs[0].dim() in (3, 4):
            if call.inputs[0].dim() == 3 and not call.presents:
                return
            eager = call.attend(_identity(call)).numpy()
            inside = run.take(f"{call.op} in")
            # One tensor is keys and values, and cannot be told apart.
            if region.inputs[1] is region.inputs[2]:
                return
            look_at = _attend_over_cache if call.presents else _attend
            found = look_at(model, region, call, inside, path.parent)
        else:
            return
        if eager.ndim == 4 and eager.shape == found.shape:
            # Keys of a cross-attention, or of a cache with room left, are not the sample's tokens.
            labels = tokens if eager.shape[3] == len(tokens) else ()
            # Copies, since eager's next functions may work on these tensors in place.
            maps.append(AttentionMap(op=str(call.op), tokens=labels, eager=eager[0].copy(), onnx=found[0].copy()))

    watch(graph, case, look)
    return maps


def _identity(call: RecordedCall) -> Tensor:
    # The sample has no past: a cache holds the new keys alone.
    key = call.presents[0] if call.presents else call.inputs[1]
    assert key is not None
    batch, heads, length, _ = key.shape
    # (B, K, T, T): one row per key, so that softmax(…) · I is the weights themselves.
    return torch.eye(length).expand(batch, heads, length, length).contiguous()


def _attend(model: ir.Model, region: Region, call: RecordedCall, inside: list[Array], folder: Path) -> Array:
    """The weights (B, N, S, T) of a region, fed what the graph feeds to it, but an identity for the values."""
    arrays = {str(value.name): array for (_, value), array in zip(region.arguments, inside, strict=True)}
    names = {argument: str(value.name) for argument, value in region.arguments}
    identity_BKTT = _identity(call).numpy()
    batch, kv_heads, length, _ = identity_BKTT.shape
    # After FoldHeads the region wants (B, T, K·H): here H is T, so (B, K, T, T) → (B, T, K·T).
    flat = arrays[names["value"]].ndim == 3
    arrays[names["value"]] = (
        np.ascontiguousarray(identity_BKTT.transpose(0, 2, 1, 3)).reshape(batch, length, kv_heads * length)
        if flat
        else identity_BKTT
    )
    output = str(region.output.name)
    result = open_nodes(model, region.nodes, arrays, [output], folder, [CPU]).run([output], arrays)[0]
    # (B, S, N·T) → (B, N, S, T); 4-D is that already.
    return result.reshape(batch, result.shape[1], -1, length).transpose(0, 2, 1, 3) if result.ndim == 3 else result


def _attend_over_cache(model: ir.Model, region: Region, call: RecordedCall, inside: list[Array], folder: Path) -> Array:
    """The same of an attention over an empty cache, which takes values of its own head size H: H rows at a time."""
    arrays = {str(value.name): array for (_, value), array in zip(region.arguments, inside, strict=True)}
    value = str(dict(region.arguments)["value"].name)
    identity_BKTT = _identity(call).numpy()
    batch, kv_heads, length, _ = identity_BKTT.shape
    size = arrays[value].shape[-1] // kv_heads
    output, parts = str(region.output.name), []
    for start in range(0, length, size):
        part_BKTH = np.zeros((batch, kv_heads, length, size), np.float32)
        rows = identity_BKTT[..., start : start + size]
        part_BKTH[..., : rows.shape[-1]] = rows
        fed = arrays | {value: np.ascontiguousarray(part_BKTH.transpose(0, 2, 1, 3)).reshape(batch, length, -1)}
        (y_BSD,) = open_nodes(model, region.nodes, fed, [output], folder, [CPU]).run([output], fed)
        parts.append(y_BSD.reshape(batch, length, -1, size).transpose(0, 2, 1, 3))
    return np.concatenate(parts, axis=-1)[..., :length]


def _sample(graph: Graph, folder: Path) -> tuple[tuple[str, ...], list[Tensor]]:
    """A sentence, or a word for a model that reads letters; random ids where there is no tokenizer."""
    # Drawn first, and kept where the model takes no text or the text does not fit.
    longest = min(graph.max_length.values(), default=_LENGTH)
    case = graph.sample(torch.Generator().manual_seed(0), 1, min(_LENGTH, longest))
    file = folder / "tokenizer.json"
    if not isinstance(graph, EncoderGraph | SourceGraph) or graph.inputs[0].name != "input_ids" or not file.is_file():
        return (), case
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    encoding = tokenizer.encode(_SENTENCE)
    # More than four tokens a word: it reads letters, and a sentence would be too wide a picture.
    if len(encoding.ids) > 4 * len(_SENTENCE.split()):
        encoding = tokenizer.encode(_WORD)
    below = graph.inputs[0].below or 0
    # A tokenizer that is not the model's own may give ids beyond its table.
    if not 0 < len(encoding.ids) <= longest or max(encoding.ids) >= below:
        return (), case
    case = graph.sample(torch.Generator().manual_seed(0), 1, len(encoding.ids))
    case[0] = torch.tensor([encoding.ids])
    # One sentence is one segment; the sample has random ones.
    for index, value in enumerate(graph.inputs):
        if value.name == "token_type_ids":
            case[index] = torch.zeros_like(case[0])
    return tuple(encoding.tokens), case
