"""`distill`: train a student on labels and a teacher. It takes the flags of `train`, of which `--teacher` is one."""

from hf_segkd.commands.train import main

__all__ = ["main"]
