"""Labels of images, against Hugging Face's pipeline and image processors on tiny random checkpoints."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.task_models import COMPARED, edit_json, quick
from tfm.errors import BundleError, InputError
from tfm.runtime import load
from tfm.runtime.inputs.pixels import Preparation, prepare

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")
Image = pytest.importorskip("PIL.Image", reason="images are resized by it: pip install pillow")

SIDE = 12
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIDE,
    "patch_size": 4,
    "initializer_range": 0.6,
    "num_labels": 7,
}
FAMILIES = dict(zip(COMPARED["classify_images"][2], ("ViT", "DeiT"), strict=True))
rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((12, 12), (31, 17), (5, 40), (9, 8))]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def open_both(family: str, **settings: Any) -> tuple[Any, Any, Path]:
        key = family + repr(settings)
        if key not in made:
            folder = tmp_path_factory.mktemp("images")
            torch.manual_seed(0)
            name = FAMILIES[family]
            model = getattr(transformers, f"{name}ForImageClassification")(
                getattr(transformers, f"{name}Config")(**SMALL)
            ).eval()
            model.save_pretrained(folder / "checkpoint")
            sizes = {"size": {"height": SIDE, "width": SIDE}} if family == "vit" else {
                "size": {"height": SIDE + 3, "width": SIDE + 3}, "crop_size": {"height": SIDE, "width": SIDE}
            }  # fmt: skip
            processor = getattr(transformers, f"{name}ImageProcessorPil")(**(sizes | settings))
            processor.save_pretrained(folder / "checkpoint")
            ours = load(quick(folder / "checkpoint", folder / "x.tfm"), provider="cpu", threads=1)
            theirs = transformers.pipeline("image-classification", model=model, image_processor=processor)
            made[key] = ours, theirs, folder
        return made[key]

    return open_both


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [label["label"] for label in ours] == [label["label"] for label in theirs]
    np.testing.assert_allclose(
        [label["score"] for label in ours], [label["score"] for label in theirs], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("family", "settings"),
    [("vit", {}), ("deit", {}), ("vit", {"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]})],
)
def test_as_the_pipeline(opened: Callable[..., Any], tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    ours, theirs, _ = opened(family, **settings)
    assert ours.tasks == ("classify_images",)
    pictures = [Image.fromarray(image) for image in IMAGES]
    expected = [theirs(picture, top_k=7) for picture in pictures]
    files = []
    for number, picture in enumerate(pictures):
        files.append(tmp_path / f"{number}.png")
        picture.save(files[-1])
    turned = [np.moveaxis(image, -1, 0) for image in IMAGES]
    for inputs in (IMAGES, pictures, files, [str(file) for file in files], turned):
        for one, other in zip(ours.classify_images(inputs, top_k=None), expected, strict=True):
            same(one, other)
    assert [len(labels) for labels in ours.classify_images(IMAGES)] == [5] * 4
    assert (
        ours.classify_images(pictures[1], 2)
        == ours.classify_images(IMAGES, 2)[1:2]
        == ours.classify_images(str(files[1]), 2)
    )
    assert list(ours.classify_images_stream(iter(IMAGES), window=3)) == ours.classify_images(IMAGES)


def test_a_picture_is_turned_as_its_camera_was_held(opened: Callable[..., Any], tmp_path: Path) -> None:
    ours, theirs, _ = opened("vit")
    file = tmp_path / "turned.jpg"
    picture = Image.fromarray(IMAGES[1])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.convert("L").save(file, exif=exif, quality=95)
    same(ours.classify_images(file)[0], theirs(str(file), top_k=5))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 7, "width": 9}},
        {"size": {"shortest_edge": 10}},
        {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 11, "width": 9}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 15, "width": 6}},
        {"size": {"height": 8, "width": 8}, "do_rescale": False, "resample": 0},
        {"size": {"height": 8, "width": 8}, "do_normalize": False, "rescale_factor": 0.01},
    ],
)
def test_pixels_are_those_of_the_processor(
    opened: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    import shutil

    from tfm.bundle import Companions, read_manifest
    from tfm.bundle.json_files import describe_file
    from tfm.runtime.inputs.pixels import read_image, read_preparation

    _, _, made = opened("vit")
    folder = shutil.copytree(made / "x.tfm", tmp_path / "x.tfm")
    processor = transformers.ViTImageProcessorPil(**settings)
    processor.save_pretrained(folder)
    digests = {
        name: {"size": file.size, "sha256": file.sha256} for name, file in read_manifest(made / "x.tfm").files.items()
    }
    name = "preprocessor_config.json"
    edit_json(folder / "manifest.json", files=digests | {name: describe_file(folder / name)})
    preparation = read_preparation(Companions(read_manifest(folder)))
    assert preparation is not None
    for image in IMAGES:
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(prepare(read_image("x", image), preparation), expected)


def test_without_pillow(opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, _, _ = opened("vit")
    expected = ours.classify_images(IMAGES[0])
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert ours.classify_images(IMAGES[0]) == expected  # of the right size
    with pytest.raises(InputError, match=r"to resize an image of 31 × 17 pixels to 12 × 12 needs the package pillow"):
        ours.classify_images(IMAGES[1])
    with pytest.raises(InputError, match=r"to read inputs\[0\], an image's file, needs the package pillow"):
        ours.classify_images(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 4), np.float32), r"inputs\[0\] must be a file's path, .* but is .* of float32 \(3, 4, 4\)"),
        ("nowhere.png", r"inputs\[0\] cannot be read as an image: .*nowhere.png"),
        (np.zeros((12, 12), np.uint8), r"an image has 1 channels, but the model's have 3"),
    ],
)
def test_refusals(opened: Callable[..., Any], image: Any, message: str) -> None:
    ours, _, _ = opened("vit")
    with pytest.raises(InputError, match=message):
        ours.classify_images([image])


def test_a_processor_that_is_not_known(opened: Callable[..., Any], tmp_path: Path) -> None:
    _, _, folder = opened("vit")
    checkpoint = folder / "checkpoint"
    name = checkpoint / "preprocessor_config.json"
    before = name.read_text()
    try:
        edit_json(name, image_processor_type="ConvNextImageProcessor")
        bundle = quick(checkpoint, tmp_path / "x.tfm")
        name.unlink()
        bare = quick(checkpoint, tmp_path / "y.tfm")
    finally:
        name.write_text(before)
    with pytest.raises(BundleError, match=r"what the image processor 'convnext' does is not known here \(vit, deit, "):
        load(bundle, provider="cpu", threads=1).classify_images(IMAGES[0])
    with pytest.raises(InputError, match=r"has no preprocessor_config.json, so nobody knows how images are prepared"):
        load(bare, provider="cpu", threads=1).classify_images(IMAGES[0])


def test_a_preparation_that_does_nothing() -> None:
    plain = Preparation(size=None, scale=None, mean=None)
    np.testing.assert_array_equal(prepare(IMAGES[0], plain), IMAGES[0].astype(np.float32))
