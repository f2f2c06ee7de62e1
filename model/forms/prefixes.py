"""What wrappers put before the names of weights: DataParallel's `module.`, torch.compile's `_orig_mod.`, `model.`."""

from torch import Tensor

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers of a module within another."""

_ROOTS = ("model.", "lm_head.", "transformer.", "bert.", "roberta.", "distilbert.", "electra.", "vit.", "shared.")
"""What names of Hugging Face's models begin with: `model.` before these is a wrapper's, any other may be their own."""


def strip_wrappers(weights: dict[str, Tensor], *, huggingface: bool = False) -> dict[str, Tensor]:
    """Take wrappers' prefixes off the names, `module.` and `model.` where all names have them.

    Args:
        weights: Name → tensor.
        huggingface: The names are those of a Hugging Face model, many of which begin with `model.` themselves.
    """
    for part in _ANYWHERE:
        weights = {name.replace(part, ""): tensor for name, tensor in weights.items()}
    # Wrappers may stand within each other: again, until none comes off.
    while weights:
        for prefix in ("module.", "model."):
            if all(name.startswith(prefix) for name in weights):
                inner = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
                if prefix == "module." or not huggingface or any(name.startswith(_ROOTS) for name in inner):
                    weights = inner
                    break
        else:
            break
    return weights
