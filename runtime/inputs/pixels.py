"""Images as the pixels that a graph takes, prepared as transformers' image processors on PIL do it.

Shapes: C channels, H height, W width.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.bundle import CONFIG, PROCESSOR, CheckedJson, Companions, TensorSpec, kind_of
from tfm.errors import BundleError, InputError

from ..control import Control
from .checks import Array

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NEAREST, _BILINEAR, _BICUBIC = 0, 2, 3
"""Ways to resize, by PIL's numbers."""

_MOST = 8
"""Images of a batch: more gain nothing, and each is the work of a long text."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to an image, in this order.

    Attributes:
        size: Height and width that it is resized to; one number: that of its shorter side; None: it is not.
        resample: How, by PIL's numbers.
        crop: Height and width of the middle that is kept; None: all is.
        scale: What each value is multiplied by; None: nothing.
        mean: Of each channel, what is taken off; None: nothing.
        std: What is divided by then.
    """

    size: tuple[int, int] | int | None = (224, 224)
    resample: int = _BILINEAR
    crop: tuple[int, int] | None = None
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = _HALF
    std: tuple[float, ...] = _HALF


_KNOWN = {
    "vit": Preparation(),
    "deit": Preparation(size=(256, 256), crop=(224, 224), resample=_BICUBIC),
    "beit": Preparation(size=(256, 256), crop=(224, 224), resample=_BICUBIC),
    "clip": Preparation(size=224, crop=(224, 224), resample=_BICUBIC, mean=_CLIP_MEAN, std=_CLIP_STD),
    "siglip": Preparation(resample=_BICUBIC),
}
"""Image processors that do these steps and no others, and what they do where a configuration leaves it out."""

_CROPPED_UNASKED = ("deit", "clip")


def read_preparation(companions: Companions) -> Preparation | None:
    """Read what is done to images; None: the bundle does not say.

    Raises:
        BundleError: Its processor does other things than those that are known here.
    """
    config = companions.json(PROCESSOR)
    if config is None:
        return None
    # By the processor's own name first: a model may come with that of another family.
    kind = _kind(companions, config)
    known = _KNOWN.get(kind)
    # An image that is prepared otherwise has other labels, without a word: better none.
    if known is None:
        raise BundleError(
            f"{companions.manifest.folder}/{PROCESSOR}: what the image processor {kind!r} does is not known here "
            f"({', '.join(_KNOWN)} are); prepare images with it, and call run(pixel_values=…)"
        )
    crops = _flag(config, "do_center_crop", kind in _CROPPED_UNASKED)
    mean, std = (_numbers(config.get(f"image_{name}"), getattr(known, name)) for name in ("mean", "std"))
    return Preparation(
        size=_size(config.get("size"), known.size, kind) if _flag(config, "do_resize", True) else None,
        resample=known.resample if _absent(config.get("resample")) else config["resample"].integer(0),
        crop=_pair(config.get("crop_size"), known.crop or (224, 224)) if crops else None,
        scale=_scale(config.get("rescale_factor")) if _flag(config, "do_rescale", True) else None,
        mean=mean if _flag(config, "do_normalize", True) else None,
        std=std,
    )


