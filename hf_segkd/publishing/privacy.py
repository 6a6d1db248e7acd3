"""`public`, `shareable`: remove from settings what identifies a machine or an account before they are published."""

from __future__ import annotations

import json
import math
import re
from pathlib import PureWindowsPath
from typing import Any

from hf_segkd.evaluation.argument_roles import ROLES, OnCard

# Names of settings that may identify a machine or an account, where they are no training arguments of a known role.
SECRET_NAMES = re.compile(r"token|secret|password")
PRIVATE_NAMES = re.compile(rf"{SECRET_NAMES.pattern}|_dir$")
# An absolute path or an access token in a value of any name (as JSON, which doubles a backslash).
PRIVATE_VALUES = re.compile(r"(?<![\w.])[~/]|\b[A-Za-z]:\\|\\{4}|\bhf_\w{8,}")


def public(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that identify a machine or an account."""
    return {name: value for name, value in values.items() if not (is_private(name) or _tells_of_machine(value))}


def is_private(name: str) -> bool:
    """Whether a setting of this name identifies a machine or an account; an unknown one is judged by its name."""
    role = ROLES.get(name)
    return PRIVATE_NAMES.search(name) is not None if role is None else role.on_card is OnCard.PRIVATE


def shareable(value: Any) -> Any:
    """JSON-like state of the same structure, in which paths on this machine keep only their last part.

    Secrets become None, as do numbers that JSON does not have: NaN and infinity.
    """
    if isinstance(value, dict):
        return {
            name: None if SECRET_NAMES.search(name) and is_private(name) else shareable(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [shareable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and _tells_of_machine(value):
        last = last_part(value)
        return None if _tells_of_machine(last) else last
    return value


def _tells_of_machine(value: Any) -> bool:
    return PRIVATE_VALUES.search(json.dumps(value, ensure_ascii=False)) is not None


def last_part(name: str) -> str:
    """Last part of a path of any system, or of a Hub id."""
    return PureWindowsPath(name).name
