"""The module that the Trainer trains: the student and the loss, side by side."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_segkd.arguments import DistillationArguments
from hf_segkd.inputs import label_names
from hf_segkd.losses import AbstractDistillationLoss, create_loss
from hf_segkd.types import Features, NetworkSpec

logger = logging.get_logger(__name__)


class Distiller(nn.Module):
    """Student plus distillation loss; the whole training loss is computed inside `forward`.

    So DDP, gradient clipping, `zero_grad`, the optimizer and checkpoints see every trainable thing there is, and
    nothing else: the teacher is not in this module, so nothing can train it, save it or switch it to training mode.

    Args:
        student: The network to train.
        loss: The distillation loss, or None to train on the labels alone.
        ce_weight: Weight of the cross-entropy.
    """

    # The loss is the mean of its batch; the Trainer divides by the accumulation steps.
    accepts_loss_kwargs = False
    main_input_name = "pixel_values"

    def __init__(
        self, student: PreTrainedModel, loss: AbstractDistillationLoss | None = None, ce_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        self.ce_weight = ce_weight
        # Read by DistributedDataParallel: statistics (FAKD), memory (CIRKD) are equal on all processes by themselves,
        # and too large (157 MB and 1 GB for 150 classes of 512 channels) to be sent with every step.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, _ in self.named_buffers()
            if name.startswith("loss.") and not {"statistics", "memory"}.isdisjoint(name.split("."))
        ]

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, teacher_features: Features | None = None
    ) -> dict[str, Any]:
        """Loss and its terms in training, logits in evaluation.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            labels: Class of each pixel, (b, hh, ww). Without labels the loss is that of the distillation terms alone.
            teacher_features: The teacher's taps for the same images. Without them there are no distillation terms.

        Returns:
            `{"logits"}` without labels and features, else `{"loss", "terms"}`: the weighted sum to minimise, and what
            it is of, unweighted.
        """
        if labels is None and teacher_features is None:
            return {"logits": self.student(pixel_values=pixel_values).logits}
        if labels is None:
            ignored = self.config.semantic_loss_ignore_index
            labels = pixel_values.new_full(pixel_values[:, 0].shape, ignored, dtype=torch.long)
        if self.loss is None:
            terms = {"ce": self.student(pixel_values=pixel_values, labels=labels).loss}
        else:
            output = self.student(pixel_values=pixel_values, labels=labels, output_features=True)
            features = output.features
            if self.loss.uses_classifier_weight:
                features = {**features, "classifier_weight": self.student.classifier.weight}
            cross_entropy = output.loss / len(labels) if self.loss.divide_by_batch else output.loss
            terms = {"ce": cross_entropy, **self.loss.unweighted(features, teacher_features, labels)}
        loss = sum(self.weights[name] * value for name, value in terms.items())
        return {"loss": loss, "terms": {name: value.detach() for name, value in terms.items()}}

    @property
    def config(self) -> PreTrainedConfig:
        """The student's; Trainer's logging and model cards ask for it."""
        return self.student.config

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by its name."""
        return {"ce": self.ce_weight, **(self.loss.weights if self.loss is not None else {})}


def network_spec(model: PreTrainedModel) -> NetworkSpec:
    """What the losses must know of a network.

    Raises:
        ValueError: If the network does not name its taps.
    """
    channels = getattr(model, "tap_channels", None)
    if channels is None:
        raise ValueError(
            f"{type(model).__name__} has no `tap_channels`, so its features can't be distilled. A student must be a "
            "network of hf_segkd, such as DeepLabV3PlusForSemanticSegmentation; wrap a teacher in "
            "hf_segkd.ForeignNetwork."
        )
    return NetworkSpec(
        channels,
        model.config.num_labels,
        model.config.semantic_loss_ignore_index,
        norms=getattr(model, "tap_norms", {}),
    )


def build_distiller(
    student: PreTrainedModel, teacher: PreTrainedModel | None, args: DistillationArguments
) -> Distiller:
    """The student and the loss that `args` asks for, with the parameters in `args.frozen` frozen.

    Raises:
        ValueError: If teacher and method don't go together, the two networks are one object or differ in their number
            of labels, a tap is missing, or `args.frozen` names nothing.
    """
    distiller = Distiller(student, _create_loss(student, teacher, args), args.ce_weight)
    _freeze(student, args.frozen)
    return distiller


def parameter_groups(distiller: Distiller, args: DistillationArguments) -> list[dict[str, Any]]:
    """Parameters with the learning rates of backbone, head and connectors, and one weight decay for all.

    Heads and connectors learn at 10 times the backbone's rate in the papers' code; weight decay is on biases and
    batch norms too.
    """
    backbone_prefix = f"student.{distiller.student.base_model_prefix}."
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in distiller.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("loss."):
            groups[args.connector_lr_multiplier].append(parameter)
        elif name.startswith(backbone_prefix):
            groups[1.0].append(parameter)
        else:
            groups[args.head_lr_multiplier].append(parameter)
    return [
        {"params": parameters, "lr": multiplier * args.scaled_learning_rate, "weight_decay": args.weight_decay}
        for multiplier, parameters in groups.items()
    ]


def _create_loss(
    student: PreTrainedModel, teacher: PreTrainedModel | None, args: DistillationArguments
) -> AbstractDistillationLoss | None:
    if args.method == "none":
        if teacher is not None:
            raise ValueError("A teacher was given, but method is 'none'. Choose a method, or leave the teacher out.")
        return None
    if teacher is None:
        raise ValueError(
            f"Method {args.method!r} needs a teacher, and none was given: pass teacher (--teacher FOLDER_OR_ID)."
        )
    if teacher is student:
        raise ValueError("Teacher and student are the same object; the teacher would be trained. Load it twice.")
    if teacher.config.num_labels != student.config.num_labels:
        raise ValueError(
            f"The teacher has {teacher.config.num_labels} labels, the student {student.config.num_labels}. Both must "
            "be made for the same label set, in the same order."
        )
    taught, learnt = label_names(teacher), label_names(student)
    if taught and learnt and taught != learnt:
        logger.warning(f"The teacher calls its labels {taught}, the student {learnt}; they are paired by index.")
    # The loss draws its weights from a generator of its own: the student's dropout and the order of the data are
    # then the same with and without distillation.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return create_loss(args.method, network_spec(student), network_spec(teacher), **args.method_kwargs)


def _freeze(model: PreTrainedModel, beginnings: list[str]) -> None:
    for beginning in beginnings:
        matching = [p for name, p in model.named_parameters() if name.startswith(beginning)]
        if not matching:
            children = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
            raise ValueError(f"frozen: no parameter begins with {beginning!r}. The student's parts are {children}.")
        for parameter in matching:
            parameter.requires_grad_(False)
