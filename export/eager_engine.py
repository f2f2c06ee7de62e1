"""PyTorch as an engine of `tfm.latency`: a checkpoint, run whole, eager or by torch.compile.

Decoders keep their keys and values in caches of a fixed length, as Hugging Face's static caches are: torch.compile
would compile a growing one anew at every token. It gets no corpus, where every length would be another shape.

Shapes: B batch, S sequence, T source sequence, K key/value heads, C length of the cache, H head size, V vocabulary.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from tfm.bundle import Generation, read_manifest
from tfm.latency import CORPUS, read_arrays, worker
from tfm.model import Transformer
from tfm.runtime import batches, pad_rows

from .generic.cached import CachedGraph
from .generic.graph import GenericGraph
from .generic.open import read_model
from .generic.vectors import from_vectors
from .graphs import Graph, empty_cache, graphs_of
from .growing_loop import GrowingLoop

_BATCH = 16
"""Rows of a corpus that go into the model at once."""

_MOST_SHAPES = 256
"""How many shapes torch.compile may compile one function for. Beyond that it runs it eagerly, and does not say so."""


def open_source(job: Mapping[str, Any]) -> Transformer | GenericGraph:
    """Load a native model, or the graph of any other."""
    model = read_model(job["checkpoint"], model=job["model"], options=job["options"])
    if not isinstance(model, Transformer):
        return model
    model = model.float()
    return from_vectors(model) if model.config.reads_vectors else model


def open_workloads(job: Mapping[str, Any]) -> Sequence[worker.Run | None]:
    """Load the checkpoint."""
    torch.set_num_threads(job["threads"])
    # The compiler is tried before the checkpoint is loaded: a machine that cannot run this engine
    # says so at once.
    prepare = _prepare_compiler() if job["compiled"] else _as_it_is
    source = open_source(job)
    # A decoder is timed by a loop with a cache, anything else by calls of its one graph.
    generates = isinstance(source, CachedGraph) or (isinstance(source, Transformer) and source.config.kind != "encoder")
    if generates:
        generation = read_manifest(job["bundle"]).generation
        if generation is None:
            raise worker.UnableError("the bundle does not say how to generate")
        loop: GreedyLoop | GrowingLoop
        if isinstance(source, CachedGraph):
            loop = GrowingLoop(source, generation, prepare)
        else:
            loop = GreedyLoop(cast(Transformer, source), generation, prepare)
    else:
        (graph,) = source.graphs if isinstance(source, GenericGraph) else graphs_of(source)
        call = prepare(graph)

    def open_workload(work: Mapping[str, Any]) -> worker.Run | None:
        rows, new_tokens = work["rows"], work["new_tokens"]
        if job["compiled"] and work["kind"] == CORPUS:
            return None
        if generates and work["kind"] == "rows":
            return lambda: token_times(loop, rows, new_tokens)
        if generates:
            # A corpus is one measure, from its first row to its last, and rows end at their end
            # tokens.
            return worker.timed(
                lambda: [token_times(loop, part, new_tokens, ends=True) for part in _sorted_parts(rows)]
            )
        if work["file"] is not None:
            named = read_arrays(work["file"])
            # A module's own inputs, as they are; then rows of ids, padded.
            feeds = [[torch.from_numpy(named[value.name]) for value in graph.inputs]]
        else:
            feeds = [_inputs_of(graph, ids_BS, mask_BS) for _, ids_BS, mask_BS in batches(rows, _BATCH)]

        # Inference mode is the fastest that eager has.
        def run() -> None:
            with torch.inference_mode():
                for tensors in feeds:
                    call(*tensors)

        return worker.timed(run)

    return [open_workload(work) for work in job["works"]]


class GreedyLoop:
    """Greedy generation with a cache.

    Attributes:
        model: A decoder or an encoder-decoder.
        generation: How the bundle generates.
    """

    def __init__(
        self, model: Transformer, generation: Generation, prepare: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.model, self.generation = model, generation
        self._step = prepare(model.decoder)
        self._encode = prepare(self._project)

    def _project(self, ids_BT: Tensor, mask_BT: Tensor) -> object:
        return self.model.decoder.project(self.model.encoder(ids_BT, mask_BT))

    @torch.inference_mode()
    def run(self, rows: list[list[int]], new_tokens: int, ends: bool = False) -> tuple[list[list[int]], list[float]]:
        """Continue prompts, or translate sources.

        Args:
            rows: Their ids.
            new_tokens: How many tokens to generate of each.
            ends: Whether to stop once every row has had an end token.

        Returns:
            The new ids of each row, what follows its end token included; and when there was one more.
        """
        config = self.model.config
        # A decoder's rows are padded on the right, (B, S); each goes on from its own last token.
        ids_BS, mask_BS = map(torch.from_numpy, pad_rows(rows, config.pad_token_id or 0))
        # An encoder-decoder encodes its sources once, and starts every target with one token.
        context: dict[str, Any] = {}
        if config.has_encoder:
            context = {"cross": self._encode(ids_BS, mask_BS), "cross_mask_BT": mask_BS}
            ids_BS = torch.full((len(rows), 1), self.generation.bos_token_id or 0)
            mask_BS = torch.ones_like(ids_BS)
        # The cache is as long as this call needs. It is made anew, so that no call sees another's
        # keys.
        room = min(ids_BS.size(1) + new_tokens, config.max_positions)
        cache: Any = empty_cache(config, len(rows), room)
        place_B = torch.zeros(len(rows), dtype=torch.int64)
        last_B = mask_BS.sum(1) - 1
        ended_B = torch.zeros(len(rows), dtype=torch.bool)
        end_ids = torch.tensor(self.generation.eos_token_ids, dtype=torch.int64)
        found: list[Tensor] = []
        stamps: list[float] = []
        for _ in range(new_tokens):
            # Logits after each row's last token alone, (B, 1): of a prompt all others would be
            # thrown away.
            wanted_B1 = last_B[:, None]
            logits_B1V, cache = self._step(ids_BS, past=cache, cache_position_B=place_B, wanted=wanted_B1, **context)
            ids_BS = logits_B1V.argmax(-1)
            # Eager runs on the CPU and has nothing pending here: the token is there.
            stamps.append(perf_counter())
            found.append(ids_BS)
            if ends:
                ended_B |= torch.isin(ids_BS[:, 0], end_ids)
                if ended_B.all():
                    break
            # The next token goes behind each row's last one, over what padding left there. From now
            # on each row has one new token, at index 0.
            place_B = place_B + last_B + 1
            last_B = torch.zeros_like(last_B)
        return torch.cat(found, dim=1).tolist(), stamps


def token_times(
    loop: GreedyLoop | GrowingLoop, rows: list[list[int]], new_tokens: int, ends: bool = False
) -> worker.Times:
    """Generate, and tell how long the "first token" took, and each "token" after it."""
    start = perf_counter()
    _, stamps = loop.run(rows, new_tokens, ends)
    return {
        "first token": [stamps[0] - start],
        "token": [later - earlier for earlier, later in itertools.pairwise(stamps)],
    }


def _sorted_parts(rows: list[list[int]]) -> list[list[list[int]]]:
    # Rows of like lengths together, so that little is padding.
    ordered = sorted(rows, key=len)
    return [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]


def _inputs_of(graph: Graph, ids_BS: Any, mask_BS: Any) -> list[Tensor]:
    # One text is one segment, 0.
    known = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": 0 * ids_BS}
    return [torch.from_numpy(known[value.name]) for value in graph.inputs]


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _prepare_compiler() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have torch.compile compile every shape by itself, which is the fastest; first prove that it can at all."""
    # Imported only here: eager alone does not need it, and its start is timed.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    try:
        # A C++ compiler may be there and not work. exp and + make it compile a kernel.
        torch.compile(lambda x: torch.exp(x) + 1)(torch.ones(8))
    except Exception as error:  # what a compiler that is broken or half installed raises has no common class
        why = next(iter(str(error).strip().splitlines()), repr(error))
        raise worker.UnableError(f"torch.compile does not work here: {why}") from error
    # Otherwise the second shape would have all later ones share a kernel of dynamic sizes.
    return lambda function: torch.compile(function, dynamic=False)


def main(imported: float | None = None) -> None:
    """Serve as an engine of `tfm.latency`."""
    worker.main(open_workloads, imported)
