"""Where a token stands: sinusoidal tables, rotary angles, relative buckets and ALiBi slopes.

Tables are computed on the CPU, even where a model is made without memory, on the meta device, to be filled.
Shapes: B batch, S query length, T key length, N heads, H head size, D model size.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .config import RotaryScaling, TransformerConfig

_ROWS = 1024
"""Of a table that are computed at a time."""


def sinusoidal_positions(max_positions: int, d_model: int) -> Tensor:
    """Compute the position table of "Attention Is All You Need", section 3.5.

    PE(p, 2i) = sin(p / 10000^(2i/D)) and PE(p, 2i+1) = cos(p / 10000^(2i/D)), in float64 and
    then rounded, so that every entry is the float32 nearest to its exact value.

    Args:
        max_positions: Number of positions P.
        d_model: Model size D, even.

    Returns:
        Tensor (P, D), float32.
    """
    pair = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu")
    table_PD = torch.empty(max_positions, 2 * len(pair), dtype=torch.float32, device="cpu")
    for position_P, rows_PD in in_pieces(table_PD):
        # I = D / 2 pairs.
        angle_PI = position_P[:, None] * torch.pow(10000.0, -pair / d_model)
        rows_PD[:, 0::2], rows_PD[:, 1::2] = angle_PI.sin(), angle_PI.cos()
    return table_PD


def in_pieces(table_PD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give a table's rows in turn, some at a time, with their positions: what is computed on the way is larger."""
    for start in range(0, len(table_PD), _ROWS):
        rows_PD = table_PD[start : start + _ROWS]
        yield torch.arange(start, start + len(rows_PD), dtype=torch.float64, device="cpu"), rows_PD


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al. 2021, arXiv:2104.09864), with the scalings that configurations name.

    The first half of a head is paired with the second, as Hugging Face does.
    """

    frequency: Tensor
    far_frequency: Tensor

    def __init__(self, config: TransformerConfig, *, local: bool = False) -> None:
        super().__init__()
        self.base = config.rotary_base
        self.scaling = config.rotary_scaling
        if local and config.local_rotary_base is not None:
            self.base, self.scaling = config.local_rotary_base, None
        self.size = config.rotary_size
        # Not saved: the configuration says all of it.
        self.register_buffer("frequency", rotary_frequencies(self.size, self.base, self.scaling), persistent=False)
        if self.scaling is not None and self.scaling.kind == "longrope":
            # Both are made once; which of them holds, each batch says.
            far = rotary_frequencies(self.size, self.base, self.scaling, far=True)
            self.register_buffer("far_frequency", far, persistent=False)
        self.magnitude = rotary_magnitude(self.scaling)

    def forward(self, position_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines, each (B or 1, S, I) float32 with I = H / 2, of positions (B or 1, S)."""
        frequency = self.frequency
        if self.scaling is not None and self.scaling.kind == "dynamic":
            frequency = self._dynamic_frequencies(position_ids_BS)
        if self.scaling is not None and self.scaling.kind == "longrope":
            # The longest row decides for all, as at Hugging Face.
            far = position_ids_BS.max() > self.scaling.original_max_positions - 1
            frequency = torch.where(far, self.far_frequency, frequency)
        angle_BSI = position_ids_BS[:, :, None].to(torch.float32) * frequency
        return angle_BSI.cos() * self.magnitude, angle_BSI.sin() * self.magnitude

    def _dynamic_frequencies(self, position_ids_BS: Tensor) -> Tensor:
        """Widen the base once positions pass the trained length (NTK-aware scaling, dynamic)."""
        assert self.scaling is not None
        trained, factor, size = self.scaling.original_max_positions, self.scaling.factor, self.size
        # The longest row decides for all, as at Hugging Face. Keys in a cache were turned by the base
        # of a shorter one, so that cached steps differ from the whole sequence.
        length = (position_ids_BS.max() + 1).to(torch.float32).clamp(min=float(trained))
        base = self.base * (factor * length / trained - (factor - 1)) ** (size / (size - 2))
        exponent = torch.arange(0, size, 2, device=position_ids_BS.device).to(torch.float32) / size
        return 1.0 / base**exponent


