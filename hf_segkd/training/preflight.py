"""Is the teacher worth learning from? Asked of both networks before the first step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset, EvaluationDataset, evenly_spread
from hf_segkd.evaluation.metrics import confusion_matrix, scores_from_confusion_matrix
from hf_segkd.networks import FeatureReader, trial_size
from hf_segkd.networks.inference import logits_at
from hf_segkd.networks.teacher import Teacher

logger = logging.get_logger(__name__)


class Preflight(TrainerCallback):
    """Compares the mIoU of teacher and student on some validation images when training begins, not when it goes on.

    Both see the images as in the evaluation of the student (their centres, where one of the two takes crops alone), the
    teacher with its own normalisation, and answer with one of the common classes; pixels of other classes don't count.
    So it is the teacher's score at the scale and with the pixels it will teach with. Nothing that training depends on
    is touched. The processes share the images; all come to one result.

    Args:
        trainer: The `DistillationTrainer`, whose `args.preflight_images` and `args.allow_weak_teacher` it obeys.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Log both scores.

        Raises:
            ValueError: If the teacher's logits are not finite, or, unless `args.allow_weak_teacher`, it is not better
                than the student.
        """
        given, teacher = self.trainer.eval_dataset, self.trainer.teacher
        if state.global_step > 0 or not args.preflight_images or teacher is None:
            return
        sets = given.values() if isinstance(given, dict) else [given]
        images = next((images for images in sets if isinstance(images, EvaluationDataset)), None)
        if images is None:
            (logger.info if given is None else logger.warning)(
                "The teacher is not tried: eval_dataset holds none of load_segmentation_dataset. Is it better than the "
                "student?"
            )
            return
        class_map = teacher.classes
        if class_map is None:
            logger.info("The teacher is not tried: it has no classes in common with the student.")
            return
        student = self.trainer.distiller.network
        some = EvaluationDataset(evenly_spread(images.dataset, args.preflight_images), images.image_processor)
        scores = self._scores(some, teacher, student, list(class_map.common))
        if scores is not None:
            self._judge(*scores, len(some))

    def _scores(
        self, images: EvaluationDataset, teacher: Teacher, student: nn.Module | FeatureReader, common: list[int]
    ) -> tuple[float, float] | None:
        """The mIoU of teacher and student, 0..1; None, with a warning, if they don't take the images."""
        accelerator = self.trainer.accelerator
        num_labels, ignore_index = student.config.num_labels, student.config.semantic_loss_ignore_index
        device = accelerator.device
        left_out = torch.ones(num_labels, dtype=torch.bool, device=device)
        left_out[common] = False
        matrices = torch.zeros(2, num_labels, num_labels, dtype=torch.int64, device=device)
        wrong, refused, reason = *torch.zeros(2, 1, dtype=torch.int64, device=device), ""
        with torch.no_grad(), _evaluating(self.trainer.student):
            for index in range(accelerator.process_index, len(images), accelerator.num_processes):
                sample = images[index]
                pixels, labels = sample["pixel_values"][None].to(device), sample["labels"].to(device)
                labels = labels.masked_fill(torch.isin(labels, left_out.nonzero()), ignore_index)
                try:
                    taught, learnt = self._logits(teacher, student, pixels)
                except ValueError:  # networks of one size can't take whole images, but crops
                    pixels, labels = _centre(pixels, labels, self._crop_size(teacher, student), ignore_index)
                    try:
                        taught, learnt = self._logits(teacher, student, pixels)
                    except ValueError as error:
                        refused, reason = refused + 1, str(error)
                        continue
                wrong += ~taught.isfinite().all()
                for matrix, logits in zip(matrices, (taught, learnt), strict=True):
                    resized = logits_at(logits, labels.shape)[0]
                    answer = resized.masked_fill(left_out[:, None, None], -math.inf).argmax(0)
                    matrix += confusion_matrix(answer, labels, num_labels, ignore_index)
        wrong, refused, matrices = (accelerator.reduce(counts) for counts in (wrong, refused, matrices))
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
        taught, learnt = (scores_from_confusion_matrix(matrix)["mean_iou"] for matrix in matrices)
        return taught, learnt

    def _logits(self, teacher: Teacher, student: nn.Module | FeatureReader, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with self.trainer.accelerator.autocast():
            learnt = student(pixel_values=pixels).logits
        return teacher(pixel_values=pixels).logits, learnt

    def _crop_size(self, teacher: Teacher, student: nn.Module | FeatureReader) -> tuple[int, int]:
        """Height and width of training crops; of a torch data set, which does not tell, the networks' own."""
        training = self.trainer.train_dataset
        if isinstance(training, AugmentedDataset):
            return training.transform.crop_size
        configs = [teacher.network.config, student.config]
        return trial_size(next((config for config in configs if getattr(config, "image_size", None)), student.config))

    def _judge(self, taught: float, learnt: float, num_images: int) -> None:
        scores = f"Teacher {100 * taught:.1f} % mIoU, student {100 * learnt:.1f} % on {num_images} validation images."
        if math.isnan(taught):
            logger.warning(f"The teacher can't be judged: none of {num_images} validation images shows its classes.")
            return
        self.trainer.log({"preflight_teacher_mean_iou": taught, "preflight_student_mean_iou": learnt})
        if taught > learnt:
            logger.info(scores)
            return
        text = (
            f"{scores} A student does not learn from a teacher that is not better. Does the teacher see its own "
            "normalisation (teacher_processor)? Are its classes paired rightly with the student's (class_map)? Were "
            "its weights loaded, and trained on images of this kind and size?"
        )
        if not self.trainer.args.allow_weak_teacher:
            raise ValueError(
                f"{text} To train all the same set allow_weak_teacher, to skip the test preflight_images=0."
            )
        logger.warning(text)


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
