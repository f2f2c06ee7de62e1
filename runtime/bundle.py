"""How a bundle is opened."""

import os

from tfm.errors import BundleError, ProviderError

from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder import EncoderDecoder
from .manifest import Manifest, check_digests, read_manifest
from .model import TOKENIZER
from .module import Module
from .providers import candidates, count_threads
from .session import Session


def load(
    bundle: str | os.PathLike[str], provider: str = "auto", precision: str = "auto", threads: int | None = None
) -> Encoder | Decoder | EncoderDecoder | Module:
    """Open a bundle that tfm-export wrote.

    Args:
        bundle: Its folder. The files that are opened are compared with the digests in its manifest.
        provider: "cpu", "cuda", or "auto": CUDA where it runs, else the CPU.
        precision: One that the bundle has, or "auto": int8 on the CPU and fp16 on CUDA where there is one, else fp32.
        threads: Threads within an operator; None: as many as this process may use cores.

    Returns:
        An `Encoder`, `Decoder`, `EncoderDecoder` or `Module`, as the manifest's kind says.

    Raises:
        BundleError: It is no bundle, is altered or incomplete, or lacks the precision.
        ProviderError: The provider is unknown or does not run here.
        InputError: threads is no integer of at least 1.
    """
    choices = candidates(provider)
    threads = count_threads(threads)
    manifest = read_manifest(bundle)
    for choice in choices:
        chosen = _choose_precision(manifest, precision, choice)
        paths = manifest.graphs[chosen]
        opened = [name for path in paths.values() for name in (path, path + ".data")] + [TOKENIZER]
        check_digests(manifest, [name for name in opened if name in manifest.files])
        try:
            sessions = {
                role: Session(manifest.folder / path, manifest.signature[role], choice, threads)
                for role, path in paths.items()
            }
        except ProviderError:
            if choice == choices[-1]:
                raise
            continue
        break
    made: dict[str, type[Encoder] | type[Decoder] | type[EncoderDecoder] | type[Module]]
    made = {"encoder": Encoder, "decoder": Decoder, "encoder-decoder": EncoderDecoder, "module": Module}
    return made[manifest.kind](manifest, chosen, sessions)


def _choose_precision(manifest: Manifest, precision: str, provider: str) -> str:
    if precision == "auto":
        wished = ["int8", "fp32"] if provider == "cpu" else ["fp16", "fp32", "int8"]
        return next(name for name in [*wished, *manifest.graphs] if name in manifest.graphs)
    if precision not in manifest.graphs:
        raise BundleError(f"{manifest.folder} has no {precision!r} graph; it has: {', '.join(manifest.graphs)}")
    return precision
