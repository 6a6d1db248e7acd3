"""`main`: runs `hf-segkd COMMAND`, and ends it with a message where the user can correct the mistake."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator

import hf_segkd
from hf_segkd.suggestions import did_you_mean

TRACEBACK = "HF_SEGKD_TRACEBACK"
# Modules of transformers that make what flags name (--report_to, --lr_scheduler_kwargs, --optim): whatever they raise
# is about these flags.
OF_FLAGS = ("transformers.integrations.", "transformers.optimization", "transformers.trainer_optimizer")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Inside, an error that this package raises on purpose, or that the system raises (files, network), is a message.

    The exit code is 1; that of wrong flags is 2, argparse's. Anything else is a defect and keeps its traceback, and
    `HF_SEGKD_TRACEBACK=1` shows that of every error. Ctrl-C and a closed output (`| head`) end a command as they end
    other programs: without a traceback, with 130 and 141. Messages begin a new line, because a progress bar may stand
    on the last one.

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
        raise SystemExit(141) from None  # 128 + SIGPIPE, which Windows lacks
    except Exception as error:
        if not _is_meant(error) or os.environ.get(TRACEBACK, "0") != "0":
            raise
        print(f"\nerror: {error}\n({TRACEBACK}=1 shows where it was raised.)", file=sys.stderr)
        raise SystemExit(1) from error


def _is_meant(error: Exception) -> bool:
    """Whether an error is one that the user can correct."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "")
    ours = isinstance(error, (ValueError, FloatingPointError, ImportError)) and module.startswith("hf_segkd.")
    return ours or isinstance(error, OSError) or module.startswith(OF_FLAGS)


# Command -> what it does. The module of its name in this folder has its `main`; the script of its name runs it too.
COMMANDS = {
    "train": "train a network on labels",
    "distill": "train a student on labels and a teacher",
    "compare": "train and score methods side by side under one protocol",
    "evaluate": "score a network, class by class",
    "predict": "draw what a network sees",
    "publish": "put a network with its card on the Hub",
    "export": "write a network as ONNX or torch.export file, checked",
    "draw_masks": "draw index masks from COCO JSON or labelme's files",
    "count_statistics": "count mean and std of each channel of the training images",
    "inspect_model": "list the maps of a network that methods can compare",
    "convert_checkpoint": "take over a checkpoint of other code, or a pickle of transformers",
}

USAGE = """usage: hf-segkd COMMAND [--flag value ...]

{commands}

hf-segkd COMMAND --help lists the flags, hf-segkd --version tells the version. On several GPUs:
  accelerate launch --module hf_segkd.commands.cli COMMAND [--flag value ...]"""


def main(args: list[str] | None = None) -> None:
    """Run the command that the first argument names."""
    args = sys.argv[1:] if args is None else args
    usage = USAGE.format(commands="\n".join(f"  {name:20}{text}" for name, text in COMMANDS.items()))
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0 if args else 2)
    if args[0] == "--version":
        print(f"hf-segkd {hf_segkd.__version__}")
        raise SystemExit(0)
    if args[0] not in COMMANDS:
        print(f"{usage}\n\nhf-segkd: unknown command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[0] = f"hf-segkd {args[0]}"  # what argparse calls the program
    run(args[0], args[1:])


def run(command: str, args: list[str] | None = None) -> None:
    """Run a command with its flags, by default the program's; mistakes end it with a message."""
    with plain_errors():
        # Imported only now, so that neither --help nor Ctrl-C waits for torch.
        importlib.import_module(f"hf_segkd.commands.{command}").main(args)


if __name__ == "__main__":
    main()
