"""How a command ends early: a message for what the user can mend, a traceback for what only we can."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator

TRACEBACK = "HF_SEGKD_TRACEBACK"
# Modules of transformers that make what flags name (--report_to, --lr_scheduler_kwargs, --optim): whatever they raise
# is about these flags.
OF_FLAGS = ("transformers.integrations.", "transformers.optimization", "transformers.trainer_optimizer")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Inside, an error that this package raises on purpose, or the system (files, network), ends as a message.

    The exit code is 1; that of wrong flags is 2, argparse's. Anything else is a defect and keeps its traceback, and
    `HF_SEGKD_TRACEBACK=1` shows that of every error. Ctrl-C and a reader of the output who leaves (`| head`) end a
    command as they end other programs: without a traceback, with 130 and 141. Messages begin a new line, since a
    progress bar may stand on the last one.

    Raises:
        SystemExit: In place of such an error.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush would fail again
        raise SystemExit(141) from None  # 128 + SIGPIPE, which Windows has not
    except Exception as error:
        if not _is_meant(error) or os.environ.get(TRACEBACK, "0") != "0":
            raise
        print(f"\nerror: {error}\n({TRACEBACK}=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(1) from error


def _is_meant(error: Exception) -> bool:
    """Whether an error says what its user can mend."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "")
    ours = isinstance(error, (ValueError, FloatingPointError, ImportError)) and module.startswith("hf_segkd.")
    return ours or isinstance(error, OSError) or module.startswith(OF_FLAGS)
