"""Run a bundle on one text, and look at what happens within.

Shapes: N heads, S queries, T keys, M tokens, F feed-forward size.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tfm.bundle import Manifest, folder_of, read_manifest
from tfm.errors import BundleError, VerificationError
from tfm.ops import derivative_of
from tfm.quantize import open_hooked
from tfm.runtime import Array, InputChecks, check_graphs, check_onnxruntime, length_limit, load

from .attention import describe_heads, open_keys
from .hooks import Hooks, find_hooks
from .insight import Attention, FeedForward, Insight, Stack
from .reading import Reader, feeds_of
from .residual import lengths, measure_sublayer
from .units import measure_units


def inspect(bundle: str | os.PathLike[str], text: str | Sequence[int], *, precision: str = "fp32") -> Insight:
    """Run a bundle on one text and look at what happens within.

    The graphs run as they are, with inner values as more outputs; nothing but the bundle is needed. An encoder reads
    the text; so does a decoder, at once, generating nothing; an encoder-decoder generates greedily, and its decoder is
    shown reading what it generated, behind the token that starts it.

    Args:
        bundle: Its folder, or a .zip of that.
        text: The text, or its token ids.
        precision: One that the bundle has.

    Raises:
        BundleError: It is no bundle, is altered, lacks the precision, or its graphs do not name their ops.
        InputError: The text is empty, too long, or none that the bundle reads; or the bundle reads no texts.
        VerificationError: A value within is not finite.
    """
    manifest = read_manifest(folder_of(bundle))
    if precision not in manifest.graphs:
        has = ", ".join(manifest.graphs)
        raise BundleError(f"{manifest.folder} has no {precision!r} graph to look into; it has: {has}")
    check_onnxruntime(manifest, precision)
    # The graphs are opened by their paths below, with more outputs, where nothing proves them.
    check_graphs(manifest, precision)
    reader = Reader(manifest)
    ids = reader.read(text)
    builder = _Builder(manifest, precision, reader)
    output = None
    if manifest.kind == "encoder-decoder":
        found = builder.add("encoder", ids, {})
        # By the runtime, as an app does it; the decoder then reads all of it at once, from empty
        # caches.
        generated = _generate(manifest, precision, ids)
        output = reader.decode(generated[1:])
        context = {name.replace("present.", "past_key_values."): array for name, array in found.items()}
        builder.add("decoder", generated, {"encoder_attention_mask": np.ones((1, len(ids)), np.int64), **context})
    else:
        builder.add("model", ids, {})
    if not any(stack.attentions or stack.feed_forwards or stack.sublayers for stack in builder.stacks):
        raise BundleError(
            f"the graphs of {manifest.folder} do not say which node is which op, so there is nothing to be told apart "
            "within: export the checkpoint with this tfm-export, and leave the metadata of its nodes"
        )
    return Insight(
        bundle=manifest.folder.resolve().name,
        kind=manifest.kind,
        precision=precision,
        activation=builder.activation,
        text=text if isinstance(text, str) else reader.decode(ids),
        output=output,
        stacks=tuple(builder.stacks),
        unseen=tuple(builder.unseen),
    )


def _generate(manifest: Manifest, precision: str, ids: list[int]) -> list[int]:
    """What the decoder reads while it generates: the token that starts, and each one it gave but the end."""
    with load(manifest.folder, provider="cpu", precision=precision) as model:
        (generated,) = getattr(model, "generate")([ids])  # noqa: B009 - every Model's but Encoder's and Module's
    generation = manifest.generation
    start = generation.bos_token_id if generation is not None else None
    return [start or 0, *generated][: length_limit(manifest.signature["decoder"])]


class _Builder:
    """Runs graphs, one after the other, and keeps what they did."""

    def __init__(self, manifest: Manifest, precision: str, reader: Reader) -> None:
        self._manifest, self._precision, self._reader = manifest, precision, reader
        self.stacks: list[Stack] = []
        self.unseen: list[str] = []
        name = manifest.config.get("activation")
        self.activation = name if isinstance(name, str) else None
        self._derivative = None if self.activation is None else derivative_of(self.activation)

    def add(self, role: str, ids: list[int], context: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph on ids; keep what it did, and give what the next one takes of it, `present.…`."""
        path = self._manifest.folder / self._manifest.graphs[self._precision][role]
        signature = self._manifest.signature[role]
        taps, values = _run(path, InputChecks(signature)({**feeds_of(signature, ids), **context}))
        self.unseen += taps.unseen
        if taps.units and self._derivative is None:
            named = "names no activation" if self.activation is None else f"names {self.activation!r}, which is unknown"
            self.unseen.append(f"units of the {role} are not counted: the bundle's configuration {named}")
        streams = [
            measure_sublayer(tap.path, *(values[name][0] for name in (tap.before, tap.added, tap.after)))
            for tap in taps.sublayers
        ]
        if not streams:
            self.unseen.append(f"the residual stream of the {role} is not shown: no Add of a named sub-layer was found")
        self.stacks.append(
            Stack(
                role=role,
                ids=tuple(ids),
                tokens=self._reader.show(ids),
                attentions=tuple(self._attentions(role, ids, taps, values)),
                feed_forwards=tuple(self._feed_forwards(taps, values)),
                start_S=lengths(values[taps.sublayers[0].before][0]) if streams else None,
                sublayers=tuple(streams),
            )
        )
        return {name: array for name, array in values.items() if name.startswith("present.")}

    def _attentions(self, role: str, ids: list[int], taps: Hooks, values: Mapping[str, Array]) -> list[Attention]:
        found = []
        for tap in taps.attentions:
            weights_NST = values[tap.weights][0].astype(np.float32)
            mask = None if tap.mask is None else values[tap.mask]
            # (1, N, S, T) → (N, S, T); what has fewer axes broadcasts as it is.
            mask = mask[0] if mask is not None and mask.ndim == 4 else mask
            cross = tap.path.rpartition(".")[2] == "cross_attn"
            shape = len(ids), len(self.stacks[0].ids) if cross else len(ids)
            if weights_NST.shape[1:] != shape:
                self.unseen.append(f"{tap.path}: its weights have the shape {weights_NST.shape}, not (heads, *{shape})")
                continue
            try:
                heads = describe_heads(weights_NST, open_keys(mask, shape, causal=tap.causal), ids, cross=cross)
            except VerificationError as error:
                raise VerificationError(f"{tap.path} on this text: {error}") from error
            over = self.stacks[0].role if cross else role
            found.append(Attention(path=tap.path, over=over, weights_NST=weights_NST, heads=heads))
        return found

    def _feed_forwards(self, taps: Hooks, values: Mapping[str, Array]) -> list[FeedForward]:
        if self._derivative is None:
            return []
        found = []
        for tap in taps.units:
            argument_MF, hidden_MF = values[tap.argument][0], values[tap.hidden][0]
            try:
                units = measure_units(self._derivative(argument_MF), hidden_MF)
            except VerificationError as error:
                raise VerificationError(f"{tap.path} on this text: {error}") from error
            found.append(FeedForward(path=tap.path, count=hidden_MF.shape[-1], units=units))
        return found


def _run(path: Path, feeds: Mapping[str, Array]) -> tuple[Hooks, dict[str, Array]]:
    """Run a graph; give where to look, and all values to look at and presents by name.

    Raises:
        BundleError: onnxruntime cannot run it with its inner values as outputs.
    """
    model = ir.load(path)
    taps = find_hooks(model)
    presents = {str(value.name) for value in model.graph.outputs if str(value.name).startswith("present.")}
    # What is fed is known already.
    names = sorted((taps.names | presents) - feeds.keys())
    if not names:
        return taps, dict(feeds)
    try:
        arrays = open_hooked(model, names, path.parent).run(names, dict(feeds))
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        raise BundleError(
            f"onnxruntime could not run {path} with its inner values as outputs: {error}; look into another precision"
        ) from error
    return taps, {**feeds, **dict(zip(names, arrays, strict=True))}
