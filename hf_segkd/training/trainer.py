"""`Trainer` that distils a segmentation network from a teacher, and evaluates it by a streaming mIoU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import logging

from hf_segkd.data import evaluation_collator, train_collator
from hf_segkd.evaluation.reports import ARGUMENTS_FILE
from hf_segkd.evaluation.streaming_scores import StreamingScores, loss_and_counts
from hf_segkd.losses.adversary import Adversary
from hf_segkd.networks import ForeignNetwork, with_taps, without_taps
from hf_segkd.networks.adapted_teacher import adapted
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.teacher_modes import in_own_dtype, ready_to_teach, takes_batch_statistics, taps_for
from hf_segkd.training.adversary_callback import AdversaryCallback
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.checkpointing_trainer import CheckpointingTrainer
from hf_segkd.training.connectors_first import ConnectorsFirst
from hf_segkd.training.constant_terms import ConstantTerms
from hf_segkd.training.distiller import Distiller, build_distiller
from hf_segkd.training.ema import StudentAverage
from hf_segkd.training.inputs import EpochOfAugmentation, augmented, refuse_need_of_labels, whole_images
from hf_segkd.training.nonfinite import NonFiniteGuard, require_finite_scores
from hf_segkd.training.parameter_groups import parameter_groups, require_all_parameters
from hf_segkd.training.preflight import Preflight
from hf_segkd.training.processes import refuse_what_can_not_work, synchronise_batch_norms, warn_if_alone
from hf_segkd.training.term_means import TermMeans
from hf_segkd.training.unreadable import unreadable_images
from hf_segkd.types import Features

logger = logging.get_logger(__name__)

# The loss's own weights and statistics, beside the student in a checkpoint; only resuming reads them.
LOSS_STATE_FILE = "distillation.safetensors"


class DistillationTrainer(CheckpointingTrainer):
    """Trains `model` on its labels and on what a frozen teacher knows.

    `trainer.student` is the network that is trained and saved: every checkpoint and `save_model` write a plain
    student that `from_pretrained` loads. The loss's own parameters train along and live beside it in checkpoints.
    With `args.push_to_hub` the student is published as `PublishingTrainer` says.

    Args:
        model: The student: a network of hf_segkd or a segmentation model of transformers that gives logits for each
            pixel; a `ForeignNetwork` of one names more taps.
        args: Training arguments; `args.method` names the loss, "none" trains without a teacher.
        teacher: The network to learn from. It is never trained, saved, or taken out of evaluation mode. A segmentation
            model of transformers offers its logits and default taps; a `ForeignNetwork` of it others too.
        train_dataset: A data set of `load_segmentation_dataset`, which is augmented as `args` says, or any torch
            data set of `pixel_values` (3, h, w) and `labels` (h, w), both of the crop's size. The trainer tells an
            `AugmentedDataset` the epoch; one that is wrapped in another data set you must tell yourself. Without
            labels the student learns from the teacher alone.
        unlabelled_dataset: Images without labels, of `load_unlabelled_images` or any data set with a column `image`,
            that come besides, `args.unlabelled_ratio` for each image of `train_dataset`; only the distillation terms
            see them.
        eval_dataset: As `train_dataset` without augmentation, or a dict of such; labels stay at their own resolution.
        processing_class: The image processor of the student: its size, mean and std are used in training and
            evaluation, and it is saved with the student.
        teacher_processor: The image processor of the teacher, where its mean, std, scale or order of colours are not
            the student's; the teacher then sees each crop as this one makes it. Its size is not used.
        class_map: Which class of the teacher teaches which of the student: a `ClassMap`, "names", "index" or a YAML
            file. By default by name where at least two names agree, else by index where the numbers agree.
        callbacks: As in `Trainer`.
        optimizers: As in `Trainer`.

    Raises:
        ValueError: If teacher and method don't go together, teacher and student are one object, their classes are not
            known to agree, a tap is missing, or the distributed set-up is one that was never tested.
    """

    # compute_loss returns the mean of its batch; Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel | ForeignNetwork,
        args: DistillationArguments,
        *,
        teacher: PreTrainedModel | ForeignNetwork | None = None,
        train_dataset: Dataset | datasets.Dataset | None = None,
        unlabelled_dataset: datasets.Dataset | None = None,
        eval_dataset: Dataset | datasets.Dataset | dict[str, Any] | None = None,
        processing_class: Any = None,
        teacher_processor: Any = None,
        class_map: ClassMap | str | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        refuse_what_can_not_work(args)
        warn_if_alone(args)
        model = with_taps(model)
        if teacher is None and (teacher_processor is not None or class_map is not None):
            raise ValueError("teacher_processor and class_map say how a teacher is read, and there is no teacher.")
        if teacher is not None:
            if without_taps(teacher) is without_taps(model):
                raise ValueError(
                    "Teacher and student are the same object, and the teacher must not be trained: load it twice."
                )
            teacher = adapted(
                in_own_dtype(teacher, args.teacher_dtype),
                model,
                teacher_processor=teacher_processor,
                student_processor=processing_class,
                class_map=class_map,
            )
        distiller = build_distiller(model, teacher, args)
        if args.sync_batch_norm:
            synchronise_batch_norms(distiller, args)
        if train_dataset is not None and isinstance(model, ForeignNetwork):
            model.become_student(() if distiller.loss is None else distiller.loss.student_taps)
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
        self._term_means = TermMeans()
        self._batch_files: list[str] = []  # image_ids of the batch in work, where the data set gives them
        self._label_range = {
            "num_labels": distiller.config.num_labels,
            "ignore_index": distiller.config.semantic_loss_ignore_index,
        }
        self._scores = StreamingScores(distiller.config.num_labels)
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=augmented(train_dataset, args, processing_class, model, distiller.loss, unlabelled_dataset),
            eval_dataset=whole_images(eval_dataset, processing_class, model),
            processing_class=processing_class,
            data_collator=partial(train_collator, **self._label_range),
            compute_metrics=self._scores,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        vars(model.config).pop("use_cache", None)  # Trainer sets it on any config; it would be saved
        if self.optimizer is not None:
            require_all_parameters(self.optimizer, distiller)
            if args.scale_lr:
                raise ValueError("scale_lr scales the rates of the optimizer that is built from args; you passed one.")
        self._average = StudentAverage(distiller.student, args.ema_decay) if args.ema_decay else None
        warm_up = distiller.loss is not None and distiller.loss.connector_epochs
        self._connectors_first = ConnectorsFirst(distiller) if warm_up else None
        self._guard = NonFiniteGuard(distiller, self.accelerator, self._teacher_features)
        for callback in self._own_callbacks():
            self.add_callback(callback)
        self.teacher = None
        if distiller.loss is not None:
            wanted = distiller.loss.teacher_batch_statistics
            self._batch_statistics = takes_batch_statistics(teacher, args.teacher_batch_norm, wanted)
            self.teacher = ready_to_teach(teacher, args.teacher_dtype, args.channels_last, self.accelerator)
        if (warning := args.warn_about_batch_size()) is not None:
            logger.warning(warning)

    def _own_callbacks(self) -> Iterator[TrainerCallback]:
        """What goes on beside the steps, in the order in which it is called."""
        yield EpochOfAugmentation(self)
        yield ConstantTerms()
        yield self._term_means
        yield self._guard
        if self._average is not None:
            yield self._average
        if self._connectors_first is not None:
            yield self._connectors_first
        for module in self.distiller.modules():
            if isinstance(module, Adversary):
                yield AdversaryCallback(module, self._term_means.add_beside)
        yield Preflight(self)

    @property
    def distiller(self) -> Distiller:
        """The student and the loss, without what accelerate wraps them in."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def student(self) -> PreTrainedModel:
        """The network being trained."""
        return self.distiller.student

    # --- training ---

    def _teacher_features(self, images: Tensor) -> Features:
        return taps_for(self.distiller.loss, self.teacher, images, self._batch_statistics)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The batches of an optimizer step, and how many pixels are labelled in them, on all processes together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        labelled = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            if "labels" in batch:
                labelled += (batch["labels"] != self._label_range["ignore_index"]).sum().to(device)
        return batches, self.accelerator.reduce(labelled, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Cross-entropy plus the terms of the distillation loss, the mean of the batch.

        The cross-entropy is weighted so that its mean over accumulated batches and processes is that of all labelled
        pixels, however unevenly the batches are labelled; `num_items_in_batch` is their number.
        """
        self._scored_images = None  # the student is about to change
        teacher_features = None
        loss = self.distiller.loss
        if "labels" not in inputs:
            refuse_need_of_labels(loss, "the training batch has")
        if loss is not None:
            loss.set_progress(self.state.global_step / max(1, self.state.max_steps))
            teacher_features = self._teacher_features(inputs["pixel_values"])
        labelled_pixels = None
        if num_items_in_batch is not None:
            batches = self.current_gradient_accumulation_steps * self.args.world_size
            labelled_pixels = num_items_in_batch.clamp(min=1) / batches
        outputs = model(**inputs, teacher_features=teacher_features, labelled_pixels=labelled_pixels)
        self._guard.remember(inputs, self._batch_files, outputs["terms"])
        self._term_means.add(outputs["terms"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer` does; what does not learn while connectors are warmed up, or after it, has no gradient then."""
        loss = super().training_step(*args, **kwargs)
        if self._connectors_first is not None:
            self._connectors_first.drop_gradients(self.state.epoch)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._guard.check(grad_norm, self.state.global_step + 1, self.args.output_dir)
        return grad_norm

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer` does; afterwards all processes hold the same student, the one that is saved.

        With `args.ema_decay` it has the averaged weights from then on.
        """
        output = super().train(*args, **kwargs)
        self.unreadable_images = unreadable_images(self.train_dataset, self.accelerator)
        if self._average is not None:
            self._average.give_to_student()
        self._share_buffers()
        return output

    def _final_weights(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the student has the weights that are scored, saved and published: averages where there are some."""
        return contextlib.nullcontext() if self._average is None else self._average.in_student()

    def _share_buffers(self) -> None:
        """Give all processes the batch norm statistics of process 0: each has its own after a step."""
        if self.args.world_size > 1:
            for name, buffer in self.distiller.named_buffers():
                if name not in self.distiller._ddp_params_and_buffers_to_ignore:  # equal by themselves, and large
                    torch.distributed.broadcast(buffer, src=0)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self._batch_files = inputs.pop("image_ids", [])
        images = inputs["pixel_values"]
        if self.args.channels_last and isinstance(images, Tensor):
            inputs["pixel_values"] = images.contiguous(memory_format=torch.channels_last)
        return inputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, with the mean of each term since the last log: `raw_` and, weighted, `loss_`."""
        if "loss" in logs:
            logs.update(self._term_means.take(self.distiller.weights, self.accelerator))
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Three groups: the student's backbone, the rest of the student, the loss's own parameters."""
        if self.optimizer is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.distiller)
            kwargs["lr"] = self.args.scaled_learning_rate
            self.optimizer = optimizer_class(parameter_groups(self.distiller, self.args), **kwargs)
        return self.optimizer

    # --- evaluation ---

    def get_eval_dataloader(self, eval_dataset: str | Dataset | datasets.Dataset | None = None) -> DataLoader:
        """Whole images; no image is dropped, whatever `dataloader_drop_last` says for training."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = whole_images(eval_dataset, self.processing_class, self.student)
        with self._for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset | datasets.Dataset) -> DataLoader:
        """As `get_eval_dataloader`."""
        with self._for_evaluation():
            return super().get_test_dataloader(whole_images(test_dataset, self.processing_class, self.student))

    @contextlib.contextmanager
    def _for_evaluation(self) -> Iterator[None]:
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = False
        self.data_collator = partial(evaluation_collator, **self._label_range)
        try:
            yield
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """mIoU, mean class accuracy and pixel accuracy of the student, whole images at a single scale.

        Labels are compared at their own resolution, logits being resized to it as the image processor's
        `post_process_semantic_segmentation` does. `confusion_matrix` holds the last evaluation's counts.
        """
        self._scores.begin()  # an evaluation that was interrupted leaves its counts
        self._scored_images = dataloader.dataset
        self._share_buffers()  # score the statistics that are saved
        # Its data loader draws a seed, which must not change what training draws.
        with self._final_weights(), torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        require_finite_scores(output.metrics)
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One confusion matrix for each image, so that neither logits nor masks pile up.

        Per image, not per batch: when processes share the images unevenly, `gather_for_metrics` drops the
        duplicates that fill the last batch, which it can do only along the batch axis. They are also what `predict`
        returns as predictions, (images, k * k); for masks use the pipeline or `scripts/predict.py`.

        Raises:
            ValueError: If the data set gives no labels.
        """
        inputs = self._prepare_inputs(inputs)
        if "labels" not in inputs:
            raise ValueError("An evaluation needs labels, and its data set gives none; scripts/predict.py needs none.")

        def logits_of(images: Tensor) -> Tensor:
            with torch.no_grad(), self.compute_loss_context_manager():
                return model(pixel_values=images)["logits"]

        tiles = {"tile": self.args.eval_tile, "overlap": self.args.eval_overlap}
        loss, rows = loss_and_counts(logits_of, inputs["pixel_values"], inputs["labels"], **self._label_range, **tiles)
        if prediction_loss_only:
            return loss, None, None
        return loss, rows, torch.zeros(len(rows), device=rows.device)

    # --- saving and resuming ---

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir if output_dir is not None else self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        is_checkpoint = directory.name.startswith(PREFIX_CHECKPOINT_DIR)  # what training goes on from
        with contextlib.nullcontext() if is_checkpoint else self._final_weights():
            self.student.save_pretrained(directory)
        if is_checkpoint and self._average is not None:
            self._average.save(directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)
        # JSON, where Trainer would write a pickle.
        (directory / ARGUMENTS_FILE).write_text(self.args.to_json_string())
        loss = self.distiller.loss
        if loss is not None and is_checkpoint:
            state = {name: value.contiguous() for name, value in loss.state_dict().items()}
            save_file(state, directory / LOSS_STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = type(self.student).from_pretrained(resume_from_checkpoint, use_safetensors=True)
        self.student.load_state_dict(saved.state_dict())
        self._scored_images = None
        if self._average is not None:
            self._average.load(Path(resume_from_checkpoint))
        if self.distiller.loss is not None:
            self.distiller.loss.load_state_dict(load_file(Path(resume_from_checkpoint, LOSS_STATE_FILE)))

    def _load_best_model(self) -> None:
        logger.info(f"Loading the best model, {self.state.best_model_checkpoint} ({self.state.best_metric}).")
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _write_publication(self, folder: Path) -> None:
        with self._final_weights():
            super()._write_publication(folder)
