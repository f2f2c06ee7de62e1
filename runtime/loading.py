"""How a bundle is opened."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tfm.bundle import Manifest, brief, check_signature, folder_of, read_manifest
from tfm.errors import BundleError, InputError, ProviderError

from .model import Source
from .open_bundle import OpenBundle
from .sessions.options import check_tuning
from .sessions.providers import candidates, count_threads
from .tasks.which import tasks_of

if TYPE_CHECKING:
    from .decoder import Decoder
    from .encoder import Encoder
    from .encoder_decoder import EncoderDecoder
    from .module import Module

    AnyModel: TypeAlias = Encoder | Decoder | EncoderDecoder | Module


def load(
    bundle: str | os.PathLike[str],
    provider: str | Sequence[str] = "auto",
    precision: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
    *,
    spin: bool | None = None,
    arena: bool = True,
    mapped: bool = True,
    options: Mapping[str, str | int | bool] | None = None,
    public_key: str | os.PathLike[str] | bytes | None = None,
) -> "AnyModel":
    """Open a bundle that tfm-export wrote.

    Every graph is run once on the least inputs that it takes, so that a provider that opens it and cannot run it is
    found out here. Two models of one bundle, precision, provider and number of threads share their weights.

    Args:
        bundle: Its folder, or a .zip of that. The files that are opened are compared with the digests in its manifest.
        provider: "cpu", "cuda", "auto" (CUDA where it runs, else the CPU), or several in order of preference.
        precision: One that the bundle has, or "auto": int8 on the CPU and fp16 on CUDA where there is one, else fp32.
        threads: Threads within an operator; None: as many as this process may use cores, by its affinity and by the
            quota of the containers around it.
        fallback: Whether to run on the CPU where no provider that was asked for runs, rather than to raise.
        spin: Whether threads that wait for work keep their cores busy: None: while a run is under way, and not between
            runs; True: for some milliseconds after a run too; False: never, which costs the least power, and a run of
            several threads some of its speed.
        arena: Whether memory of a run is kept for the next one.
        mapped: Whether weights that have a file of their own are mapped into memory, which opens fast and is shared
            among processes: nobody may write to that file while it is open. False: they are read.
        options: Further options of onnxruntime by its own names, as {"session.set_denormal_as_zero": True}.
        public_key: Ed25519 public key in PEM, its bytes or the path of a file of them: a bundle that its owner did not
            sign (`tfm pack --sign`) is refused. None: signatures are not looked at.

    Returns:
        An `Encoder`, `Decoder`, `EncoderDecoder` (of sounds or images a `Perceiver`, of Whisper a `Whisper`) or
        `Module`, as the manifest's kind says; a `Module` that transformers
        names a task for has the methods of an `Encoder` too. Its `provider`, `device`,
        `precision` and `threads` say what runs, its `skipped` what was tried before, and why that does not.

    Raises:
        BundleError: It is no bundle, is altered or incomplete, lacks the precision, or does not run.
        ProviderError: The provider is unknown, or none that was asked for runs here.
        InputError: threads is no integer of at least 1, another argument is of another kind, or onnxruntime has no such
            option.
    """
    if not isinstance(fallback, bool):
        raise InputError(f"fallback must be True or False, but is {brief(fallback)}")
    choices = candidates(provider, fallback)
    threads = count_threads(threads)
    tuning = check_tuning(spin, arena, mapped, options)
    manifest = read_manifest(folder_of(bundle))
    if public_key is not None:
        check_signature(manifest, public_key)
    skipped: dict[str, str] = {}
    for choice in choices:
        # Within the loop, as "auto" is int8 on the CPU and fp16 on CUDA.
        chosen = _choose_precision(manifest, precision, choice)
        try:
            opened = OpenBundle(manifest, chosen, choice, threads, tuning)
        except ProviderError as error:
            # There is nothing else to try, and the error itself says more than a list of one.
            if len(choices) == 1:
                raise
            skipped[choice] = str(error)
            continue
        model = _make(opened)
        model.skipped = skipped
        asked = provider if isinstance(provider, str) else tuple(provider)
        # The path is absolute, as a process that unpickles it may have another working directory.
        model._source = Source(os.path.abspath(bundle), asked, precision, threads, tuning)
        return model
    raise ProviderError("no provider runs here: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))


def _make(opened: OpenBundle) -> "AnyModel":
    """Make the model of a bundle's kind; only what that is made of is imported."""
    kind = opened.manifest.kind
    if kind == "encoder":
        from .encoder import Encoder

        return Encoder(opened)
    if kind == "module" and tasks_of(opened.manifest):
        from .task_module import TaskModule

        return TaskModule(opened)
    if kind == "decoder":
        from .decoder import Decoder

        return Decoder(opened)
    if kind == "encoder-decoder":
        return _make_pair(opened)
    from .module import Module

    return Module(opened)


def _make_pair(opened: OpenBundle) -> "EncoderDecoder":
    """Make the model of an encoder and a decoder, by what the first of them reads."""
    if any(spec.name == "input_ids" for spec in opened.manifest.signature["encoder"].inputs):
        from .encoder_decoder import EncoderDecoder

        return EncoderDecoder(opened)
    if opened.manifest.config.get("model_type") == "whisper":
        from .whisper import Whisper

        return Whisper(opened)
    from .perceiver import Perceiver

    return Perceiver(opened)


def _choose_precision(manifest: Manifest, precision: str, provider: str) -> str:
    if precision == "auto":
        wished = ["int8", "fp32"] if provider == "cpu" else ["fp16", "fp32", "int8"]
        return next(name for name in [*wished, *manifest.graphs] if name in manifest.graphs)
    if not isinstance(precision, str) or precision not in manifest.graphs:
        raise BundleError(f"{manifest.folder} has no {brief(precision)} graph; it has: {', '.join(manifest.graphs)}")
    return precision
