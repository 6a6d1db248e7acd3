"""`save_student` writes the files of a trained student, `load_checkpoint` reads those of a checkpoint."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_segkd.evaluation.reports import ARGUMENTS_FILE, write_json
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.ema import StudentAverage

# The loss's own weights and statistics, beside the student in a checkpoint; only resuming reads them.
LOSS_STATE_FILE = "distillation.safetensors"


def save_student(
    folder: Path, distiller: Distiller, average: StudentAverage | None, processor: Any, args: DistillationArguments
) -> None:
    """Write a plain student that `from_pretrained` loads; a checkpoint also gets what resuming needs.

    Args:
        folder: Folder to write to; its name says whether it is a checkpoint's.
        distiller: The student and the loss.
        average: The average of the student's weights: what the student has, unless the folder is a checkpoint's.
        processor: The student's image processor.
        args: Arguments of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
    with contextlib.nullcontext() if is_checkpoint or average is None else average.in_student():
        distiller.student.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    # JSON, because Trainer would write a pickle; NaN and infinity as words, which JSON does not have.
    write_json(json.loads(args.to_json_string(), parse_constant=str), folder / ARGUMENTS_FILE)
    if is_checkpoint and average is not None:
        average.save(folder)
    if is_checkpoint and distiller.loss is not None:
        state = {name: value.contiguous() for name, value in distiller.loss.state_dict().items()}
        save_file(state, folder / LOSS_STATE_FILE)


def load_checkpoint(folder: Path, distiller: Distiller, average: StudentAverage | None) -> None:
    """Give the student, the loss and the average the state that `save_student` wrote into a checkpoint."""
    saved = type(distiller.student).from_pretrained(folder, use_safetensors=True)
    distiller.student.load_state_dict(saved.state_dict())
    if average is not None:
        average.load(folder)
    if distiller.loss is not None:
        distiller.loss.load_state_dict(load_file(folder / LOSS_STATE_FILE))
