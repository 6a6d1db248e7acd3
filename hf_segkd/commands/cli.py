"""`hf-segkd COMMAND`: everything the scripts do, for those who installed the package and have no scripts."""

import importlib
import sys

from hf_segkd.commands.failures import plain_errors

# Command -> module of this folder, whose `main` the script of that name calls too.
COMMANDS = {
    "train": ("training", "train a network on labels"),
    "distill": ("training", "train a student on labels and a teacher"),
    "evaluate": ("evaluation", "score a network, class by class"),
    "predict": ("prediction", "draw what a network sees"),
    "publish": ("publishing", "put a network with its card on the Hub"),
    "export": ("exporting", "write a network as ONNX or torch.export file, checked"),
    "inspect_model": ("inspection", "list the maps of a network that methods can compare"),
    "convert_checkpoint": ("conversion", "take over a checkpoint of other code, or a pickle of transformers"),
}

USAGE = """usage: hf-segkd COMMAND [--flag value ...]

{commands}

hf-segkd COMMAND --help lists the flags. On several GPUs:
  accelerate launch --module hf_segkd.commands.cli COMMAND [--flag value ...]"""


def main(args: list[str] | None = None) -> None:
    """Run the command that the first argument names."""
    args = sys.argv[1:] if args is None else args
    usage = USAGE.format(commands="\n".join(f"  {name:20}{text}" for name, (_, text) in COMMANDS.items()))
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0 if args else 2)
    if args[0] not in COMMANDS:
        print(f"hf-segkd: unknown command {args[0]!r}\n\n{usage}", file=sys.stderr)
        raise SystemExit(2)
    # Imported only now: --help should not wait for torch.
    module = importlib.import_module(f"hf_segkd.commands.{COMMANDS[args[0]][0]}")
    sys.argv[0] = f"hf-segkd {args[0]}"  # what argparse calls the program
    with plain_errors():
        module.main(args[1:])


if __name__ == "__main__":
    main()
