"""`check_labels`: whether a network and a data set have the same classes in the same order."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.utils import logging

from hf_segkd.data import LabelInfo, class_names
from hf_segkd.data.labels import IGNORE_INDEX

logger = logging.get_logger(__name__)


def check_labels(model: PreTrainedModel, labels: LabelInfo) -> None:
    """Make sure that a network and a data set speak of the same classes in the same order.

    Raises:
        ValueError: If they differ in number, or have the same names in another order, or the network does not leave out
            the data set's label of no class. Other names are warned about.
    """
    names, known = class_names(labels.id2label), label_names(model)
    if model.config.num_labels != len(names):
        raise ValueError(
            f"The network has {model.config.num_labels} labels, the data set {labels.name} {len(names)}: the network "
            "was made for another label set. To train it on this one, save it with a new classifier: "
            "from_pretrained(..., id2label=..., label2id=..., ignore_mismatched_sizes=True)."
        )
    if known and known != names:
        if sorted(known) == sorted(names):
            raise ValueError(f"The network has the data set's labels in another order: {known}, not {names}.")
        logger.warning(f"The network calls its labels {known}, the data set {names}; they are paired by index.")
    ignored = getattr(model.config, "semantic_loss_ignore_index", None)
    if labels.ignore_index > IGNORE_INDEX and ignored != labels.ignore_index:
        raise ValueError(
            f"With {len(names)} classes pixels without a class have the label {labels.ignore_index}, and the network "
            f"leaves out {ignored}, a class. Set semantic_loss_ignore_index in its config to {labels.ignore_index}."
        )


def label_names(model: PreTrainedModel) -> list[str]:
    """Label names in order; empty where they are only the defaults LABEL_0, LABEL_1 ..."""
    names = class_names(model.config.id2label)
    return [] if are_default_names(names) else names


def are_default_names(names: list[str]) -> bool:
    """Whether the classes are called LABEL_0, LABEL_1 ..., as transformers calls those without names."""
    return names == [f"LABEL_{index}" for index in range(len(names))]
