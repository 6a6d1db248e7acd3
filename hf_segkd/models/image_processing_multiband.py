"""Image processor for images of any number of bands, which are taken as they are stored."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SegformerImageProcessor
from transformers.image_utils import ChannelDimension


class MultiBandImageProcessor(SegformerImageProcessor):
    """Resizes on request, and normalises each band with its own mean and standard deviation; it never rescales.

    What `SegformerImageProcessor` does for RGB pictures of 8 bits, for (h, w, n) arrays of any number type: satellite
    images, a fourth channel, 16 bits. `post_process_semantic_segmentation` is the same.

    Args:
        image_mean: Mean of each band, in the units of the files; their number is the number of bands.
        image_std: Standard deviation of each band.
        do_resize: Whether to resize to `size` (bilinear, in float32); by default images keep their size.
        size: `{"height": ..., "width": ...}` or another form that transformers knows.
        **kwargs: Further arguments of `SegformerImageProcessor`.

    Raises:
        ValueError: If mean and std are missing, differ in number, or a std is not positive.

    Attributes:
        num_bands: Number of bands n.
    """

    do_resize = False
    do_rescale = False
    rescale_factor = 1.0
    image_mean = None
    image_std = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        mean, std = self.image_mean, self.image_std
        if not mean or not std or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                "image_mean and image_std must be lists with a number for each band, std above 0, got "
                f"{mean} and {std}. `hf-segkd count_statistics` counts them."
            )
        if self.do_rescale or not self.do_normalize:
            raise ValueError("do_rescale must be False and do_normalize True: mean and std are in the files' units.")

    @property
    def num_bands(self) -> int:
        """Number of bands n."""
        return len(self.image_mean)

    def preprocess(self, images: Any, segmentation_maps: None = None, **kwargs: Any) -> BatchFeature:
        """Normalise images.

        Args:
            images: One image or a list: (h, w, n) arrays or what numpy turns into one, (h, w) for one band; with
                `input_data_format="channels_first"` (n, h, w).
            segmentation_maps: None. Labels keep their own resolution.
            **kwargs: As for `SegformerImageProcessor`.

        Returns:
            `pixel_values`, (b, n, h, w) float32.

        Raises:
            ValueError: If an image has other bands, or segmentation maps are given.
        """
        if segmentation_maps is not None:
            raise ValueError("segmentation_maps are not resized along with images; score them as they are.")
        return super().preprocess(images if isinstance(images, list | tuple) else [images], **kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        return list(images)

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs: Any
    ) -> Tensor:
        """The image as (n, h, w) float32."""
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[..., None]
        elif array.ndim == 3 and input_data_format == ChannelDimension.FIRST:
            array = np.moveaxis(array, 0, 2)
        if array.ndim != 3 or array.shape[2] != self.num_bands:
            raise ValueError(
                f"The image is {' x '.join(map(str, array.shape))}, and this network takes height x width x "
                f"{self.num_bands}: images of {self.num_bands} bands as they are stored. hf_segkd.data.read_bands "
                "reads files so."
            )
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 2, 0), dtype=np.float32))
