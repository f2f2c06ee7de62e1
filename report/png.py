"""A grid of numbers as a small picture."""

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

HUE = (59, 130, 246)
BROKEN = (220, 38, 38)


def data_uri(values: npt.NDArray[np.float32], largest: float) -> str:
    """A (S, T) grid as a PNG of one hue, the more opaque the larger: it shows on light and on dark.

    NaN and infinity are red. Written by hand, as a PNG without filters is a header and one deflated block
    (https://www.w3.org/TR/png-3/).
    """
    height, width = values.shape
    pixels = np.empty((height, width, 4), dtype=np.uint8)
    sound = np.isfinite(values)
    pixels[..., :3] = np.where(sound[..., None], HUE, BROKEN)
    share = np.where(sound, values, largest).astype(np.float64) / (largest or 1.0)
    # The channel of opacity; what is broken is seen in full.
    pixels[..., 3] = np.where(sound, np.rint(255 * share.clip(0.0, 1.0)), 255)
    rows = np.zeros((height, 1 + 4 * width), dtype=np.uint8)  # the first byte of a row names its filter: none
    rows[:, 1:] = pixels.reshape(height, 4 * width)
    # 8 bits a channel, of color type 6: red, green, blue and opacity.
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    content += _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
