"""`hf-segkd COMMAND`: everything the scripts do, for those who installed the package and have no scripts."""

from __future__ import annotations

import importlib
import sys

import hf_segkd
from hf_segkd.commands.failures import plain_errors
from hf_segkd.suggestions import did_you_mean

# Command -> what it does. The module of its name in this folder has its `main`, which the script of its name runs too.
COMMANDS = {
    "train": "train a network on labels",
    "distill": "train a student on labels and a teacher",
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
    """Run a command with its flags, by default those of the program; mistakes end it with a message."""
    with plain_errors():
        # Imported only now: neither --help nor Ctrl-C should have to wait for torch.
        importlib.import_module(f"hf_segkd.commands.{command}").main(args)


if __name__ == "__main__":
    main()
