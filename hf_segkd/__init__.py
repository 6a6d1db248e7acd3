"""Knowledge distillation of semantic segmentation networks, Hugging Face style.

Importing the package is cheap: names are looked up when they are first used, and the Auto classes of transformers
learn of our networks the moment transformers loads them.
"""

import importlib
import warnings

from hf_segkd import auto

__version__ = "0.1.0"

_HOME = {
    "DeepLabV3PlusConfig": "hf_segkd.models",
    "DeepLabV3PlusForSemanticSegmentation": "hf_segkd.models",
    "DistillationArguments": "hf_segkd.training.arguments",
    "DistillationTrainer": "hf_segkd.training.trainer",
    "FeatureNetwork": "hf_segkd.networks",
    "HRNetConfig": "hf_segkd.models",
    "HRNetForSemanticSegmentation": "hf_segkd.models",
    "ISANetConfig": "hf_segkd.models",
    "ISANetForSemanticSegmentation": "hf_segkd.models",
    "LogitsNetwork": "hf_segkd.networks",
    "MeanIoU": "hf_segkd.evaluation.metrics",
    "PSPNetConfig": "hf_segkd.models",
    "PSPNetForSemanticSegmentation": "hf_segkd.models",
    "load_segmentation_dataset": "hf_segkd.data",
    "load_unlabelled_images": "hf_segkd.data",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name == "ForeignNetwork":
        warnings.warn("hf_segkd.ForeignNetwork is now called FeatureNetwork.", DeprecationWarning, stacklevel=2)
        name = "FeatureNetwork"
    if name not in _HOME:
        raise AttributeError(f"module 'hf_segkd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


auto.register_when_transformers_loads()
