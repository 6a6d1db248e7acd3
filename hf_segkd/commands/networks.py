"""Loading a trained network with its image processor, checked."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from hf_segkd.data import LabelInfo
from hf_segkd.inputs import check_labels


def load_network(path: str, labels: LabelInfo | None = None) -> tuple[PreTrainedModel, Any]:
    """A network and its image processor from a folder or the Hub, in evaluation mode.

    MaskFormer, Mask2Former, OneFormer and EoMT are loaded too, as teachers: their output is masks with classes.

    Args:
        path: Folder or Hub id.
        labels: Classes the network must have.

    Raises:
        ValueError: If there is no such network, a weight is missing or left over, or the labels are others.
    """
    try:
        masks = AutoConfig.from_pretrained(path).model_type in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
        auto_class = AutoModelForUniversalSegmentation if masks else AutoModelForSemanticSegmentation
        model, info = auto_class.from_pretrained(path, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path!r} is neither a folder with a saved network and its image processor, nor one on the Hub that can "
            f"be reached: {reason}"
        ) from error
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        raise ValueError(f"The weights in {path!r} do not fit its config.json: {wrong}. It was not saved completely.")
    if labels is not None:
        check_labels(model, labels)
    return model.eval(), processor
