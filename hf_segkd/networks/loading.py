"""`load_network`: loads a trained network with its image processor and checks both; `make_student` makes a student."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from hf_segkd.data import LabelInfo, class_names
from hf_segkd.models.configuration_base import SegKDConfig
from hf_segkd.networks import FeatureNetwork, predicts_masks
from hf_segkd.networks.class_names import adopt_names, are_default_names, check_labels
from hf_segkd.networks.feature_paths import described
from hf_segkd.networks.outputs import check_several_classes
from hf_segkd.suggestions import did_you_mean

logger = logging.get_logger(__name__)


def load_config(path: str) -> tuple[PreTrainedConfig, type]:
    """The config of a network in a folder or on the Hub, and the Auto class that makes the network."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return config, AutoModelForUniversalSegmentation if predicts_masks(config) else AutoModelForSemanticSegmentation


def load_model(path: str, *, pickled: bool = False, dtype: str = "auto") -> tuple[PreTrainedModel, dict[str, Any]]:
    """A network without its image processor, and how its weights fitted; see `load_network`."""
    _, auto_class = load_config(path)
    return auto_class.from_pretrained(
        path,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below with their names, which transformers' own error lacks
        use_safetensors=not pickled,
        dtype=dtype,
        weights_only=True,
        trust_remote_code=False,
    )


@contextlib.contextmanager
def explained(path: str, pickled: bool = False) -> Iterator[None]:
    """Inside, errors while a network is loaded from `path` become a ValueError that says what to do."""
    try:
        _tell_of_mistyped_folder(Path(path))
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        if not pickled and re.search(r"no file named \S*safetensors", reason):
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
            raise ValueError(f"{path!r} can't be loaded: {str(error).splitlines()[0]}") from error
        raise ValueError(
            f"{path!r} needs Python code of its own repository, which hf_segkd does not run. If you have read and "
            "trust it, load the network in Python with from_pretrained(..., trust_remote_code=True) and pass it to "
            "DistillationTrainer."
        ) from error
    except ImportError as error:
        if "scipy" not in str(error):
            raise
        raise ValueError(
            f"{path!r} predicts masks and their classes, and transformers builds such a model with its training loss, "
            "which needs scipy: pip install scipy"
        ) from error


def _tell_of_mistyped_folder(folder: Path) -> None:
    """Log that a network is looked for on the Hub because its folder does not exist."""
    if not folder.exists() and len(folder.parts) == 2 and folder.parent.is_dir():
        hint = did_you_mean(str(folder), [str(sibling) for sibling in folder.parent.iterdir()])
        logger.warning(f"There is no folder {folder}: it is looked for on the Hub, which may take a while.{hint}")


def load_network(
    path: str, labels: LabelInfo | None = None, *, pickled: bool = False, dtype: str = "float32"
) -> tuple[PreTrainedModel, Any]:
    """A network and its image processor from a folder or the Hub, in evaluation mode.

    MaskFormer, Mask2Former, OneFormer and EoMT are loaded too, as teachers: their output is masks with classes.
    No code of a repository is run, neither that of its .py files nor that of a pickle. The processor shows whole
    images: one that keeps only the centre is set not to.

    Args:
        path: Folder or Hub id.
        labels: Classes the network must have.
        pickled: Take the weights from pytorch_model.bin, by PyTorch's reader that lets only tensors through, where
            False (default) takes them only from safetensors files.
        dtype: Number format of the weights; "auto" is the one they are saved in. Images are float32.

    Raises:
        ValueError: If there is no such network, it needs code or a pickle of its repository, a weight is missing, left
            over or of another shape, it has one class, or the labels differ.
    """
    with explained(path, pickled):
        model, info = load_model(path, pickled=pickled, dtype=dtype)
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, info[kind])) for kind in kinds if info[kind]}
    if wrong:
        raise ValueError(f"The weights in {path!r} do not fit its config.json: {wrong}. It was not saved completely.")
    check_several_classes(model.config)
    if labels is not None:
        check_labels(model, labels)
    if getattr(processor, "do_center_crop", False):  # MobileViT's on the Hub do
        logger.warning(f"{path}: the image processor cuts off all but the centre; that is switched off.")
        processor.do_center_crop = False
    return model.eval(), processor


