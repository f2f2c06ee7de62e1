"""PyTorch's fused inference path of nn.MultiheadAttention and nn.TransformerEncoder, which hides their ops."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def has_fast_path(module: nn.Module) -> bool:
    """Whether a part of `module` may run as one fused native call in eval mode."""
    return any(isinstance(part, nn.MultiheadAttention | nn.TransformerEncoderLayer) for part in module.modules())


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Have these modules call the functions that they are made of, so that each can be recorded and exported."""
    # A switch of the whole process: it is put back as it was, which may be off.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
