"""Passes on the exported graph, one a file, each an `onnx_ir.passes.InPlacePass`."""

# NameOps runs first in `to_onnx`: it clears the metadata of all nodes, and the others read the
# names that it gives.
from .expand_mish import ExpandMish
from .expand_rotary_caches import ExpandRotaryCaches
from .fold_heads import FoldHeads
from .fuse_quick_gelu import FuseQuickGelu
from .name_ops import NOTE_KEY, OP_KEY, NameOps
from .use_group_query_attention import UseGroupQueryAttention

__all__ = [
    "NOTE_KEY",
    "OP_KEY",
    "ExpandMish",
    "ExpandRotaryCaches",
    "FoldHeads",
    "FuseQuickGelu",
    "NameOps",
    "UseGroupQueryAttention",
]
