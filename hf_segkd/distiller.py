"""The module that the Trainer trains: the student and the loss, side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.types import Features, NetworkSpec


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
    _keys_to_ignore_on_save = None

    def __init__(
        self, student: PreTrainedModel, loss: AbstractDistillationLoss | None = None, ce_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        self.ce_weight = ce_weight

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, teacher_features: Features | None = None
    ) -> dict[str, Any]:
        """Loss and its terms in training, logits in evaluation.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            labels: Class of each pixel, (b, hh, ww). Without labels no loss is computed.
            teacher_features: The teacher's taps for the same images. Without them there are no distillation terms.

        Returns:
            `{"logits"}` without labels, else `{"loss", "terms"}`: the sum to minimise and each of its summands.
        """
        if labels is None:
            return {"logits": self.student(pixel_values=pixel_values).logits}
        if self.loss is None:
            cross_entropy = self.student(pixel_values=pixel_values, labels=labels).loss
            terms = {"ce": self.ce_weight * cross_entropy}
        else:
            output = self.student(pixel_values=pixel_values, labels=labels, output_features=True)
            features = output.features
            if self.loss.uses_classifier_weight:
                features = {**features, "classifier_weight": self.student.classifier.weight}
            terms = {"ce": self.ce_weight * output.loss, **self.loss(features, teacher_features, labels)}
        return {"loss": sum(terms.values()), "terms": {name: value.detach() for name, value in terms.items()}}

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
            f"{type(model).__name__} has no `tap_channels`, so its features can't be distilled. Teacher and student "
            "must be networks of hf_segkd, such as DeepLabV3PlusForSemanticSegmentation."
        )
    return NetworkSpec(channels, model.config.num_labels, model.config.semantic_loss_ignore_index)
