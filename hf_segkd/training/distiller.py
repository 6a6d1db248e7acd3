"""`Distiller`: the module that the Trainer trains, which holds the student and the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from hf_segkd.losses import AbstractDistillationLoss, create_loss
from hf_segkd.losses.base import weighted
from hf_segkd.losses.labels import LabelLosses, check_class_weights, create_label_losses
from hf_segkd.networks import FeatureNetwork, FeatureReader, network_spec, without_taps
from hf_segkd.networks.teacher import Teacher
from hf_segkd.training.activation_checkpointing import check_options, checkpointed_blocks
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.own_loss import build_own_loss
from hf_segkd.training.processes import checkpoints_activations
from hf_segkd.types import Features, NetworkSpec


@dataclass
class DistillerOutput(ModelOutput):
    """Output of a `Distiller`.

    Attributes:
        loss: The weighted sum to minimise, where labels or a teacher's features were given.
        logits: (b, k, hh, ww).
        terms: The terms that the loss sums, unweighted and without a graph.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class Distiller(nn.Module):
    """Student plus distillation loss; the whole training loss is computed inside `forward`.

    So DDP, gradient clipping, `zero_grad`, the optimizer and checkpoints see everything that is trained, and nothing
    else: the teacher is not in this module, so nothing can train it, save it or switch it to training mode.

    Args:
        student: The network to train, one of hf_segkd or a `FeatureNetwork`.
        loss: The distillation loss, or None to train on the labels only.
        ce_weight: Weight of the cross-entropy, unless there are `label_losses`.
        common: Classes of the student, ascending, that the loss compares, where they are not all: it gets only their
            logits and classifier weights, and takes pixels of the others as unlabelled.
        label_losses: The losses on the labels, for an auxiliary head's logits too; None for the cross-entropy that the
            student computes itself.
        frozen: Beginnings of the names of the student's parameters and buffers that stay as they are: the parameters
            get no gradient, and batch norms neither use a batch's statistics nor count them.
        distillation_weight: What all terms of the distillation loss are multiplied by, beside their own weights.

    Raises:
        ValueError: If a term of the loss has the name of a loss on the labels.

    Attributes:
        student: The network, without a `FeatureNetwork` around it: its parameters have their own names.
        reader: Reads the features of a `FeatureNetwork`; None where the student names them itself.
    """

    # The loss is the mean of its batch; the Trainer divides by the accumulation steps.
    accepts_loss_kwargs = False
    main_input_name = "pixel_values"

    def __init__(
        self,
        student: PreTrainedModel | FeatureNetwork,
        loss: AbstractDistillationLoss | None = None,
        ce_weight: float = 1.0,
        common: Sequence[int] | None = None,
        label_losses: LabelLosses | None = None,
        frozen: Sequence[str] = (),
        distillation_weight: float = 1.0,
    ) -> None:
        super().__init__()
        wrapped = isinstance(student, FeatureNetwork)
        self.student = student.model if wrapped else student
        self.reader = student.reader if wrapped else None
        self.loss = loss
        self.distillation_weight = distillation_weight
        self.label_losses = label_losses
        self.label_weights = {"ce": ce_weight} if label_losses is None else label_losses.weights
        self.frozen = tuple(frozen)
        if loss is not None and (both := self.label_weights.keys() & loss.weights.keys()):
            raise ValueError(
                f"{loss.name} has the term {', '.join(both)}, which is the name of a loss on the labels: call it "
                "otherwise, so that the log can tell them apart."
            )
        self._checkpoints_activations = False
        common = None if common is None else torch.tensor(common)
        self.register_buffer("common", common, persistent=False)
        # Read by DistributedDataParallel: statistics (FAKD), memory (CIRKD) are equal on all processes by themselves,
        # and too large (157 MB and 1 GB for 150 classes of 512 channels) to be sent with every step.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, _ in self.named_buffers()
            if name.startswith("loss.") and not {"statistics", "memory"}.isdisjoint(name.split("."))
        ]

    def train(self, mode: bool = True) -> Distiller:
        """As `Module.train`; batch norms of the student's frozen parts stay in evaluation mode."""
        super().train(mode)
        for name, module in self.student.named_modules():
            if isinstance(module, _BatchNorm) and f"{name}.running_mean".startswith(self.frozen):
                module.eval()
        return self

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Features | None = None,
        labelled_pixels: Tensor | None = None,
        output_logits: bool = True,
        image_ids: Sequence[str] | None = None,
    ) -> DistillerOutput:
        """Loss and its terms in training, logits in evaluation.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            labels: Class of each pixel, (b, hh, ww). Without labels the loss has only the distillation terms.
            teacher_features: The teacher's features of the same images. Without them there are no distillation terms.
            labelled_pixels: `pixel_weight` of a batch, the mean of all batches that are averaged (accumulated, or of
                other processes), above 0: means over pixels are divided by it. By default by that of this batch.
            output_logits: Whether to return the logits beside a loss.
            image_ids: Not used; a batch holds them beside its tensors.

        Returns:
            Only the logits when neither labels nor features are given.
        """
        if labels is None and teacher_features is None:
            return DistillerOutput(logits=self.network(pixel_values=pixel_values).logits)
        if labels is None:
            ignored = self.config.semantic_loss_ignore_index
            labels = pixel_values.new_full(pixel_values[:, 0].shape, ignored, dtype=torch.long)
        share = 1.0
        if labelled_pixels is not None:
            share = self.pixel_weight(labels) / labelled_pixels
        distils = teacher_features is not None
        options = {} if self.label_losses is None else {"loss_function": self.label_losses}
        checkpoints = self._checkpoints_activations and self.training and torch.is_grad_enabled()
        with checkpointed_blocks(self.student) if checkpoints else contextlib.nullcontext():
            output = self.network(pixel_values=pixel_values, labels=labels, output_features=distils, **options)
        terms = self._label_terms(output.loss, share, len(labels))
        if distils:
            features = output.features
            if self.loss.uses_classifier_weight:
                features = {**features, "classifier_weight": self.network.classifier.weight}
            if self.common is not None:
                features, labels = self._of_common_classes(features, labels)
            terms |= self.loss.unweighted(features, teacher_features, labels)
        return DistillerOutput(
            loss=sum(weighted(terms, self.weights).values()),
            logits=output.logits if output_logits else None,
            terms={name: value.detach() for name, value in terms.items()},
        )

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Compute the student's blocks again in the backward; `Trainer` calls it, with options that are checked."""
        self._checkpoints_activations = True

    gradient_checkpointing_enable = activation_checkpointing_enable  # before transformers 5.20

    def _label_terms(self, values: Tensor, share: Tensor | float, num_images: int) -> dict[str, Tensor]:
        if self.loss is not None and self.loss.request.divide_by_batch:
            values = values / num_images
        if self.label_losses is None:
            return {"ce": share * values}
        return {
            loss.name: share * value if loss.averages_pixels else value
            for loss, value in zip(self.label_losses.losses, values, strict=True)
        }

    def pixel_weight(self, labels: Tensor) -> Tensor:
        """The divisor of means over the pixels of these labels, (b, hh, ww).

        It is the number of labelled pixels, or with class weights the sum of their weights.
        """
        ignored = self.config.semantic_loss_ignore_index
        if self.label_losses is None:
            return (labels != ignored).sum()
        return self.label_losses.pixel_weight(labels, ignored)

    def _of_common_classes(self, features: Features, labels: Tensor) -> tuple[Features, Tensor]:
        """Features and labels in the classes of the loss; pixels of others have the label after the last class."""
        features = {**features, "logits": features["logits"].index_select(1, self.common)}
        if "classifier_weight" in features:
            features["classifier_weight"] = features["classifier_weight"].index_select(0, self.common)
        index = torch.searchsorted(self.common, labels).clamp(max=len(self.common) - 1)
        ignored = (labels == self.config.semantic_loss_ignore_index) | (self.common[index] != labels)
        return features, index.masked_fill(ignored, len(self.common))

    @property
    def network(self) -> PreTrainedModel | FeatureReader:
        """The student with its features: itself, or its reader where it does not name them."""
        return self.student if self.reader is None else self.reader

    @property
    def config(self) -> PreTrainedConfig:
        """The student's configuration; Trainer's logging and model cards ask for it."""
        return self.network.config

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by its name."""
        of_method = {} if self.loss is None else self.loss.weights
        return {**self.label_weights, **{term: self.distillation_weight * own for term, own in of_method.items()}}


def build_distiller(
    student: PreTrainedModel | FeatureNetwork,
    teacher: Teacher | None,
    args: DistillationArguments,
    own_loss: Callable[..., AbstractDistillationLoss] | None = None,
) -> Distiller:
    """Build the student and the losses that `args` asks for, with the parameters in `args.frozen` frozen.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        args: Arguments of the run.
        own_loss: Makes the loss in place of `args.method`, see `build_own_loss`.

    Raises:
        ValueError: If the student's weights are not float32, teacher and method don't go together, the method compares
            classes and the two have none in common, a feature is missing, class weights are not one for each class, or
            `args.frozen` names nothing, or gradient checkpointing has options.
    """
    if student.dtype != torch.float32:
        raise ValueError(
            f"The student's weights are {student.dtype}, and it is trained and scored in float32: load it with "
            "dtype=torch.float32, or convert it with student.float(). To compute in 16 bits set bf16 or fp16."
        )
    loss, common = _create_loss(student, teacher, args, own_loss)
    if checkpoints_activations(args):
        options = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs
        check_options(options, without_taps(student))
    label_losses = _label_losses(args, student.config.num_labels)
    distiller = Distiller(student, loss, args.ce_weight, common, label_losses, args.frozen, args.distillation_weight)
    if distiller.reader is not None:
        distiller.reader.unfreeze_unused_parameters()
    _freeze(distiller.student, args.frozen)
    if loss is not None and loss.uses_classifier_weight:
        _ = distiller.network.classifier  # an error now, not at the first step
    return distiller


def _label_losses(args: DistillationArguments, num_labels: int) -> LabelLosses | None:
    """The losses that `args` asks for; None for the plain cross-entropy. Counted class weights are 1 until counted."""
    losses = create_label_losses(
        args.label_loss, args.label_loss_kwargs, ce_weight=args.ce_weight, smoothing=args.label_smoothing_factor
    )
    weights = args.class_weights
    if [loss.name for loss in losses] == ["ce"] and not args.label_smoothing_factor and weights is None:
        return None
    if weights is not None:
        counted = isinstance(weights, str)
        weights = torch.ones(num_labels) if counted else torch.tensor(weights, dtype=torch.float32)
        check_class_weights(weights.tolist(), num_labels)
    return LabelLosses(losses, weights)


def _create_loss(
    student: PreTrainedModel | FeatureNetwork,
    teacher: Teacher | None,
    args: DistillationArguments,
    own: Callable[..., AbstractDistillationLoss] | None,
) -> tuple[AbstractDistillationLoss | None, Sequence[int] | None]:
    """The loss, and the student's classes that it compares where they are not all."""
    if args.method == "none" and own is None:
        if teacher is not None:
            raise ValueError("A teacher was given, but method is 'none'. Choose a method, or leave the teacher out.")
        return None, None
    if teacher is None:
        what = f"Method {args.method!r}" if own is None else "The loss that was given"
        raise ValueError(f"{what} needs a teacher, and none was given: pass teacher (--teacher FOLDER_OR_ID).")
    learnt, taught, classes = network_spec(student), teacher.spec, teacher.classes
    if classes is not None and classes.is_complete:
        return _seeded_loss(learnt, taught, args, own), None
    # A method that compares only features takes all classes of the student, whatever those of the teacher are.
    loss = _seeded_loss(learnt, _with_classes(taught, learnt.num_labels), args, own)
    if "logits" not in loss.teacher_taps:
        return loss, None
    if classes is None:
        raise ValueError(
            f"Method {loss.name!r} compares logits, and it is not known which of the teacher's {taught.num_labels} "
            f"classes are which of the student's {learnt.num_labels}: fewer than two have one name, and their order "
            "does not tell. Say which teaches which with class_map (--class_map FILE.yaml), or choose a method that "
            "compares features."
        )
    common = len(classes.common)
    return _seeded_loss(_with_classes(learnt, common), _with_classes(taught, common), args, own), classes.common


def _seeded_loss(
    learnt: NetworkSpec,
    taught: NetworkSpec,
    args: DistillationArguments,
    own: Callable[..., AbstractDistillationLoss] | None,
) -> AbstractDistillationLoss:
    # The loss draws its weights from a generator of its own: the student's dropout and the order of the data are
    # then the same with and without distillation.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        if own is not None:
            return build_own_loss(own, learnt, taught, args)
        return create_loss(args.method, learnt, taught, **args.method_kwargs)


def _with_classes(spec: NetworkSpec, count: int) -> NetworkSpec:
    # The student's own ignored label may be one of the common classes' numbers.
    return replace(spec, num_labels=count, ignore_index=count, channels={**spec.channels, "logits": count})


def _freeze(model: PreTrainedModel, beginnings: list[str]) -> None:
    for beginning in beginnings:
        matching = [p for name, p in model.named_parameters() if name.startswith(beginning)]
        if not matching:
            children = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
            raise ValueError(f"frozen: no parameter begins with {beginning!r}. The student's parts are {children}.")
        for parameter in matching:
            parameter.requires_grad_(False)
    if beginnings and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"frozen: {beginnings} are all of the student's parts, and nothing would learn. Leave one out."
        )
