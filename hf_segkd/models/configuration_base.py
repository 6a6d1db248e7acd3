"""The base of all configurations here, for which a misspelt keyword is an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keywords that are no dataclass fields but that PreTrainedConfig, a Hub repository's config.json, or Trainer
# (`use_cache`) may legitimately bring. Names with a leading underscore are internal and pass as well.
GENERIC_KEYWORDS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "quantization_config",
        "torch_dtype",
        "transformers_weights",
        "use_cache",
    }
)


class SegKDConfig(PreTrainedConfig):
    """A `PreTrainedConfig` that refuses keywords it does not know.

    The base class stores them silently as attributes, so that `DeepLabV3PlusConfig(outputstride=8)` would build
    a network of output stride 16. A config.json is read leniently instead, since another version of a library
    may have written it: what is not known there is left out with a warning.
    """

    # Keywords that `__post_init__` of a subclass consumes without their being fields.
    extra_keywords = ()

    def __post_init__(self, **kwargs: Any) -> None:
        for name in unknown_keywords(type(self), kwargs):
            known = known_fields(type(self))
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(
                f"{type(self).__name__} got an unknown keyword argument {name!r}; the nearest one it knows is "
                f"{nearest!r}. All of them: {', '.join(known)}."
            )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> SegKDConfig:
        """Builds the configuration from the contents of a config.json; unknown entries are left out, warned of.

        Raises:
            ValueError: If it is the config.json of another kind of network, whose weights would not fit either.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"The configuration is one of {model_type!r}, but {cls.__name__} is that of {cls.model_type!r}: load "
                "it with the class of its own type, or with AutoConfig and AutoModelForSemanticSegmentation."
            )
        unknown = unknown_keywords(cls, config_dict)
        if unknown:
            logger.warning(
                f"{cls.__name__} does not know the entries {unknown} of the configuration; they are left out."
            )
        left_out = set(unknown)
        if cls._auto_class is None:  # this is not the code of the folder or repository, so saving won't take it along
            left_out.add("auto_map")
        return super().from_dict({k: v for k, v in config_dict.items() if k not in left_out}, **kwargs)


def known_fields(config_class: type[SegKDConfig]) -> list[str]:
    """Every keyword that `config_class(...)` documents or inherits, in alphabetical order."""
    return sorted({field.name for field in fields(config_class)} | set(config_class.extra_keywords) | {"num_labels"})


def unknown_keywords(config_class: type[SegKDConfig], keywords: Iterable[str]) -> list[str]:
    """Those of `keywords` that mean nothing to `config_class`."""
    known = GENERIC_KEYWORDS.union(known_fields(config_class))
    return [name for name in keywords if name not in known and not name.startswith("_")]
