"""What wrappers put before the names of weights: DataParallel's `module.`, torch.compile's `_orig_mod.`, `net.`."""

from collections.abc import Collection

from torch import Tensor

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of a module within another."""

_ROOTS = ("model.", "lm_head.", "transformer.", "bert.", "roberta.", "distilbert.", "electra.", "vit.", "shared.")
"""What names of Hugging Face's models begin with: `model.` before these is a wrapper's, any other may be their own."""


_ALL = ("module.", "model.", "net.", "network.", "backbone.")
"""What a training loop's module calls the one that it trains: where every name has it, it is no part of the model's."""

_OWN = ("model.", "backbone.")
"""Of these what names of Hugging Face's models begin with themselves."""


def strip_wrappers(weights: dict[str, Tensor], *, huggingface: bool = False) -> dict[str, Tensor]:
    """Take wrappers' prefixes off the names, `module.`, `model.`, `net.` and such where all names have them.

    Many names of Hugging Face's models begin with `model.` themselves.
    """
    for part in _ANYWHERE:
        weights = {name.replace(part, ""): tensor for name, tensor in weights.items()}
    # Wrappers may stand within each other: again, until none comes off.
    while prefix := next((one for one in _ALL if _wraps(one, weights, huggingface)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _wraps(prefix: str, names: Collection[str], huggingface: bool) -> bool:
    if not names or not all(name.startswith(prefix) for name in names):
        return False
    own = huggingface and prefix in _OWN
    return not own or any(name.removeprefix(prefix).startswith(_ROOTS) for name in names)
