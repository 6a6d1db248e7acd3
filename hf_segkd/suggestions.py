"""`did_you_mean`: suggests the known word that is most like an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence, to follow another, that names the known word most like a wrong one; empty where none is similar."""
    by_key = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), by_key, n=1)
    return f" Did you mean {by_key[match[0]]!r}?" if match else ""
