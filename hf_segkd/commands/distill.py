"""`hf-segkd distill`: trains a student on labels and a teacher. Its flags are those of `train`, with `--teacher`."""

from hf_segkd.commands.train import main

__all__ = ["main"]
