"""OHEM: the cross-entropy of the hardest pixels only (Shrivastava et al., 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.base import require_whole
from hf_segkd.losses.labels.base import LabelLoss, not_zero, pixel_weights
from hf_segkd.types import Paper

# Share of the labelled pixels that is kept at least, where no number is given: that of CoinCheung's BiSeNet.
SHARE = 16


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    thresh: float = 0.7,
    min_kept: int | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    r"""Mean cross-entropy over the hard pixels of a batch, in nats.

    A labelled pixel is hard if its class has a probability below `thresh`, or if it is among the n pixels of the batch
    whose class has the lowest. Over the set H of these:
    $$\frac{\sum_{i \in H} w_{y_i} \ell_i}{\sum_{i \in H} w_{y_i}}, \quad \ell_i = -\log p_{i, y_i}$$
    Section 4 of the paper keeps the regions of an image with the highest loss; for pixels, threshold and least number
    are those of mmsegmentation's `OHEMPixelSampler`.

    Args:
        logits: (b, k, hh, ww), float32 or float64.
        labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.
        thresh: Probability, above 0 and below 1.
        min_kept: Pixels for each image of the batch: n = b * min_kept, at most all that are labelled. None takes a 16th
            of the labelled pixels, rounded down.
        class_weights: (k,), 0 or more; they do not change which pixels are hard.

    Returns:
        A scalar; 0 with a graph where no pixel is labelled.

    Example:
        >>> logits = torch.tensor([[[[9.0, 0.0]], [[0.0, 0.0]]]])  # the first pixel is easy
        >>> ohem_cross_entropy(logits, torch.zeros(1, 1, 2, dtype=torch.int64))
        tensor(0.6931)
    """
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    labelled = labels != ignore_index
    num_labelled = labelled.sum()
    kept = num_labelled // SHARE if min_kept is None else num_labelled.clamp(max=len(labels) * min_kept)
    # Losses are not negative, so that pixels without a label come last.
    descending = losses.detach().where(labelled, -1).flatten().sort(descending=True).values
    least = descending.gather(0, (kept - 1).clamp(min=0)[None]).where(kept > 0, math.inf)
    hard = labelled & ((losses > -math.log(thresh)) | (losses >= least))
    weights = hard if class_weights is None else hard * pixel_weights(labels, ignore_index, class_weights)
    return (losses * weights).sum() / not_zero(weights.sum())


@dataclass(frozen=True, kw_only=True)
class OHEM(LabelLoss):
    """Training Region-based Object Detectors with Online Hard Example Mining; see `ohem_cross_entropy`.

    Args:
        weight: Weight of the term.
        thresh: Pixels whose class has a lower probability are kept; 0.7 as in mmsegmentation.
        min_kept: Pixels that are kept at least, for each image; mmsegmentation's configurations have 100000 for crops
            of 512 x 1024 and more. By default a 16th of those labelled.

    Raises:
        ValueError: If a value is out of range; when it is called, also if `min_kept` is all pixels of an image.
    """

    name: ClassVar[str] = "ohem"
    uses_class_weights: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Training Region-based Object Detectors with Online Hard Example Mining",
        venue="CVPR 2016",
        arxiv="1604.03540",
        bibtex="""@inproceedings{shrivastava2016training,
  title     = {Training Region-based Object Detectors with Online Hard Example Mining},
  author    = {Shrivastava, Abhinav and Gupta, Abhinav and Girshick, Ross},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2016}
}""",
        code="https://github.com/open-mmlab/mmsegmentation/blob/main/mmseg/structures/sampler/ohem_pixel_sampler.py",
    )

    thresh: float = 0.7
    min_kept: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.thresh < 1:
            raise ValueError(f"OHEM's thresh is {self.thresh}; it is a probability, above 0 and below 1.")
        if self.min_kept is not None:
            require_whole("OHEM's min_kept", self.min_kept)

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """See the base class."""
        pixels = labels[0].numel()
        if self.min_kept is not None and self.min_kept >= pixels:
            raise ValueError(
                f"OHEM keeps at least min_kept = {self.min_kept} pixels of each image, and crops of "
                f"{labels.shape[1]} x {labels.shape[2]} have {pixels}: it would be the plain cross-entropy. Lower "
                f"min_kept, or leave it out for a {SHARE}th of the labelled pixels."
            )
        return ohem_cross_entropy(logits, labels, ignore_index, self.thresh, self.min_kept, class_weights)
