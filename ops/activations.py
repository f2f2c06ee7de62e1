"""Every activation function, once: what it computes, its slope, what others call it, how eager PyTorch makes it.

Models are built from this table, sweeps prove exported ops by it, studies and documents print it. To add one, add an
entry of `ACTIVATIONS`; where it is the σ of a gated one, an entry of `GATED`. Nothing else has to know.

A plain activation is σ in W₂σ(W₁x+b₁)+b₂ (Vaswani et al. 2017, section 3.3). A gated one computes
W₂(V x ⊙ σ(G x)) with W₁ = [V; G] (Shazeer 2020, "GLU Variants Improve Transformer").

In formulas σ is the logistic function, Φ the normal distribution's, v the value and g the gate of a gated activation.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]

_SHAZEER = "Shazeer 2020, arXiv:2002.05202"
_HENDRYCKS = "Hendrycks & Gimpel 2016, arXiv:1606.08415"

_QUICK = 1.702
"""β of QuickGELU, x · sigmoid(β x) (Hendrycks & Gimpel 2016)."""

_TANH = math.sqrt(2 / math.pi)
_CUBE = 0.044715
"""Constants of GELU by tanh, ½ x (1 + tanh(_TANH (x + _CUBE x³)))."""

# numpy has neither, and this room needs numpy only. What frompyfunc makes gives arrays of objects,
# which have to be turned into float64.
_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """One plain activation.

    Attributes:
        formula: As its paper writes it.
        source: The paper.
        oracle: σ(x) in float64, elementwise, written from the formula and not from anybody's code.
        derivative: σ′(x) in float64; at a kink as PyTorch has it.
        module: The class of torch.nn that is this activation; None: torch has no single function for it.
        options: Arguments of that class.
        compose: Where there is no such class: σ from torch's functions. It takes torch itself, since this room does
            not import it, and a tensor of any shape.
        aliases: What Hugging Face's configurations call it besides this table's name.
    """

    formula: str
    source: str
    oracle: Callable[[Array64], Array64]
    derivative: Callable[[Array64], Array64]
    module: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compose: Callable[[Any, Any], Any] | None = None
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedActivation:
    """One gated activation.

    Attributes:
        gate: Name of the plain activation that the gate goes through.
        formula: As its paper writes it.
        source: The paper.
    """

    gate: str
    formula: str
    source: str


def _sigmoid(x: Array64) -> Array64:
    small = np.exp(-np.abs(x))  # of -|x|, so that nothing overflows
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _softplus(x: Array64) -> Array64:
    # ln(1 + eˣ) with e⁻ˣ taken out where x is positive: nothing overflows.
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _swish_slope(x: Array64, beta: float) -> Array64:
    """Of x · sigmoid(β x)."""
    return _sigmoid(beta * x) * (1.0 + beta * x * _sigmoid(-beta * x))


def _gelu_slope(x: Array64) -> Array64:
    """Φ(x) + x φ(x)."""
    # 1 + erf cancels in the left tail. Slopes are compared by absolute error, where it does not
    # show; the oracle of gelu itself takes erfc.
    cumulative = 0.5 * (1.0 + np.asarray(_erf(x / math.sqrt(2)), dtype=np.float64))
    return cumulative + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: Array64) -> Array64:
    t = np.tanh(_TANH * (x + _CUBE * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _TANH * (1.0 + 3 * _CUBE * x * x)


def _mish_slope(x: Array64) -> Array64:
    # logaddexp(0, x) is ln(1 + eˣ), and its derivative is σ(x).
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * _sigmoid(x)


def _squared_relu(torch: Any, x: Any) -> Any:
    y = torch.relu(x)
    return y * y


ACTIVATIONS: dict[str, Activation] = {
    "elu": Activation(
        formula="x for x > 0, else eˣ − 1",
        source="Clevert et al. 2015, arXiv:1511.07289",
        # np.where computes both branches: the minimum keeps the one that is thrown away from
        # overflowing.
        oracle=lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
        derivative=lambda x: np.exp(np.minimum(x, 0.0)),
        module="ELU",
    ),
    "gelu": Activation(
        formula="x Φ(x)",
        source=_HENDRYCKS,
        # 1 + erf(x/√2) would cancel in the left tail, where erfc keeps all its digits.
        oracle=lambda x: 0.5 * x * _erfc(-x / math.sqrt(2.0)),
        derivative=_gelu_slope,
        module="GELU",
        aliases=("gelu_python",),
    ),
    "gelu_tanh": Activation(
        formula="½x (1 + tanh(√(2/π) (x + 0.044715 x³)))",
        source=_HENDRYCKS,
        oracle=lambda x: x * _sigmoid(math.sqrt(8.0 / math.pi) * (x + 0.044715 * x**3)),  # 1 + tanh u = 2σ(2u)
        derivative=_gelu_tanh_slope,
        module="GELU",
        options={"approximate": "tanh"},
        # Hugging Face has this formula in several codes, which differ in rounding alone.
        aliases=("gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
    ),
    "hardswish": Activation(
        formula="x min(max(x + 3, 0), 6) / 6",
        source="Howard et al. 2019, arXiv:1905.02244",
        oracle=lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
        # At the kinks -3 and 3 the slope is 0 and 1, as PyTorch has it.
        derivative=lambda x: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0).astype(np.float64),
        module="Hardswish",
    ),
    "mish": Activation(
        formula="x tanh(ln(1 + eˣ))",
        source="Misra 2019, arXiv:1908.08681",
        oracle=lambda x: x * np.tanh(_softplus(x)),
        derivative=_mish_slope,
        module="Mish",
    ),
    "quick_gelu": Activation(
        formula="x σ(1.702 x)",
        source=_HENDRYCKS,
        oracle=lambda x: x * _sigmoid(_QUICK * x),
        derivative=lambda x: _swish_slope(x, _QUICK),
        compose=lambda torch, x: x * torch.sigmoid(_QUICK * x),
    ),
    "relu": Activation(
        formula="max(x, 0)",
        source="Nair & Hinton 2010",
        oracle=lambda x: np.maximum(x, 0.0),
        derivative=lambda x: (x > 0).astype(np.float64),
        module="ReLU",
    ),
    "sigmoid": Activation(
        formula="σ(x) = 1 / (1 + e⁻ˣ)",
        source="Rumelhart et al. 1986",
        oracle=_sigmoid,
        # Not σ(1 - σ), which cancels where σ is near 1.
        derivative=lambda x: _sigmoid(x) * _sigmoid(-x),
        module="Sigmoid",
    ),
    "silu": Activation(
        formula="x σ(x)",
        source="Elfwing et al. 2017, arXiv:1702.03118",
        oracle=lambda x: x * _sigmoid(x),
        derivative=lambda x: _swish_slope(x, 1.0),
        module="SiLU",
        aliases=("swish",),
    ),
    "softplus": Activation(
        formula="ln(1 + eˣ)",
        source="Dugas et al. 2000",
        oracle=_softplus,
        derivative=_sigmoid,
        module="Softplus",
    ),
    "squared_relu": Activation(
        formula="max(x, 0)²",
        source="So et al. 2021, arXiv:2109.08668",
        oracle=lambda x: np.maximum(x, 0.0) ** 2,
        derivative=lambda x: 2.0 * np.maximum(x, 0.0),
        compose=_squared_relu,
        aliases=("relu2",),
    ),
    "tanh": Activation(
        formula="tanh(x)",
        source="LeCun et al. 1998",
        oracle=np.tanh,
        derivative=lambda x: 1.0 - np.tanh(x) ** 2,
        module="Tanh",
    ),
}

GATED: dict[str, GatedActivation] = {
    "glu": GatedActivation(gate="sigmoid", formula="v σ(g)", source="Dauphin et al. 2016, arXiv:1612.08083"),
    "reglu": GatedActivation(gate="relu", formula="v max(g, 0)", source=_SHAZEER),
    "geglu": GatedActivation(gate="gelu", formula="v g Φ(g)", source=_SHAZEER),
    "geglu_tanh": GatedActivation(gate="gelu_tanh", formula="v gelu_tanh(g)", source=_SHAZEER),
    "swiglu": GatedActivation(gate="silu", formula="v g σ(g)", source=_SHAZEER),
}


def activation_names() -> list[str]:
    """Every activation, plain ones first."""
    return [*ACTIVATIONS, *GATED]


def is_gated(name: str) -> bool:
    """Whether `name` multiplies the activated half of a doubled first projection by the other."""
    return name in GATED


def gate_of(name: str) -> str:
    """Name the plain σ of an activation: of a gated one, that of its gate."""
    return GATED[name].gate if name in GATED else name


def gated_by(gate: str) -> str | None:
    """Name the gated activation whose gate goes through σ = `gate`; None: there is none."""
    return next((name for name, gated in GATED.items() if gated.gate == gate), None)


def activation_by_any_name(name: str) -> str:
    """Give this table's name of an activation that Hugging Face may call otherwise; an unknown name stays as it is."""
    return next((ours for ours, entry in ACTIVATIONS.items() if name in entry.aliases), name)


def evaluate_activation(name: str, x: Array64) -> Array64:
    """Evaluate σ of an activation in float64, at -inf its limit: x · 0 is 0 there, not NaN.

    Args:
        name: Of a gated one, the activated gate is evaluated.
        x: Any shape.

    Returns:
        Array of that shape.
    """
    # Sweeps feed ±inf, NaN and the largest floats; numpy would warn of each.
    with np.errstate(all="ignore"):
        y = ACTIVATIONS[gate_of(name)].oracle(x)
    return np.where(np.isneginf(x) & np.isnan(y), 0.0, y)


def derivative_of(name: str) -> Callable[[npt.NDArray[np.floating]], Array64] | None:
    """Give σ′ of an activation; of a gated one, that of its gate; None: the name is not known.

    Args:
        name: As in a bundle's configuration, "gelu" or "swiglu".

    Returns:
        A function of an array of any shape and floating dtype, to float64 of the same shape.
    """
    entry = ACTIVATIONS.get(gate_of(name))
    return None if entry is None else lambda x: entry.derivative(np.asarray(x, dtype=np.float64))
