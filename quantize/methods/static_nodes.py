"""Static int8: a product whose activations have one scale and zero point, fixed beforehand by calibration.

Of the forms that onnxruntime's CPU provider runs, QuantizeLinear and `com.microsoft.MatMulIntegerToFloat`, with the
bias inside, is the one written: it is the same kernel at every level of optimization and at opsets 21, 23 and 24, the
integers are exact in it, and it measured as fast as `DynamicQuantizeMatMul`. Standard QDQ (QuantizeLinear,
DequantizeLinear, MatMul) becomes the same two nodes, but only from the extended level on, runs in float32 below it, and
keeps an Add for the bias. Smoothing stays a Mul before: QuantizeLinear could do it with a scale per channel, but its
kernel then goes number by number, and takes several times as long as the whole product.

NaN comes out of QuantizeLinear as a number: what goes in must be checked elsewhere.

Shapes: R rows, K inputs, N outputs.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from .edit import initializer
from .rounding import round_symmetric

Floats = npt.NDArray[np.float32]

_STEPS = 255


def scale_and_zero(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Give the scale and zero point of uint8 for a range.

    As in ONNX's DynamicQuantizeLinear, so that 0 is exact, and both ends are within half a step.

    Args:
        low: The lowest value, at most 0.
        high: The highest value, at least 0.

    Raises:
        QuantizeError: 0 is outside, or an end is not finite.
    """
    if not -np.inf < low <= 0 <= high < np.inf:
        raise QuantizeError(f"a range of activations must be finite and contain 0, but is [{low:g}, {high:g}]")
    # one of subnormal numbers has no scale that processors divide by alike
    step = np.float32((float(high) - float(low)) / _STEPS)
    scale = step if step >= np.finfo(np.float32).tiny else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, _STEPS))


def quantize_linear(x: Floats, scale: np.float32, zero: np.uint8) -> npt.NDArray[np.uint8]:
    """Round to uint8 as ONNX's QuantizeLinear does, ties to even."""
    return np.clip(np.rint(x / scale) + np.float32(zero), 0, _STEPS).astype(np.uint8)


def fake_quantize(x: Floats, low: float, high: float) -> Floats:
    """What is left of float32 values when they are rounded in 255 steps from low to high, and clipped there."""
    scale, zero = scale_and_zero(low, high)
    return (quantize_linear(x, scale, zero).astype(np.float32) - np.float32(zero)) * scale


def emulate_static(
    x_RK: Floats, weight_KN: Floats, low: float, high: float, scale_K: Floats, limit: int = 127
) -> Floats:
    """Compute a product as the quantized graph does, up to the order of sums.

    Args:
        x_RK: Rows of activations.
        weight_KN: Weights.
        low: The lowest of the activations' range, after smoothing.
        high: The highest.
        scale_K: Divisors of the input channels (see `smoothing`); ones where there is none.
        limit: The largest magnitude of the rounded weights.

    Returns:
        The product (R, N), float32.

    Raises:
        QuantizeError: As `scale_and_zero`.
    """
    # Times the inverse rounded to float32, as the graph's Mul multiplies by.
    smooth_RK = x_RK * (1 / scale_K).astype(np.float32)
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0, limit=limit)
    result: Floats = (fake_quantize(smooth_RK, low, high) @ (rounded_KN * scale_1N)).astype(np.float32)
    return result


def write_static(
    graph: ir.Graph,
    x: ir.Value,
    rounded_KN: ir.Value,
    scale_N: ir.Value,
    bias: ir.Value | None,
    quantization: tuple[np.float32, np.uint8],
    name: str,
) -> list[ir.Node]:
    """Make the nodes of a product; the last gives its result. They are not yet in the graph.

    Args:
        graph: Where the constants go.
        x: The activations, float32 [..., K], after smoothing.
        rounded_KN: An initializer of the weights, int8 (K, N).
        scale_N: An initializer of their scales, float32 (N,).
        bias: What is added to the product, (N,), if anything.
        quantization: Scale and zero point of the activations.
        name: What the constants `{name}_scale` and `{name}_zero_point` of the activations are called.

    Raises:
        QuantizeError: Others are called so already.
    """
    scale, zero = (
        initializer(graph, f"{name}_{part}", np.asarray(value))
        for part, value in zip(("scale", "zero_point"), quantization, strict=True)
    )
    # `initializer` gives what is there under the name already, be it another input's numbers.
    for value, wanted in zip((scale, zero), quantization, strict=True):
        if value.const_value is None or value.const_value.numpy() != wanted:
            raise QuantizeError(f"{graph.name!r} has another constant {value.name!r}; each input needs its own name")
    quantized = ir.node("QuantizeLinear", [x, scale, zero])
    output = quantized.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.UINT8), x.shape
    # No zero point of weights: they are symmetric.
    inputs = [output, rounded_KN, scale, scale_N, zero, None, bias]
    inputs = inputs if bias is not None else inputs[:5]
    return [quantized, ir.Node("com.microsoft", "MatMulIntegerToFloat", inputs, num_outputs=1)]
