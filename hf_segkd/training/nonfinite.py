"""`NonFiniteGuard`: stops a run at the first NaN or infinity, before the optimizer writes it into the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_segkd.networks.teacher import batch_statistics
from hf_segkd.training.distiller import Distiller
from hf_segkd.types import Features


@dataclass
class _Batch:
    tensors: dict[str, Tensor]
    files: list[str]
    terms: dict[str, Tensor]

    def not_finite(self) -> list[str]:
        return [name for name, value in self.terms.items() if not value.isfinite()]


class NonFiniteGuard:
    """Checks the terms of a step's batches and their gradient, once, between backward and the optimizer's step.

    So the device is waited for once per optimizer step (`Trainer`'s own `logging_nan_inf_filter` waits with every
    batch), the weights are still those before the step, and all processes stop together.

    Args:
        distiller: The student and the loss.
        accelerator: The trainer's accelerator. With fp16's gradient scaler gradients are not checked: the scaler finds
            infinite ones itself, skips that step and scales less.
        teacher_features: Images -> the teacher's features, to find where a NaN comes from; not called without a loss.
    """

    def __init__(
        self, distiller: Distiller, accelerator: Accelerator, teacher_features: Callable[[Tensor], Features]
    ) -> None:
        self.distiller = distiller
        self.accelerator = accelerator
        self.teacher_features = teacher_features
        self.batches: list[_Batch] = []  # of the current step; the data loader holds them as long

    def reset(self) -> None:
        """Drop what a step that was interrupted left."""
        self.batches = []

    def remember(self, inputs: dict[str, Any], files: list[str], terms: dict[str, Tensor]) -> None:
        """Keep a batch, the names of its images (empty when not known) and its unweighted terms until `check`."""
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        self.batches.append(_Batch(tensors, files, terms))

    def check(self, step: int, output_dir: str) -> None:
        """Forget the batches if all is finite; otherwise save those it came from, and stop.

        Call it after the backward pass of an optimizer step's last batch, before gradients are clipped.

        Args:
            step: The optimizer step, counted from 1.
            output_dir: Where the folder `nonfinite-step-N` goes; that of process R of several ends in `-process-R`.

        Raises:
            FloatingPointError: On every process, if a term of any process or the gradient is not finite.
        """
        batches, self.batches = self.batches, []
        terms = torch.stack([value.float() for batch in batches for value in batch.terms.values()])
        wrong_terms = ~terms.isfinite().all()
        wrong_gradient = torch.zeros_like(wrong_terms)
        if self.accelerator.scaler is None:
            gradients = [value.grad for value in self.distiller.parameters() if value.grad is not None]
            grad_norm = nn.utils.get_total_norm(gradients)
            wrong_gradient = ~grad_norm.isfinite()
        # Sums over processes: none may go on and wait for one that has stopped.
        wrong = self.accelerator.reduce(torch.stack([wrong_terms, wrong_gradient]).float(), reduction="sum")
        if not wrong.any():
            return
        if not wrong[0]:
            what = f"the gradient is not finite (its norm is {float(grad_norm)}), though all terms are"
            why = (
                "A derivative overflowed, such as that of a root or a quotient at 0. A smaller learning rate, "
                "max_grad_norm or fp32 instead of bf16 may help"
            )
        elif guilty := [batch for batch in batches if batch.not_finite()]:
            values = {name: guilty[0].terms[name].item() for name in guilty[0].not_finite()}
            what = ", ".join(f"the term {name} is {value}" for name, value in values.items())
            why, batches = self._cause(guilty[0]), guilty[:1]
        else:
            raise FloatingPointError(f"Step {step}: a term is not finite on another process, which says what and why.")
        raise FloatingPointError(
            f"Step {step}: {what}. {why}. The weights are still those before this step. "
            f"{self._save(batches, what, why, step, Path(output_dir))}"
        )

    def _cause(self, batch: _Batch) -> str:
        """The first value on the way to the terms that is not finite, found without changing any statistics."""
        images, student = batch.tensors["pixel_values"], self.distiller.student
        if wrong := [index for index, image in enumerate(images) if not image.isfinite().all()]:
            names = [batch.files[index] if batch.files else f"image {index} of the batch" for index in wrong]
            return f"The input is not finite: {', '.join(names)}. Look at these files and at their normalisation"
        if wrong := _not_finite(self.distiller.named_parameters()):
            return f"The weights are not finite: {_some(wrong)}. They overflowed in an earlier step, or came so"
        with torch.no_grad(), self.accelerator.autocast():
            taught = {} if self.distiller.loss is None else self.teacher_features(images)
            if wrong := _not_finite(taught.items()):
                return f"The teacher's features are not finite: {_some(wrong)}. Its weights do not fit these images"
            with batch_statistics(student):
                logits = student(pixel_values=images).logits
        if not logits.isfinite().all():
            return "The student's logits are not finite, its weights and the images are. A smaller learning rate helps"
        return "Images, weights, the teacher's features and the student's logits are finite: the term itself overflowed"

    def _save(self, batches: list[_Batch], what: str, why: str, step: int, output_dir: Path) -> str:
        several = self.accelerator.num_processes > 1
        process = f"-process-{self.accelerator.process_index}" if several else ""
        folder = output_dir / f"nonfinite-step-{step}{process}"
        names = set.intersection(*(set(batch.tensors) for batch in batches))
        report = {
            "step": step,
            "what": what,
            "why": why,
            "files": [file for batch in batches for file in batch.files],
            "weights": self.distiller.weights,
            # One for each of the accumulated batches that are saved. JSON has no NaN.
            "terms": [{name: str(value.item()) for name, value in batch.terms.items()} for batch in batches],
        }
        files = ", ".join(report["files"]) or "not known (the data set gives no image_ids)"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: torch.cat([batch.tensors[name] for batch in batches]).cpu() for name in names}
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "batch.safetensors")
            (folder / "report.json").write_text(json.dumps(report, indent=2))
        except (OSError, RuntimeError, SafetensorError) as error:  # images of several sizes make no one tensor
            return f"Its images: {files}. They could not be saved in {folder}: {error}"
        return (
            f"Its images: {files}. The batch is in {folder}; look at it with "
            f'`safetensors.torch.load_file("{folder / "batch.safetensors"}")`, and at report.json.'
        )


def require_finite_scores(metrics: dict[str, float]) -> None:
    """Refuse the scores of an evaluation whose loss is not finite: its masks would be those of NaN logits.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
    """
    for name, value in metrics.items():
        if name.endswith("_loss") and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value}: the network's logits, or the images, are not finite, so its scores mean nothing. "
                "Its batch norms may have seen extreme images, or its weights may come from a broken run."
            )


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, value in named if not value.isfinite().all()]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
