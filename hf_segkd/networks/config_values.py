"""What a configuration says of what a network computes: `config_values`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Entries that do not change what a network computes.
NOT_OF_THE_NETWORK = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache")
# Entries that name its classes, for those who compare them otherwise.
CLASS_NAMES = ("id2label", "label2id")


def config_values(config: dict[str, Any], without: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    """Path -> value of what makes up a network, in a configuration and in the configurations within it.

    Args:
        config: As config.json has it.
        without: Names of more entries to leave out.
        prefix: Of the paths.
    """
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            found |= config_values(value, without, f"{prefix}{name}.")
        elif name not in (*NOT_OF_THE_NETWORK, *without):
            found[prefix + name] = value
    return found