def load_teacher(teacher: Any, processor: Any = None) -> tuple[Any, Any]:
    """A teacher and its image processor: any network as it is, a folder or Hub id loaded; see `load_network`."""
    if not isinstance(teacher, str | os.PathLike):
        return teacher, processor
    network, its_own = load_network(str(teacher), dtype="auto")
    return network, its_own if processor is None else processor


def make_student(student: Any, labels: LabelInfo | None, processor: Any = None) -> tuple[Any, Any]:
    """A student and its image processor, from a network, a folder or Hub id, or the config of a new one.

    Args:
        student: The student that the user gives. A config without class names of its own gets those of the data, and
            so does a network with as many classes.
        labels: Labels of the data; None where they are not known.
        processor: The image processor that the user gives. The default is the one that was saved with the student, and
            for a config one with ImageNet's mean and std that does not resize.

    Raises:
        ValueError: If a network can't be loaded, no network that gives logits for each pixel has such a config, it has
            one class, or it is of another library.
    """
    if isinstance(student, str | os.PathLike):
        student, its_own = load_network(str(student))
        processor = its_own if processor is None else processor
    elif isinstance(student, PreTrainedConfig):
        config = copy.deepcopy(student)
        unnamed = are_default_names(class_names(config.id2label))
        if labels is not None and unnamed and config.num_labels in (type(config)().num_labels, labels.num_labels):
            config.num_labels = labels.num_labels
        student = network_from_config(config)
        if processor is None:
            processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=False)
    if not isinstance(student, PreTrainedModel | FeatureNetwork):
        what = f"the class {student.__name__}" if isinstance(student, type) else described(student)
        raise ValueError(
            f"The student is {what}, and must be a segmentation network of hf_segkd or transformers, or the folder, "
            "Hub id or config of one: it is saved by save_pretrained and loaded by from_pretrained. A network of "
            "another library can be the teacher."
        )
    check_several_classes(student.config)
    if labels is not None:
        adopt_names(student.config, labels)
    return student, processor


def network_from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A new network of this config.

    Raises:
        ValueError: If none that gives logits for each pixel has such a config.
    """
    if type(config) not in AutoModelForSemanticSegmentation._model_mapping:
        raise ValueError(
            f"There is no student of model_type {config.model_type!r}: AutoModelForSemanticSegmentation, whose models "
            "give logits for each pixel, does not know it."
        )
    return AutoModelForSemanticSegmentation.from_config(config)


def build_config(values: dict[str, Any], flag: str, **given: Any) -> PreTrainedConfig:
    """The configuration of a new network, from the JSON object of a flag.

    Args:
        values: Its fields; `model_type` is DeepLabV3+ unless it is there.
        flag: Name of the flag, for messages.
        **given: Fields that the flag may not set, because they come from elsewhere.

    Raises:
        ValueError: If there is no such `model_type`, or it refuses a field.
    """
    values = dict(values)
    model_type = values.pop("model_type", "segkd-deeplabv3plus")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{flag}: transformers knows no model_type {model_type!r}.{did_you_mean(model_type, CONFIG_MAPPING)}"
        )
    if twice := sorted(values.keys() & given.keys()):
        raise ValueError(f"{flag} must not set {', '.join(twice)}: that comes from the data set.")
    try:
        config = AutoConfig.for_model(model_type, **given, **values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{flag}: {error}") from error
    # transformers' own would keep a misspelt field as it is, and take the default of the right one.
    own = type(config).extra_keywords if isinstance(config, SegKDConfig) else ()
    known = {*type(config)().to_dict(), *config.attribute_map, "num_labels", *own}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{flag}: {model_type} has no field {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    return config