def _kind(companions: Companions, config: dict[str, CheckedJson]) -> str:
    """Tell whose processor it is: "vit" of ViTImageProcessor, ViTImageProcessorFast and ViTFeatureExtractor."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if not _absent(config.get(key)):
            name = config[key].text()
            # transformers has had several names for one processor.
            for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
                name = name.removesuffix(ending)
            return name.lower()
    model = (companions.json(CONFIG) or {}).get("model_type")
    return "" if model is None else model.text()


def _absent(value: CheckedJson | None) -> bool:
    return value is None or value.value is None


def _flag(config: dict[str, CheckedJson], key: str, default: bool) -> bool:
    return default if _absent(config.get(key)) else config[key].flag()


def _scale(value: CheckedJson | None) -> float:
    return 1 / 255 if value is None or value.value is None else value.number(0)


def _numbers(value: CheckedJson | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if value is None or value.value is None:
        return default
    # One for each channel, or one for all.
    if isinstance(value.value, list):
        return tuple(item.number(-math.inf) for item in value.items())
    return (value.number(-math.inf),)


def _size(value: CheckedJson | None, default: tuple[int, int] | int | None, kind: str) -> tuple[int, int] | int | None:
    if value is None or value.value is None:
        return default
    if isinstance(value.value, dict):
        if value.value.keys() == {"shortest_edge"}:
            return value["shortest_edge"].integer(1)
        return _pair(value, (0, 0))
    # Older files have one number: a square's side, but of CLIP the shorter side.
    return value.integer(1) if kind == "clip" else (value.integer(1), value.integer(1))


def _pair(value: CheckedJson | None, default: tuple[int, int]) -> tuple[int, int]:
    if value is None or value.value is None:
        return default
    if isinstance(value.value, dict):
        return value["height"].integer(1), value["width"].integer(1)
    return value.integer(1), value.integer(1)


class PixelReader:
    """Reads images: files, those of PIL, and arrays of uint8."""

    def __init__(self, spec: TensorSpec, preparation: Preparation | None) -> None:
        """Make one of what the graph takes and what is done to images."""
        self._shape, self._preparation = spec.shape[1:], preparation

    def rows(self, items: Sequence[Any], control: Control, *, keep: bool) -> list[Array]:
        """Prepare images, float32 (C, H, W) each."""
        del keep
        if self._preparation is None:
            raise InputError(
                f"the bundle has no {PROCESSOR}, so nobody knows how images are prepared; call run(pixel_values=…), or "
                "export it again with one beside the checkpoint"
            )
        found = []
        for place, item in enumerate(items):
            # Reading and resizing a photo takes as long as a small model's run.
            control.check()
            pixels_CHW = prepare(read_image(f"inputs[{place}]", item), self._preparation)
            if any(isinstance(d, int) and d != n for d, n in zip(self._shape, pixels_CHW.shape, strict=True)):
                raise InputError(
                    f"inputs[{place}] is prepared to {pixels_CHW.shape}, but the model takes {tuple(self._shape)}"
                )
            found.append(pixels_CHW)
        return found

    def plan(self, rows: Sequence[Array], batch_tokens: int | None) -> list[list[int]]:
        """Put a few of one shape together."""
        # In a quantized precision each alone, as texts are.
        most = 1 if batch_tokens is None else _MOST
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_shape.setdefault(row.shape, []).append(place)
        return [places[n : n + most] for places in by_shape.values() for n in range(0, len(places), most)]

    def feeds(self, rows: Sequence[Array]) -> dict[str, Array]:
        """Stack the images of a batch."""
        return {"pixel_values": np.stack(rows)}


def read_image(name: str, item: Any) -> npt.NDArray[np.uint8]:
    """Read an image as uint8 (C, H, W).

    Args:
        name: Of it, for messages.
        item: The path of a file, an image of PIL's, or an array of uint8, (H, W, 3), (3, H, W) or (H, W).

    Raises:
        InputError: It is none, or cannot be read.
    """
    if isinstance(item, (str, os.PathLike)):
        return _from_pil(_open(name, item))
    # An app that passes its own arrays needs no pillow.
    # PIL's, which need not be imported to tell.
    if hasattr(item, "getbands"):
        return _from_pil(item)
    # Floats are refused: whether they are 0 to 1 or 0 to 255 would be a guess.
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InputError(
            f"{name} must be a file's path, an image of PIL's or an array of uint8, (H, W, 3), (3, H, W) or (H, W), "
            f"but is {kind_of(item)} of {array.dtype} {array.shape}; run() takes pixels that are prepared"
        )
    if array.ndim == 2:
        return array[None]
    # As transformers tells it: where both may be channels, they are the first axis.
    return array if array.shape[0] in (1, 3, 4) else np.moveaxis(array, -1, 0)


def _open(name: str, path: str | os.PathLike[str]) -> Any:
    image = _pil(f"to read {name}, an image's file,")
    try:
        return image.open(path)
    except (OSError, ValueError) as error:  # UnidentifiedImageError is an OSError
        raise InputError(f"{name} cannot be read as an image: {error}") from error


def _from_pil(image: Any) -> npt.NDArray[np.uint8]:
    """Turn an image as its camera was held, and give its red, green and blue."""
    from PIL import ImageOps

    rgb_HWC = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return np.moveaxis(rgb_HWC, -1, 0)


def _pil(why: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"{why} needs the package pillow, which is not installed: pip install 'tfm-export[images]'"
        ) from error
    return Image


def prepare(pixels_CHW: npt.NDArray[np.uint8], preparation: Preparation) -> npt.NDArray[np.float32]:
    """Resize, crop, scale and normalize an image, float32 (C, H, W)."""
    if preparation.size is not None:
        pixels_CHW = _resized(pixels_CHW, preparation.size, preparation.resample)
    if preparation.crop is not None:
        pixels_CHW = _cropped(pixels_CHW, preparation.crop)
    values_CHW = pixels_CHW.astype(np.float32)
    if preparation.scale is not None:
        # In float64 first, as transformers scales: to the last bit the same pixels.
        values_CHW = (pixels_CHW.astype(np.float64) * preparation.scale).astype(np.float32)
    if preparation.mean is not None:
        mean_C11, std_C11 = (
            np.array(values, np.float32)[:, None, None] for values in (preparation.mean, preparation.std)
        )
        if len(mean_C11) not in (1, len(values_CHW)):
            raise InputError(f"an image has {len(values_CHW)} channels, but the model's have {len(mean_C11)}")
        values_CHW = (values_CHW - mean_C11) / std_C11
    return np.ascontiguousarray(values_CHW)


def _resized(pixels_CHW: npt.NDArray[np.uint8], size: tuple[int, int] | int, resample: int) -> npt.NDArray[np.uint8]:
    height, width = pixels_CHW.shape[1:]
    if isinstance(size, int):
        # Rounded down, as transformers does it.
        long = int(size * max(height, width) / min(height, width))
        size = (long, size) if width <= height else (size, long)
    # PIL would copy it, and is not needed for that.
    if size == (height, width):
        return pixels_CHW
    image = _pil(f"to resize an image of {height} × {width} pixels to {size[0]} × {size[1]}")
    # PIL has the channels last, and of a single one none.
    whole = pixels_CHW[0] if len(pixels_CHW) == 1 else np.moveaxis(pixels_CHW, 0, -1)
    found = np.asarray(image.fromarray(np.ascontiguousarray(whole)).resize(size[::-1], resample=resample))
    return found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)


def _cropped(pixels_CHW: npt.NDArray[np.uint8], crop: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Keep the middle; of what is smaller, with zeros around it."""
    sides = pixels_CHW.shape[1:]
    around = [max(wanted - side, 0) for wanted, side in zip(crop, sides, strict=True)]
    # The odd line goes before, as transformers does it.
    pads = [(0, 0), *((math.ceil(more / 2), more - math.ceil(more / 2)) for more in around)]
    padded = np.pad(pixels_CHW, pads) if any(around) else pixels_CHW
    starts = [(side - wanted) // 2 for wanted, side in zip(crop, padded.shape[1:], strict=True)]
    return padded[:, starts[0] : starts[0] + crop[0], starts[1] : starts[1] + crop[1]]
