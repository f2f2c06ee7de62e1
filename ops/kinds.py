"""Every kind of op that is verified, once: what PyTorch and its exporter call it, and how far a result may be off.

Eager calls and a graph's nodes are recognized by this table, and comparisons, certificate and report judge by it. To
add a kind, add an entry of `KINDS`. Nothing else has to know: weights aside, an op takes one argument (an attention
alone has four) and gives one result, and which ONNX nodes it became is read from the graph.
"""

import dataclasses

from .error_stats import Tolerance

ATTENTION, SOFTMAX, ACTIVATION = "attention", "softmax", "activation"
"""The promised kinds, some of which are treated in ways of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpKind:
    """One kind of op.

    Attributes:
        functions: Functions of eager PyTorch. A plain name is any of that name in torch.nn.functional, torch,
            torch.Tensor and torch.special, one that works in place ("relu_") too; a dotted one is a path from torch.
        aten: What torch.export calls them, "aten.linear.default".
        modules: Classes whose modules are one op as a whole, perhaps made of several functions: "package.file.Class".
        tolerance: Of an op by itself, fed what eager fed to it; float32.
        is_layer: Whether it has weights and stands between the ops that are promised. Layers are named and compared
            too, so that a fault is found where it is and not at the next attention.
        looks_up: Whether its argument is ids, which are exact, and which ATen has behind the table.
    """

    functions: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tolerance: Tolerance
    is_layer: bool = False
    looks_up: bool = False


_ACTIVATIONS = (  # noqa: SIM905 (a list would be a page)
    "celu elu erf gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish prelu relu relu6 selu sigmoid silu "
    "softplus tanh"
).split()
"""As ATen names them."""

_OF_TRANSFORMERS = (  # noqa: SIM905
    "AccurateGELUActivation ClippedGELUActivation FastGELUActivation GELUActivation GELUTanh LaplaceActivation "
    "MishActivation NewGELUActivation PytorchGELUTanh QuickGELUActivation ReLUSquaredActivation SiLUActivation "
    "SqrtSoftplusActivation XIELUActivation"
).split()

# Most reasons tell what was measured and what the nearest mistake would be, so that a limit can be
# seen to lie between the two. Change one only together with its reason: both are printed in the
# certificate.
KINDS: dict[str, OpKind] = {
    ACTIVATION: OpKind(
        functions=(*_ACTIVATIONS, "logsigmoid", "special.expit"),
        # prelu also as torch.export decomposes it
        aten=(
            *(f"aten.{name}{end}.default" for name in _ACTIVATIONS for end in ("", "_")),
            "aten._prelu_kernel.default",
            "aten.special_expit.default",
        ),
        modules=(
            "tfm.model.activations.ComposedActivation",
            *(f"transformers.activations.{name}" for name in _OF_TRANSFORMERS),
        ),
        tolerance=Tolerance(
            1e-6,
            1e-6,
            "A few float32 roundings (2⁻²⁴ ≈ 6e-8) and onnxruntime's polynomial erf: gelu measured at most 2.8e-7 of "
            "the scale on MiniLM and g2p. The nearest wrong form, gelu by tanh instead of erf, lies 4.7e-4 off.",
        ),
    ),
    # a scaled dot-product attention
    ATTENTION: OpKind(
        functions=("nn.functional.scaled_dot_product_attention",),
        aten=(
            "aten.scaled_dot_product_attention.default",
            "tfm.softcapped_attention.default",
            "tfm.cached_attention.default",
        ),
        tolerance=Tolerance(
            2e-6,
            4e-6,
            "A sum of H products, a softmax over T and a sum over T, each in another order than eager's: measured at "
            "most 1.3e-6 of the scale on MiniLM (T up to 512) and g2p. A scale 1 % off moves normal Q, K, V's by 2e-2.",
        ),
    ),
    # of an attention written by hand, where no other function shows it
    SOFTMAX: OpKind(
        functions=("softmax",),
        aten=("aten.softmax.int", "aten._softmax.default"),  # as written, and as torch.export decomposes it
        tolerance=Tolerance(
            1e-6,
            1e-6,
            "An exp per element and a sum over the row in another order than eager's; the results are at most 1: "
            "measured at most 3e-7. A row over one element too many or too few moves by 1/T, above 1e-3 for T up to "
            "1000.",
        ),
    ),
    "linear": OpKind(
        functions=("nn.functional.linear",),
        aten=("aten.linear.default",),
        is_layer=True,
        tolerance=Tolerance(
            2e-6,
            4e-6,
            "A sum of D or F products in another order than eager's: measured at most 8.4e-7 of the scale on MiniLM "
            "and g2p, 1.4e-6 on SmolLM2. A wrong weight is found bit by bit, whatever this is.",
        ),
    ),
    "norm": OpKind(
        functions=("nn.functional.layer_norm", "nn.functional.rms_norm"),
        aten=("aten.layer_norm.default", "aten.rms_norm.default"),
        is_layer=True,
        tolerance=Tolerance(
            2e-6,
            2e-6,
            "A mean and a variance over D in another order than eager's: measured at most 3.3e-7 of the scale, and 0.4 "
            "of this limit, on MiniLM, g2p and SmolLM2. It is narrow because a wrong ε moves little.",
        ),
    ),
    "embedding": OpKind(
        functions=("nn.functional.embedding",),
        aten=("aten.embedding.default",),
        is_layer=True,
        looks_up=True,
        tolerance=Tolerance(0.0, 0.0, "Rows are copied, not computed."),
    ),
}


def is_layer(kind: str) -> bool:
    """Whether ops of a kind stand between the promised ones; those of a kind that is not known do not."""
    return kind in KINDS and KINDS[kind].is_layer
