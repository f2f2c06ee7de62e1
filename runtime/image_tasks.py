"""What a model makes of images: labels."""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Unpack

import numpy as np

from .inputs.batched import Batched, StreamOptions, TaskOptions
from .tasks.base import Squash, Task, read_squash
from .tasks.labeling import Label, check_top_k, labeling


class ImageTasks(Batched):
    """A model that labels images."""

    def classify_images(self, inputs: Any, top_k: int | None = 5, **options: Unpack[TaskOptions]) -> list[list[Label]]:
        """Label images, as Hugging Face's image-classification pipeline does.

        Args:
            inputs: Images, or one: files' paths, images of PIL's, or arrays of uint8, (H, W, 3) or (3, H, W). They are
                prepared as preprocessor_config.json says, as transformers' processors do it on PIL, which the package
                pillow is needed for unless an array has the right size.
            top_k: How many labels of each, the likeliest first; None: all.
            **options: As of every task.

        Returns:
            For each image {"label", "score"}; of scores the same holds as in `classify`.

        Raises:
            InputError: The bundle has no labels for images, or does not say how they are prepared; or an image cannot
                be read.
        """
        return self._list(self._image_labeling(top_k), images_of(inputs), options)

    def classify_images_stream(
        self, inputs: Any, top_k: int | None = 5, **options: Unpack[StreamOptions]
    ) -> Iterator[list[Label]]:
        """Label a stream of images; yields and raises as `classify_images` does."""
        return self._stream(self._image_labeling(top_k), images_of(inputs), options)

    async def classify_images_async(self, inputs: Any, **options: Any) -> list[list[Label]]:
        """Do what `classify_images` does without holding up the event loop; cancelling the task ends it."""
        return await self._async(self.classify_images, inputs, **options)

    def _image_labeling(self, top_k: int | None) -> Task[list[Label]]:
        self._require("classify_images", "it has no labels for images")
        return labeling(self.manifest, self._outputs["logits"], self._squash, check_top_k(top_k))

    @cached_property
    def _squash(self) -> Squash:  # cached, since its file is read and compared with its digest
        return read_squash(self._companions, int(self._outputs["logits"].shape[-1]))


def images_of(inputs: Any) -> Iterable[Any]:
    """Make a list of one of one image."""
    one = isinstance(inputs, (str, os.PathLike)) or hasattr(inputs, "getbands")
    if one or (isinstance(inputs, np.ndarray) and inputs.ndim in (2, 3)):
        return [inputs]
    found: Iterable[Any] = inputs
    return found
