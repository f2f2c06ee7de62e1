"""How a bundle is opened."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfm.errors import BundleError, InputError, ProviderError

from .checks import MAY_BE_EMPTY, SUM, Array
from .locate import folder_of
from .manifest import Manifest, Signature, check_digests, read_manifest
from .messages import brief
from .model import TOKENIZER
from .providers import candidates, count_threads
from .requires import check_onnxruntime
from .session import Session, reason_of

if TYPE_CHECKING:
    from .decoder import Decoder
    from .encoder import Encoder
    from .encoder_decoder import EncoderDecoder
    from .module import Module

    AnyModel = Encoder | Decoder | EncoderDecoder | Module


def load(
    bundle: str | os.PathLike[str],
    provider: str | Sequence[str] = "auto",
    precision: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
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

    Returns:
        An `Encoder`, `Decoder`, `EncoderDecoder` or `Module`, as the manifest's kind says. Its `provider`, `device`,
        `precision` and `threads` say what runs, its `skipped` what was tried before, and why that does not.

    Raises:
        BundleError: It is no bundle, is altered or incomplete, lacks the precision, or does not run.
        ProviderError: The provider is unknown, or none that was asked for runs here.
        InputError: threads is no integer of at least 1, or fallback is no bool.
    """
    if not isinstance(fallback, bool):
        raise InputError(f"fallback must be True or False, but is {brief(fallback)}")
    choices = candidates(provider, fallback)
    threads = count_threads(threads)
    manifest = read_manifest(folder_of(bundle))
    skipped: dict[str, str] = {}
    for choice in choices:
        chosen = _choose_precision(manifest, precision, choice)
        try:
            sessions = _open(manifest, chosen, choice, threads)
        except ProviderError as error:
            if len(choices) == 1:
                raise
            skipped[choice] = str(error)
            continue
        model = _make(manifest, chosen, sessions)
        model.skipped = skipped
        return model
    raise ProviderError("no provider runs here: " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))


def _make(manifest: Manifest, precision: str, sessions: dict[str, Session]) -> "AnyModel":
    """Make the model of a bundle's kind; only what that is made of is imported."""
    if manifest.kind == "encoder":
        from .encoder import Encoder

        return Encoder(manifest, precision, sessions)
    if manifest.kind == "decoder":
        from .decoder import Decoder

        return Decoder(manifest, precision, sessions)
    if manifest.kind == "encoder-decoder":
        from .encoder_decoder import EncoderDecoder

        return EncoderDecoder(manifest, precision, sessions)
    from .module import Module

    return Module(manifest, precision, sessions)


def _choose_precision(manifest: Manifest, precision: str, provider: str) -> str:
    if precision == "auto":
        wished = ["int8", "fp32"] if provider == "cpu" else ["fp16", "fp32", "int8"]
        return next(name for name in [*wished, *manifest.graphs] if name in manifest.graphs)
    if not isinstance(precision, str) or precision not in manifest.graphs:
        raise BundleError(f"{manifest.folder} has no {brief(precision)} graph; it has: {', '.join(manifest.graphs)}")
    return precision


def _open(manifest: Manifest, precision: str, provider: str, threads: int) -> dict[str, Session]:
    """Open the graphs of one precision on one provider, each run once."""
    check_onnxruntime(manifest, precision)
    paths = manifest.graphs[precision]
    opened = [name for path in paths.values() for name in manifest.files_of(path)]
    finish = _start_digests(manifest, opened + [TOKENIZER] * (TOKENIZER in manifest.files))
    try:
        sessions = {
            role: Session(manifest.folder / path, manifest.signature[role], provider, threads, manifest.digest(path))
            for role, path in paths.items()
        }
    finally:
        finish()  # where a file was altered, that says more than what onnxruntime makes of it
    for role, path in paths.items():
        file, arrays = manifest.folder / path, _first_inputs(manifest, role)
        if arrays is None:
            continue
        try:
            sessions[role].run(arrays)
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            failed = f"opened {file}, but could not run it: {reason_of(error)}"
            if provider != "cpu":
                raise ProviderError(f"{provider} {failed}; use 'cpu'") from error
            raise BundleError(f"onnxruntime {failed}; export the bundle again") from error
    return sessions


def _start_digests(manifest: Manifest, names: list[str]) -> Callable[[], None]:
    """Start to compare files with their digests beside what else is done; what is returned waits, and raises."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            check_digests(manifest, names)
        except Exception as error:
            raised.append(error)

    def finish() -> None:
        thread.join()
        if raised:
            raise raised[0]

    thread = threading.Thread(target=work, name="tfm digests")
    thread.start()
    return finish


def _first_inputs(manifest: Manifest, role: str) -> dict[str, Array] | None:
    """Make inputs that a graph must take; None: nobody knows of any."""
    signature = manifest.signature[role]
    if manifest.kind != "module" or all(isinstance(dim, int) for spec in signature.inputs for dim in spec.shape):
        return least_inputs(signature)
    from .golden import ARRAYS

    if ARRAYS not in manifest.files:  # a module may need more than one of anything, and says nowhere how many
        return None
    check_digests(manifest, [ARRAYS])
    start = f"{role}/0/inputs/"
    try:
        with np.load(manifest.folder / ARRAYS, allow_pickle=False) as stored:
            return {name.removeprefix(start): stored[name] for name in stored.files if name.startswith(start)}
    except Exception as error:  # numpy, zipfile and zlib raise what they like at what is not as np.savez wrote it
        raise BundleError(f"{manifest.folder / ARRAYS} cannot be read: {error}; export the bundle again") from error


def least_inputs(signature: Signature) -> dict[str, Array]:
    """Make the least inputs that a transformer's graph takes: one row of one token, and nothing before it.

    Returns:
        By input name: every named dimension is 1, but that of past tokens 0; ids and floats are 0, masks 1.
    """
    arrays = {}
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) else _least_size(dim) for dim in spec.shape]
        arrays[spec.name] = np.full(shape, 1 if "mask" in spec.name else 0, spec.dtype)
    return arrays


def _least_size(dim: str) -> int:
    return sum(part != MAY_BE_EMPTY for part in dim.split(SUM))
