"""`check_labels`: checks that a network has the classes of a data set; `config_values`: the entries of its config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_segkd.data import LabelInfo, class_names
from hf_segkd.data.labels import IGNORE_INDEX


def check_labels(model: PreTrainedModel, labels: LabelInfo) -> None:
    """Make sure that a network and a data set have the same classes in the same order.

    Names are the same whatever their case, and with spaces, underscores or hyphens between words.

    Raises:
        ValueError: If they differ in number, names or order, or the network does not ignore the data set's label for
            pixels without a class.
    """
    names, known = class_names(labels.id2label), label_names(model)
    if model.config.num_labels != len(names):
        raise ValueError(
            f"The network has {model.config.num_labels} labels, the data set {labels.name} {len(names)}: the network "
            "was made for another label set. To train it on this one, save it with a new classifier: "
            "from_pretrained(..., id2label=..., label2id=..., ignore_mismatched_sizes=True)."
        )
    theirs, ours = [name_key(name) for name in names], [name_key(name) for name in known]
    if known and ours != theirs:
        if sorted(ours) == sorted(theirs):
            raise ValueError(f"The network has the data set's labels in another order: {known}, not {names}.")
        raise ValueError(
            f"The network calls its classes {known}, the data set {labels.name} {names}. If they are the same under "
            "other names, save the network with the data set's: from_pretrained(..., id2label=..., label2id=...); if "
            "not, with a new classifier too: ignore_mismatched_sizes=True."
        )
    ignored = getattr(model.config, "semantic_loss_ignore_index", None)
    if labels.ignore_index > IGNORE_INDEX and ignored != labels.ignore_index:
        raise ValueError(
            f"With {len(names)} classes pixels without a class have the label {labels.ignore_index}, and the network "
            f"leaves out {ignored}, a class. Set semantic_loss_ignore_index in its config to {labels.ignore_index}."
        )


def adopt_names(config: PreTrainedConfig, labels: LabelInfo) -> None:
    """Give a network without names of its own (LABEL_0 ...), and with as many classes, the names of the data set."""
    if config.num_labels == labels.num_labels and are_default_names(class_names(config.id2label)):
        config.id2label = dict(labels.id2label)
        config.label2id = {name: index for index, name in labels.id2label.items()}


def name_key(name: str) -> str:
    """What two spellings of a class name have in common."""
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def label_names(model: PreTrainedModel) -> list[str]:
    """Label names in order; empty where they are only the defaults LABEL_0, LABEL_1 ..."""
    names = class_names(model.config.id2label)
    return [] if are_default_names(names) else names


def are_default_names(names: list[str]) -> bool:
    """Whether the classes are called LABEL_0, LABEL_1 ..., as transformers calls those without names."""
    return names == [f"LABEL_{index}" for index in range(len(names))]


# Entries that do not change what a network computes.
NOT_OF_THE_NETWORK = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache")
# Entries that name its classes, for callers that compare classes in another way.
CLASS_NAMES = ("id2label", "label2id")


def config_values(config: dict[str, Any], without: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """Path -> value of the entries of a configuration, and of those within it, that change what a network computes.

    Args:
        config: The content of config.json.
        without: Names of more entries to leave out.
        prefix: Prefix of the paths.
    """
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            found |= config_values(value, without, f"{prefix}{name}.")
        elif name not in (*NOT_OF_THE_NETWORK, *without):
            found[prefix + name] = value
    return found
