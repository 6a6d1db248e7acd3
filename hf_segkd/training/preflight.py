"""`preflight`: scores teacher and student before the first step, to check that the teacher is better."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import logging

from hf_segkd.data import EvaluationDataset, EvaluationStream, evenly_spread
from hf_segkd.evaluation.metrics import confusion_matrix, scores_from_confusion_matrix
from hf_segkd.networks import FeatureReader, trial_size
from hf_segkd.networks.inference import logits_at
from hf_segkd.networks.teacher import Teacher

logger = logging.get_logger(__name__)


class PreflightScores(NamedTuple):
    """The mIoU of both networks, 0..1, on some validation images."""

    teacher: float
    student: float
    num_images: int


def preflight(
    teacher: Teacher,
    student: nn.Module | FeatureReader,
    eval_dataset: Any,
    num_images: int,
    *,
    crop_size: tuple[int, int] | None,
    accelerator: Accelerator,
) -> PreflightScores | None:
    """Compare the mIoU of teacher and student on some validation images, shared by the processes.

    Both see the images as in the evaluation of the student (their centres, where one of the two takes only crops), the
    teacher with its own normalisation. Both answer with one of the common classes; pixels of other classes don't count.
    So the teacher is scored at the scale and with the pixels that it will teach with. Nothing that training depends on
    is changed.

    Args:
        teacher: The teacher.
        student: The student.
        eval_dataset: The trainer's: a data set, a dict of data sets, or None.
        num_images: Number of images from the first data set of images: evenly spread, of a stream the first ones.
        crop_size: Height and width of training crops; None where they are not known, for the networks' own.
        accelerator: Accelerator of the run.

    Returns:
        The same scores on all processes; None, with a log entry, where nothing can be compared: there are no images,
        they show no common classes, or the networks have none or don't take the images.

    Raises:
        ValueError: If the teacher's logits are not finite.
    """
    sets = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    images = next((images for images in sets if isinstance(images, EvaluationDataset | EvaluationStream)), None)
    if images is None:
        (logger.info if eval_dataset is None else logger.warning)(
            "The teacher is not tried: eval_dataset holds none of load_segmentation_dataset. Is it better than the "
            "student?"
        )
        return None
    if teacher.classes is None:
        logger.info("The teacher is not tried: it has no classes in common with the student.")
        return None
    if isinstance(images, EvaluationStream):
        images = images.first(num_images)
    else:
        images = EvaluationDataset(evenly_spread(images.dataset, num_images), images.image_processor)
    if crop_size is None:
        configs = [teacher.network.config, student.config]
        crop_size = trial_size(next((c for c in configs if getattr(c, "image_size", None)), student.config))
    matrices, wrong, refused, reason = _count(teacher, student, images, teacher.classes.common, crop_size, accelerator)
    if refused:
        logger.warning(
            f"The teacher is not tried: one of the networks takes {int(refused)} of {len(images)} validation "
            f"images neither whole nor as a crop. {reason}"
        )
        return None
    if wrong:
        raise ValueError(
            f"The teacher's logits are not finite for {int(wrong)} of {len(images)} validation images, so nothing "
            "can be learnt from them. Its weights may be damaged, or its numbers too large for the number format "
            "it runs in (teacher_dtype)."
        )
    scores = PreflightScores(*(scores_from_confusion_matrix(m)["mean_iou"] for m in matrices), len(images))
    if math.isnan(scores.teacher):
        logger.warning(f"The teacher can't be judged: none of {len(images)} validation images shows its classes.")
        return None
    return scores


def require_better_teacher(scores: PreflightScores, allow_weak_teacher: bool) -> None:
    """Log the scores.

    Raises:
        ValueError: If the teacher is not better than the student and `allow_weak_teacher` is not set.
    """
    text = (
        f"Teacher {100 * scores.teacher:.1f} % mIoU, student {100 * scores.student:.1f} % on {scores.num_images} "
        "validation images."
    )
    if scores.teacher > scores.student:
        logger.info(text)
        return
    text += (
        " A student does not learn from a teacher that is not better. Does the teacher see its own normalisation "
        "(teacher_processor)? Are its classes paired rightly with the student's (class_map)? Were its weights loaded, "
        "and trained on images of this kind and size?"
    )
    if not allow_weak_teacher:
        raise ValueError(f"{text} To train all the same set allow_weak_teacher, to skip the test preflight_images=0.")
    logger.warning(text)


def _count(
    teacher: Teacher,
    student: nn.Module | FeatureReader,
    images: EvaluationDataset | list[dict[str, Any]],
    common: Sequence[int],
    crop_size: tuple[int, int],
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Count what the networks predict for the images, over all processes.

    Returns:
        The confusion matrices of teacher and student, (2, k, k); the number of images for which the teacher's logits
        are not finite; the number of images that a network does not take, and the last reason on this process.
    """
    num_labels, ignore_index = student.config.num_labels, student.config.semantic_loss_ignore_index
    device = accelerator.device
    left_out = torch.ones(num_labels, dtype=torch.bool, device=device)
    left_out[list(common)] = False
    matrices = torch.zeros(2, num_labels, num_labels, dtype=torch.int64, device=device)
    wrong, refused, reason = *torch.zeros(2, 1, dtype=torch.int64, device=device), ""

    def ask(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with accelerator.autocast():
            learnt = student(pixel_values=pixels).logits
        return teacher(pixel_values=pixels).logits, learnt

    with torch.no_grad(), _evaluating(student.model if isinstance(student, FeatureReader) else student):
        for index in range(accelerator.process_index, len(images), accelerator.num_processes):
            sample = images[index]
            pixels, labels = sample["pixel_values"][None].to(device), sample["labels"].to(device)
            labels = labels.masked_fill(torch.isin(labels, left_out.nonzero()), ignore_index)
            try:
                both, labels = _ask_whole_or_centre(ask, pixels, labels, crop_size, ignore_index)
            except ValueError as error:
                refused, reason = refused + 1, str(error)
                continue
            wrong += ~both[0].isfinite().all()
            for matrix, logits in zip(matrices, both, strict=True):
                resized = logits_at(logits, labels.shape)[0]
                answer = resized.masked_fill(left_out[:, None, None], -math.inf).argmax(0)
                matrix += confusion_matrix(answer, labels, num_labels, ignore_index)
    matrices, wrong, refused = (accelerator.reduce(counts) for counts in (matrices, wrong, refused))
    return matrices, wrong, refused, reason


def _ask_whole_or_centre(
    ask: Callable[[Tensor], tuple[Tensor, Tensor]],
    pixels: Tensor,
    labels: Tensor,
    crop_size: tuple[int, int],
    ignore_index: int,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The logits of both networks, and the labels of what they have seen: the image, or its centre.

    Raises:
        ValueError: If one of the networks takes neither.
    """
    try:
        return ask(pixels), labels
    except ValueError:  # networks of one size take crops, but no whole images
        pixels, labels = _centre(pixels, labels, crop_size, ignore_index)
        return ask(pixels), labels


def _centre(pixels: Tensor, labels: Tensor, size: tuple[int, int], ignore_index: int) -> tuple[Tensor, Tensor]:
    """The centre of an image (1, 3, hh, ww) and its labels (h, w), padded where the image is smaller."""
    labels = F.interpolate(labels[None, None].double(), size=pixels.shape[2:], mode="nearest-exact")[0, 0].long()
    top, left = ((wanted - there) // 2 for wanted, there in zip(size, labels.shape, strict=True))
    bottom, right = size[0] - labels.shape[0] - top, size[1] - labels.shape[1] - left
    sides = (left, right, top, bottom)  # negative ones cut off
    return F.pad(pixels, sides), F.pad(labels, sides, value=ignore_index)


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards each module has its own mode again."""
    modes: list[tuple[nn.Module, Any]] = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