def rotary_frequencies(size: int, base: float, scaling: RotaryScaling | None, *, far: bool = False) -> Tensor:
    """Compute the angle per position of each pair, (H / 2,) float32; longrope's `far` ones are of long sequences.

    Sources: llama3, Meta's Llama 3.1 reference code; yarn, Peng et al. 2023, arXiv:2309.00071; longrope, Ding et al.
    2024, arXiv:2402.13753.
    """
    # Step by step in float32, as Hugging Face rounds it: far positions magnify a last bit.
    exponent = torch.arange(0, size, 2, dtype=torch.int64, device="cpu").to(torch.float32) / size
    frequency = 1.0 / base**exponent
    if scaling is None or scaling.kind == "dynamic":
        return frequency
    factor, trained = scaling.factor, scaling.original_max_positions
    if scaling.kind == "longrope":
        # One of a pair: slow pairs may be stretched further than fast ones, as a search has found.
        factors = torch.tensor(scaling.long_factors if far else scaling.short_factors, device="cpu")
        return 1.0 / (factors * base**exponent)
    if scaling.kind == "linear":
        return frequency / factor
    if scaling.kind == "llama3":
        # Long wavelengths are stretched in full and short ones not at all; `blend` goes from one to
        # the other between the two limits.
        wavelength = 2 * math.pi / frequency
        blend = (trained / wavelength - scaling.low_frequency_factor) / (
            scaling.high_frequency_factor - scaling.low_frequency_factor
        )
        scaled = torch.where(wavelength > trained / scaling.low_frequency_factor, frequency / factor, frequency)
        between = (wavelength <= trained / scaling.low_frequency_factor) & (
            wavelength >= trained / scaling.high_frequency_factor
        )
        return torch.where(between, (1 - blend) * scaled / factor + blend * scaled, scaled)

    # Yarn: the pair that turns so often over the trained length.
    def pair_at(rotations: float) -> float:
        return size * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    # Pairs up to `low` turn often and are kept, those from `high` on seldom and are stretched; the
    # bound of 0.001 is Hugging Face's, for a ramp without width.
    low = max(math.floor(pair_at(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_at(scaling.beta_slow)), size - 1)
    ramp = ((torch.arange(size // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    # Rounded as Hugging Face rounds it: far positions magnify a last bit.
    kept = 1 - ramp
    return 1.0 / (factor * base**exponent) * (1 - kept) + frequency * kept


def rotary_magnitude(scaling: RotaryScaling | None) -> float:
    """Compute the factor on cosines and sines: yarn's and longrope's attention temperature, else 1."""
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_positions))
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


@torch.library.custom_op("tfm::rotate", mutates_args=())
def rotate(x_BSD: Tensor, cos_BSI: Tensor, sin_BSI: Tensor, nhead: int) -> Tensor:
    """Turn the first 2I of each head's H entries by the angles; pairs are (i, i + I).

    An op of its own, since it becomes ONNX-23 RotaryEmbedding: one kernel, where its parts are six.

    Args:
        x_BSD: Queries or keys, heads side by side, (B, S, N·H).
        cos_BSI: Cosines of the angles (B or 1, S, I).
        sin_BSI: Their sines.
        nhead: N.

    Returns:
        A tensor (B, S, N·H).
    """
    # (B, S, I) → (B, S, 1, I): all heads turn alike. `rest` is what a partial rotation leaves.
    size = cos_BSI.size(-1)
    x_BSNH = x_BSD.reshape(*x_BSD.shape[:2], nhead, -1)
    cos_BS1I, sin_BS1I = cos_BSI[:, :, None], sin_BSI[:, :, None]
    first, second, rest = x_BSNH[..., :size], x_BSNH[..., size : 2 * size], x_BSNH[..., 2 * size :]
    turned = first * cos_BS1I - second * sin_BS1I, second * cos_BS1I + first * sin_BS1I
    return torch.cat([*turned, rest], dim=-1).flatten(-2)


@rotate.register_fake
def _(x_BSD: Tensor, cos_BSI: Tensor, sin_BSI: Tensor, nhead: int) -> Tensor:
    # x may be a part of a wider tensor; what `cat` gives is contiguous.
    return torch.empty_like(x_BSD, memory_format=torch.contiguous_format)


def _keep_angles(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.nhead = inputs[3]


def _turn_back(ctx: Any, gradient_BSD: Tensor) -> tuple[Tensor, None, None, None]:
    """A rotation's transpose is the rotation by the opposite angle; the angles themselves are not learned."""
    cos_BSI, sin_BSI = ctx.saved_tensors
    return rotate(gradient_BSD, cos_BSI, -sin_BSI, ctx.nhead), None, None, None


rotate.register_autograd(_turn_back, setup_context=_keep_angles)


class RelativeBias(nn.Module):
    """T5's learned bias per head and bucket of distance (Raffel et al. 2020, section 2.1)."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.buckets = config.relative_buckets
        self.max_distance = config.relative_max_distance
        self.weight = nn.Parameter(torch.randn(config.relative_buckets, config.nhead) * 0.02)

    def forward(self, query_BS: Tensor, key_T: Tensor) -> Tensor:
        """Compute the bias (B, N, S, T) of positions (B, S) and (T,)."""
        bias_BSTN = nn.functional.embedding(self._bucket(key_T - query_BS[:, :, None]), self.weight)
        return bias_BSTN.permute(0, 3, 1, 2)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Near distances have a bucket each, far ones share them logarithmically."""
        buckets = self.buckets
        if self.causal:
            # A decoder never looks ahead, and spends all buckets on what came before.
            offset, distance = torch.zeros_like(distance), -distance.clamp(max=0)
        else:
            # An encoder has a half for either direction.
            buckets //= 2
            offset, distance = (distance > 0).to(torch.int64) * buckets, distance.abs()
        near = buckets // 2
        # At least 1, for the logarithm; near distances do not use this.
        ratio = torch.log(distance.clamp(min=1).to(torch.float32) / near) / math.log(self.max_distance / near)
        far = near + (ratio * (buckets - near)).to(torch.int64)
        return offset + torch.where(distance < near, distance, far.clamp(max=buckets - 1))


class Alibi(nn.Module):
    """Attention with linear biases, -slope · distance per head (Press et al. 2022, arXiv:2108.12409)."""

    slope: Tensor

    def __init__(self, nhead: int) -> None:
        super().__init__()
        # Slopes 2^(-8i/n) for a power of two, n. For other numbers of heads those of the power
        # below come first, and then every other one of the power above, as in the authors' code.
        power = 2 ** math.floor(math.log2(nhead))
        exponents = [8 * (i + 1) / power for i in range(power)]
        exponents += [4 * (2 * i + 1) / power for i in range(nhead - power)]
        self.register_buffer("slope", 2.0 ** -torch.tensor(exponents, device="cpu"), persistent=False)

    def forward(self, query_BS: Tensor, key_T: Tensor) -> Tensor:
        """Compute the bias (B, N, S, T) of positions (B, S) and (T,)."""
        # An encoder looks both ways, at equal cost.
        distance_BST = (key_T - query_BS[:, :, None]).abs().to(torch.float32)
        return -self.slope[:, None, None] * distance_BST[:, None]
