"""Loading a trained network with its image processor, checked."""

from __future__ import annotations

import os
import pickle
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


def load_network(path: str, labels: LabelInfo | None = None, *, pickled: bool = False) -> tuple[PreTrainedModel, Any]:
    """A network and its image processor from a folder or the Hub, in evaluation mode.

    MaskFormer, Mask2Former, OneFormer and EoMT are loaded too, as teachers: their output is masks with classes.
    No code of a repository is run, neither that of its .py files nor that of a pickle.

    Args:
        path: Folder or Hub id.
        labels: Classes the network must have.
        pickled: Take the weights from pytorch_model.bin, by PyTorch's reader that lets only tensors through, where
            False (default) takes them from safetensors files alone.

    Raises:
        ValueError: If there is no such network, it needs code or a pickle of its repository, a weight is missing or
            left over, or the labels are others.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        masks = config.model_type in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
        auto_class = AutoModelForUniversalSegmentation if masks else AutoModelForSemanticSegmentation
        model, info = auto_class.from_pretrained(
            path, output_loading_info=True, use_safetensors=not pickled, weights_only=True, trust_remote_code=False
        )
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except OSError as error:
        reason = str(error).splitlines()[0]
        if "safetensors" in reason:
            raise ValueError(
                f"{path!r} has no weights in safetensors files: {reason} Pickles (pytorch_model.bin) can hold code "
                "and are not loaded. Turn them into safetensors with: hf-segkd convert_checkpoint --source "
                f"transformers --checkpoint {path} --output FOLDER"
            ) from error
        if os.environ.get("HF_HUB_OFFLINE"):
            reason += " HF_HUB_OFFLINE is set: unset it to download."
        raise ValueError(
            f"{path!r} is neither a folder with a saved network and its image processor, nor one on the Hub that can "
            f"be reached: {reason}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The pickle of {path!r} holds more than tensors, which could be code, so it is not loaded: ask its author "
            "for safetensors."
        ) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{path!r} needs Python code of its own repository, which hf_segkd does not run. If you have read and "
            "trust it, load the network in Python with from_pretrained(..., trust_remote_code=True) and pass it to "
            "DistillationTrainer."
        ) from error
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        raise ValueError(f"The weights in {path!r} do not fit its config.json: {wrong}. It was not saved completely.")
    if labels is not None:
        check_labels(model, labels)
    return model.eval(), processor
