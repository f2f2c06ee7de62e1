"""Passes on the exported graph, one a file, each an `onnx_ir.passes.InPlacePass`."""

# NameOps runs first in `to_onnx`: it clears the metadata of all nodes, and the others read the
# names that it gives.
from .expand_mish import ExpandMish
from .expand_rotary_caches import ExpandRotaryCaches
from .fold_heads import FoldHeads
from .fuse_quick_gelu import FuseQuickGelu
from .lower_attention import LowerAttention
from .lower_gelu import LowerGelu
from .lower_rms_normalization import LowerRMSNormalization
from .lower_rotary_embedding import LowerRotaryEmbedding
from .name_ops import NOTE_KEY, OP_KEY, NameOps
from .set_opset import SetOpset
from .use_group_query_attention import UseGroupQueryAttention
from .writer import ARGUMENT_KEY, RESULT_KEY

__all__ = [
    "ARGUMENT_KEY",
    "NOTE_KEY",
    "OP_KEY",
    "RESULT_KEY",
    "ExpandMish",
    "ExpandRotaryCaches",
    "FoldHeads",
    "FuseQuickGelu",
    "LowerAttention",
    "LowerGelu",
    "LowerRMSNormalization",
    "LowerRotaryEmbedding",
    "NameOps",
    "SetOpset",
    "UseGroupQueryAttention",
]
