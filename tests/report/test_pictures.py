"""Attention maps and activation curves: what is drawn is what was given, and no difference is lost."""

import base64
import math
import re
import struct
import zlib

import numpy as np
import pytest

from tfm.errors import VerificationError
from tfm.report import ActivationCurve, AttentionMap, png
from tfm.report.curves import plot
from tfm.report.maps import panel


def decode(uri: str) -> np.ndarray:
    """The pixels of a PNG of 8-bit RGBA without filters."""
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 6, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 4 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 4)


def test_the_larger_the_more_opaque_and_what_is_broken_is_red() -> None:
    pixels = decode(png.data_uri(np.array([[0.0, 0.5, 1.0], [2.0, -1.0, np.nan]], np.float32), 1.0))
    assert pixels[..., 3].tolist() == [[0, 128, 255], [255, 0, 255]]
    assert [tuple(pixel) for pixel in pixels[1, 1:, :3]] == [png.HUE, png.BROKEN]


def test_a_map_of_zeros_is_drawn() -> None:
    assert not decode(png.data_uri(np.zeros((2, 2), np.float32), 0.0))[..., 3].any()


def a_map(onnx: np.ndarray | None = None, tokens: tuple[str, ...] = ("a", "b", "c")) -> AttentionMap:
    eager = np.full((2, 3, 3), 0.25, np.float32)
    return AttentionMap(
        op="encoder.layers.0.self_attn", tokens=tokens, eager=eager, onnx=eager if onnx is None else onnx
    )


def test_the_largest_difference_is_named() -> None:
    onnx = np.full((2, 3, 3), 0.25, np.float32)
    onnx[1, 0, 2] -= np.float32(0.125)
    drawn = panel(a_map(onnx))
    assert a_map(onnx).max_abs == 0.125
    assert drawn.words == "Largest difference 1.2e−1, in head 2, where “a” looks at “c”."
    assert drawn.large.head == 2
    assert decode(drawn.large.eager)[0, 2, 3] == 255
    assert decode(drawn.large.onnx)[0, 2, 3] == 128
    assert decode(drawn.heads[1].onnx)[0, 2, 3] == 128
    assert "position 1 looks at position 3" in panel(a_map(onnx, ())).words


def test_nan_equals_only_nan_at_the_same_place() -> None:
    onnx = np.full((2, 3, 3), 0.25, np.float32)
    onnx[0, 1, 1] = np.nan
    assert a_map(onnx).max_abs == math.inf
    assert "∞" in panel(a_map(onnx)).words
    assert decode(panel(a_map(onnx)).large.onnx)[1, 1].tolist() == [*png.BROKEN, 255]
    assert AttentionMap(op="x", tokens=(), eager=onnx, onnx=onnx.copy()).max_abs == 0


def test_equal_maps_are_said_to_be_equal() -> None:
    assert panel(a_map()).words == "All 2 heads agree to the last bit."


def test_long_maps_are_cut_and_say_so() -> None:
    eager = np.full((1, 100, 80), 0.01, np.float32)
    drawn = panel(AttentionMap(op="x", tokens=(), eager=eager, onnx=eager))
    assert decode(drawn.large.eager).shape == (64, 64, 4)
    assert drawn.cut == "Shown: the first 64 of 100 queries and 64 of 80 keys."


@pytest.mark.parametrize(
    ("shapes", "tokens", "message"),
    [
        (((2, 3, 3), (2, 3, 4)), (), r"shapes \(2, 3, 3\) and \(2, 3, 4\)"),
        (((3, 3), (3, 3)), (), r"\(heads, queries, keys\) twice was expected"),
        (((0, 3, 3), (0, 3, 3)), (), "was expected"),
        (((2, 3, 3), (2, 3, 3)), ("a",), "1 tokens label 3 keys"),
    ],
)
def test_what_is_no_map_is_refused(shapes: tuple, tokens: tuple[str, ...], message: str) -> None:
    eager, onnx = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(VerificationError, match=message):
        AttentionMap(op="x", tokens=tokens, eager=eager, onnx=onnx)


def curve(error: list[float], x: list[float] | None = None, y: list[float] | None = None) -> ActivationCurve:
    x = [float(i) for i in range(len(error))] if x is None else x
    return ActivationCurve(name="gelu", x=x, y=x if y is None else y, error=error, limit=1e-6)


def points(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]


def test_one_point_past_the_limit_is_neither_passed_nor_lost_in_the_picture() -> None:
    error = [1e-8] * 100_000
    error[43_210] = 1e-4
    drawn = plot(curve(error))
    assert not drawn.passed
    assert "Largest error 1.0e−4 at x = 4.321e4; the limit is 1.0e−6." in drawn.words
    peak = min(points(drawn.error), key=lambda point: point[1])
    assert peak == (pytest.approx(300 * 0.4321, abs=0.1), 0.0)
    assert len(points(drawn.error)) <= 242


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_error_that_is_no_number_fails_and_is_marked(bad: float) -> None:
    drawn = plot(curve([1e-8, bad, 1e-8]))
    assert not drawn.passed
    assert "∞" in drawn.words
    assert drawn.broken == (150.0,)


def test_points_at_infinity_are_judged_and_counted() -> None:
    ends = [-math.inf, 0.0, 1.0, math.inf, math.nan]
    assert plot(curve([0.0] * 5, ends)).passed
    assert plot(curve([0.0] * 5, ends)).outside == 3
    assert not plot(curve([0.0, 0.0, 0.0, math.inf, 0.0], ends)).passed
    assert not plot(curve([0.0, 0.0, 0.0, 0.0, math.nan], ends)).passed


@pytest.mark.parametrize("ends", [(-1.7e308, 1.7e308), (-5e-324, 5e-324), (2.0, 2.0), (1e300, 1e300)])
def test_the_extremes_of_float64_have_a_place(ends: tuple[float, float]) -> None:
    drawn = plot(curve([1e-8, 1e-8], list(ends)))
    assert all(0 <= x <= 300 and 0 <= y <= 110 for x, y in points(drawn.curve))
    assert len(drawn.x_ticks) <= 8
    assert all(0 <= x <= 300 for x, _ in drawn.x_ticks)


def test_no_curve_of_nothing() -> None:
    with pytest.raises(VerificationError, match="at least one"):
        curve([])
    with pytest.raises(VerificationError, match="2 x, 2 y and 1 errors"):
        curve([0.0], [0.0, 1.0])
