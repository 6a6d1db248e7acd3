"""`hf-segkd distill`: trains a student on labels and a teacher. It takes the flags of `train`, which include `--teacher`."""

from hf_segkd.commands.train import main

__all__ = ["main"]
