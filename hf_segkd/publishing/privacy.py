"""What settings tell of a machine or an account, and how to leave it out of what is published."""

from __future__ import annotations

import json
import re
from pathlib import PureWindowsPath
from typing import Any

# Settings that tell of a machine or an account and not of the training: by name, and by an absolute path or an access
# token in their value (as JSON, where a backslash is two).
SECRET_NAMES = re.compile(r"token|secret|password")
PRIVATE_NAMES = re.compile(rf"{SECRET_NAMES.pattern}|_dir$|^hub_|^push_to_hub|^trackio|^run_name$|^resume_from")
PRIVATE_VALUES = re.compile(r"(?<![\w.])[~/]|\b[A-Za-z]:\\|\\{4}|\bhf_\w{8,}")


def public(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that tell of a machine or an account."""
    return {
        name: value for name, value in values.items() if not (PRIVATE_NAMES.search(name) or _tells_of_machine(value))
    }


def shareable(value: Any) -> Any:
    """JSON-like state with everything in its place: of paths on this machine the last part, of secrets nothing."""
    if isinstance(value, dict):
        return {name: None if SECRET_NAMES.search(name) else shareable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shareable(part) for part in value]
    if isinstance(value, str) and _tells_of_machine(value):
        last = last_part(value)
        return None if _tells_of_machine(last) else last
    return value


def _tells_of_machine(value: Any) -> bool:
    return PRIVATE_VALUES.search(json.dumps(value, ensure_ascii=False)) is not None


def last_part(name: str) -> str:
    """Last part of a path of any system, or of a Hub id."""
    return PureWindowsPath(name).name
