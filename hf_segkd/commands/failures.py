"""How a command fails: a message for what the user can mend, a traceback for what only we can."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

TRACEBACK = "HF_SEGKD_TRACEBACK"


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Inside, an error that this package raises on purpose, or the system (files, network), ends as a message.

    The exit code is 1; that of wrong flags is 2, argparse's. Anything else is a defect and keeps its traceback, and
    `HF_SEGKD_TRACEBACK=1` shows that of every error.

    Raises:
        SystemExit: In place of such an error.
    """
    try:
        yield
    except (ValueError, FloatingPointError, OSError) as error:
        meant = isinstance(error, OSError) or _raised_here(error.__traceback__)
        if not meant or os.environ.get(TRACEBACK, "0") != "0":
            raise
        print(f"error: {error}\n({TRACEBACK}=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(1) from error


def _raised_here(trace: TracebackType | None) -> bool:
    *_, (frame, _) = traceback.walk_tb(trace)
    return frame.f_globals.get("__name__", "").startswith("hf_segkd.")
