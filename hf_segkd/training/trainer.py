"""`DistillationTrainer`: distils a segmentation network from a teacher, and evaluates it by a streaming mIoU."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset, EvaluationStream, TrainingStream, evaluation_collator, train_collator
from hf_segkd.data.columns import ColumnNames
from hf_segkd.evaluation.streaming_scores import StreamingScores, loss_and_counts
from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.losses.adversary import Adversary
from hf_segkd.losses.labels.base import not_zero
from hf_segkd.networks import FeatureNetwork, with_taps
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.loading import load_teacher, make_student
from hf_segkd.networks.outputs import image_channels
from hf_segkd.publishing.pushes import HubPushes, progress_message
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.balance import balance_classes
from hf_segkd.training.best_metric import MetricNames, gives_scores
from hf_segkd.training.callbacks import AdversaryCallback, AtTrainBegin, EpochBegin, ResumedRun
from hf_segkd.training.checkpoint_writer import CheckpointWriter
from hf_segkd.training.checkpoints import RECORD_FILE, batch_size_of
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.ema import AverageAfterStep, StudentAverage
from hf_segkd.training.inputs import augmented, known_labels, unreadable_images, whole_images
from hf_segkd.training.interruption import EXIT_CODE, Sigterm, StopAtSigterm, ignore_sigterm_in_workers
from hf_segkd.training.label_watch import LabelWatch
from hf_segkd.training.nonfinite import NonFiniteGuard, require_finite_scores
from hf_segkd.training.own_loss import with_method
from hf_segkd.training.parameter_groups import ConnectorsFirst, parameter_groups, require_all_parameters
from hf_segkd.training.picture_log import PictureLog
from hf_segkd.training.preflight import preflight, require_better_teacher
from hf_segkd.training.processes import check_supported_modes, warn_single_process
from hf_segkd.training.publishing_trainer import PublishingTrainer
from hf_segkd.training.run_report import Evaluation
from hf_segkd.training.run_settings import checkpoint_to_resume, recorded_arithmetic, run_settings, with_arithmetic
from hf_segkd.training.search import SearchingTrainer
from hf_segkd.training.set_up import make_teacher, prepared_distiller, refuse_unusual_weights
from hf_segkd.training.stream_inputs import refuse_need_of_labels, refuse_splits, require_one_order
from hf_segkd.training.stream_loading import counted_once, stream_loader
from hf_segkd.training.student_files import load_checkpoint, save_student
from hf_segkd.training.teacher_cache import teacher_cache
from hf_segkd.training.term_means import ConstantTerms, TermMeans
from hf_segkd.training.trainer_options import refuse_options, refuse_unclear_start, require_kinds, require_set
from hf_segkd.types import Features

logger = logging.get_logger(__name__)

# The private methods of Trainer that are overridden, and why no public one serves. tests/training/test_private_hooks.py
# compares them with the installed transformers.
PRIVATE_OVERRIDES = {
    "_get_output_dir": "The only say in where Trainer writes a checkpoint: into the staging folder, until it is whole.",
    "_save_checkpoint": "Moves a whole checkpoint to its place before callbacks, pushes and rotation see it; on_save "
    "comes after rotation.",
    "_push_from_checkpoint": "Trainer calls it before the checkpoint is in its place, and sends the output folder.",
    "_load_from_checkpoint": "Checkpoints hold a plain student; Trainer would look for the keys of the whole module.",
    "_load_best_model": "The same, at the end of a run.",
}


class DistillationTrainer(SearchingTrainer, PublishingTrainer):
    """Trains `model` on labels and on the outputs of a frozen teacher.

    `trainer.student` is the network that is trained and saved: every checkpoint and `save_model` write a plain
    student that `from_pretrained` loads. The loss's own parameters are trained too, and lie beside it in checkpoints.
    A checkpoint is whole or not there, and is resumed only if the run can go on as if it had never stopped. With
    `args.push_to_hub` and the other `hub_` arguments of `Trainer` a push holds only what others need of the student,
    with its card and scores. A push is one commit, also with a checkpoint, which lies in a folder beside the student.

    Args:
        model: The student: a network of hf_segkd or a segmentation model of transformers that gives logits for each
            pixel; a `FeatureNetwork` of one names more features. Or its folder or Hub id, or the config of a new one.
            A config or network without class names of its own gets those of the data.
        args: Training arguments; `args.method` names the loss, "none" (default) trains without a teacher.
        teacher: The network to learn from, or its folder or Hub id. It is never trained, saved, or taken out of
            evaluation mode. A segmentation model of transformers offers its logits and default features; a
            `FeatureNetwork` of it offers others too. Any other network, or a function of images, that gives logits
            (b, k, h, w) offers these; a `LogitsNetwork` of it offers features too. `trainer.teacher` is the `Teacher`
            that is made of it; its documentation says what happens to the network.
        train_dataset: A data set of `load_segmentation_dataset`; any `datasets.Dataset` or torch data set of images and
            masks, or stream of them (`datasets.IterableDataset` or a torch one), which needs `args.max_steps`. All are
            augmented as `args` says. A data set whose rows are tensors, `pixel_values` (3, h, w) float32 and `labels`
            (h, w) integers, both of the crop's size, is used as it is. Other entries of the rows are dropped. Without
            labels the student learns only from the teacher. The trainer sets the epoch of an `AugmentedDataset`; set it
            yourself if the set is wrapped in another. `trainer.train_dataset` gives one epoch when it is iterated.
        unlabelled_dataset: Images without labels, of `load_unlabelled_images` or any data set or stream with a column
            of images, that are mixed in, `args.unlabelled_ratio` for each image of `train_dataset`; only the
            distillation terms use them. With a stream the training set becomes one, and needs `args.max_steps`.
        eval_dataset: As `train_dataset` without augmentation, or a dict of such; labels stay at their own resolution.
            Of a stream each image is counted once by any number of processes.
        image_column: Column of the images in data sets from elsewhere; by default it is found (`image`, `pixel_values`,
            `img` ...).
        mask_column: Column of the masks; by default it is found (`annotation`, `mask`, `label`, `segmentation` ...).
            Its numbers are those of the student's `config.id2label`, 255 is no class; with `do_reduce_labels` of the
            image processor 0 is no class and the classes begin at 1.
        processing_class: The image processor of the student: its size, mean and std are used in training and
            evaluation, and it is saved with the student. By default the one saved with the teacher or the student,
            where they are loaded; for a config without either, one with ImageNet's mean and std that does not resize.
        teacher_processor: The image processor of the teacher, where its mean, std, scale or order of colours are not
            the student's; the teacher then sees each crop as this processor makes it. Its size is not used. By default
            the one saved with a teacher that is loaded.
        class_map: Which class of the teacher teaches which of the student: a `ClassMap`, "names", "index" or a YAML
            file. By default by name where at least two names agree, else by index where the numbers agree.
        loss: A loss of your own in place of `args.method`: a subclass of `AbstractDistillationLoss`, a
            `functools.partial` of one, or a function of the two networks' `NetworkSpec`s that gives one. It gets
            `args.method_kwargs` as keywords; the run's `method` is then its name.
        model_init: In place of `model`, a function (of nothing, or of a search's trial) that gives what `model` takes.
            Each `train` begins with a new student of it; `hyperparameter_search` needs it.
        callbacks: As in `Trainer`.
        optimizers: As in `Trainer`.
        optimizer_cls_and_kwargs: As in `Trainer`, without learning rates and weight decay, which `args` has.
        *positional: Nothing: what `Trainer` takes after `args` by position, it is refused.
        **not_taken: Nothing: `compute_metrics` and others of `Trainer` are refused, with what serves instead.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument of `Trainer` is not taken, the teacher is no network, or the student none that
            `from_pretrained` can load, either has one class, teacher and method don't go together, teacher and student
            are one object, their classes are not known to agree, a feature is missing, `metric_for_best_model` is no
            score of the evaluations, the distributed set-up was never tested, or `args` or `callbacks` are something
            else.

    Attributes:
        unreadable_images: `image_id` of each training image that was left out; set when training has ended.
        resumed_from_step: The step that the run was resumed from, None for a run that never stopped. Unreadable images
            and seconds are counted since then.

    Example:
        >>> import tempfile
        >>> from hf_segkd import DeepLabV3PlusConfig, DistillationArguments, DistillationTrainer
        >>> from hf_segkd import load_segmentation_dataset
        >>> trainer = DistillationTrainer(
        ...     model=DeepLabV3PlusConfig(backbone="mobilenet_v2", depth_multiplier=0.1, aspp_channels=8),
        ...     args=DistillationArguments(
        ...         tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=2, crop_size=[32, 32], use_cpu=True
        ...     ),
        ...     train_dataset=load_segmentation_dataset("demo", num_classes=4, num_images=2),
        ... )
        >>> trainer.student.config.id2label[0]
        'background'
        >>> trainer.train()  # doctest: +SKIP
    """

    args: DistillationArguments

    # compute_loss returns the mean of its batch; Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    _attached: Sequence[TrainerCallback] = ()  # the trainer's own callbacks

    def __init__(
        self,
        model: PreTrainedModel | FeatureNetwork | PreTrainedConfig | str | os.PathLike | None = None,
        args: DistillationArguments | None = None,
        *positional: Any,
        teacher: nn.Module | Callable[[Tensor], Any] | str | os.PathLike | None = None,
        train_dataset: Dataset | datasets.Dataset | datasets.IterableDataset | None = None,
        unlabelled_dataset: Dataset | datasets.Dataset | datasets.IterableDataset | None = None,
        eval_dataset: Dataset | datasets.Dataset | datasets.IterableDataset | dict[str, Any] | None = None,
        image_column: str | None = None,
        mask_column: str | None = None,
        processing_class: Any = None,
        teacher_processor: Any = None,
        class_map: ClassMap | str | None = None,
        loss: Callable[..., AbstractDistillationLoss] | None = None,
        model_init: Callable[..., Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        **not_taken: Any,
    ) -> None:
        refuse_options(positional, not_taken, inspect.signature(type(self).__init__).parameters)
        args = DistillationArguments() if args is None else args
        require_kinds(args, callbacks)
        check_supported_modes(args)
        warn_single_process(args)
        self.model_init, self._loss, self._method_kwargs = model_init, loss, args.method_kwargs
        refuse_unclear_start(model, model_init, optimizers, optimizer_cls_and_kwargs)
        loaded = isinstance(teacher, str | os.PathLike)
        teacher, teacher_processor = load_teacher(teacher, teacher_processor)
        if processing_class is None and loaded:
            processing_class = teacher_processor
        columns = self._columns = ColumnNames(image_column, mask_column)
        if model_init is not None:
            set_seed(args.seed)
            model = Trainer.call_model_init(self)
        self._labels = known_labels(train_dataset, eval_dataset, names=columns)
        refuse_unusual_weights(model)
        model, processing_class = make_student(model, self._labels, processing_class)
        model = with_taps(model)
        self.teacher = make_teacher(teacher, teacher_processor, class_map, args, model, processing_class)
        distiller = prepared_distiller(model, self.teacher, args, loss, trains=train_dataset is not None)
        if loss is not None:
            args = with_method(args, loss, distiller.loss)
        self._label_range = {
            "num_labels": distiller.config.num_labels,
            "ignore_index": distiller.config.semantic_loss_ignore_index,
        }
        self._collated = {**self._label_range, "num_channels": image_channels(distiller.config)}
        self._crops = partial(augmented, train_dataset, unlabelled=unlabelled_dataset, names=columns)  # for each trial
        self._scores = StreamingScores(distiller.config.num_labels)
        self._name_scores(args, distiller, eval_dataset, callbacks or [], not isinstance(eval_dataset, dict))
        self._pushes = HubPushes(args)  # before Trainer prepares the repository
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=self._crops(args=args, processor=processing_class, model=model, loss=distiller.loss),
            eval_dataset=whole_images(eval_dataset, processing_class, model, columns),
            processing_class=processing_class,
            data_collator=partial(train_collator, **self._collated),
            compute_metrics=self._scores,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.model_init, self._made_crops = model_init, self.train_dataset
        vars(model.config).pop("use_cache", None)  # Trainer sets it on any config; it would be saved
        if self.optimizer is not None:
            require_all_parameters(self.optimizer, distiller)
            if args.scale_lr:
                raise ValueError("scale_lr scales the rates of the optimizer that is built from args; you passed one.")
        self.unreadable_images: list[str] = []
        self.resumed_from_step: int | None = None
        self._best_step: int | None = None  # whose weights the student has, once training went back to them
        self._evaluation: Evaluation | None = None
        self._writer = CheckpointWriter(Path(args.output_dir), args.should_save, self.accelerator.wait_for_everyone)
        self._sigterm = Sigterm()
        self._term_means = TermMeans()
        self._told_untrained = False  # by a subclass's compute_loss
        self._attach(distiller)
        if args.log_pictures:
            trackers = self.callback_handler.callbacks
            self.add_callback(PictureLog(args.log_pictures, self.eval_dataset, trackers, self._networks_to_show))
        if self.teacher is not None:
            batch_statistics = distiller.loss.request.teacher_batch_statistics
            self.teacher.prepare(self.accelerator, batch_statistics, args.channels_last)
        self._open_teacher_cache(distiller)
        self._label_watch = None
        if not isinstance(self.train_dataset, AugmentedDataset):  # whose masks were looked at
            self._label_watch = LabelWatch(distiller.config, not isinstance(self.train_dataset, TrainingStream))
        self._warn_about_batch_size()

    def _name_scores(
        self,
        args: DistillationArguments,
        distiller: Distiller,
        eval_dataset: Any,
        callbacks: Sequence[TrainerCallback],
        may_get_sets: bool,
    ) -> None:
        self._metric_names = MetricNames(args, distiller.config.id2label, eval_dataset)
        self._scores.class_keys = self._metric_names.logged
        if type(self).evaluate is Trainer.evaluate and not gives_scores(callbacks):
            self._metric_names.check(may_get_sets)

    def _warn_about_batch_size(self) -> None:
        if (warning := self.args.warn_about_batch_size()) is not None:
            logger.warning(warning)

    def _attach(self, distiller: Distiller) -> None:
        """Give the run what follows its student: the average, the guard and the trainer's own callbacks."""
        for callback in self._attached:
            self.remove_callback(callback)
        self._average = StudentAverage(distiller.student, self.args.ema_decay) if self.args.ema_decay else None
        warm_up = distiller.loss is not None and distiller.loss.request.connector_epochs
        self._connectors_first = ConnectorsFirst(distiller) if warm_up else None
        self._guard = NonFiniteGuard(distiller, self.accelerator, self._teacher_features)
        self._attached = [*self._own_callbacks(distiller)]
        for callback in self._attached:
            self.add_callback(callback)

    def _own_callbacks(self, distiller: Distiller) -> Iterator[TrainerCallback]:
        """The trainer's own callbacks, in the order in which they are called."""
        yield StopAtSigterm(self._sigterm)
        yield EpochBegin()
        yield ConstantTerms()
        if self._average is not None:
            yield AverageAfterStep(self._average)
        for module in distiller.modules():
            if isinstance(module, Adversary):
                yield AdversaryCallback(module, self._term_means.add_beside)
        yield AtTrainBegin(self._begin_steps)

    @property
    def distiller(self) -> Distiller:
        """The student and the loss, without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def student(self) -> PreTrainedModel:
        """The network being trained."""
        return self.distiller.student

    @property
    def confusion_matrix(self) -> Tensor:
        """Counts of the last evaluation, (k, k) int64: rows are the truth, columns the prediction; empty before it."""
        return self._scores.confusion_matrix

    # --- training ---

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As `Trainer` does, after a check that the run can go on from the checkpoint as if it had never stopped.

        Afterwards all processes hold the same student, the one that is saved: with `args.ema_decay` it has the averaged
        weights from then on. Before the first step the labels are counted, if class weights or the images' repeat
        factors need the counts.

        Args:
            resume_from_checkpoint: Folder of a checkpoint; True or "last" for that of the highest step in the output
                folder which is whole.
            trial: The trial of a hyperparameter search.
            *args: As in `Trainer`.
            **kwargs: As in `Trainer`.

        Raises:
            ValueError: If the checkpoint is damaged, or that of a run that this one can't continue; or if a student
                without a teacher had not one labelled pixel.
            SystemExit: With code 143 after SIGTERM, when the checkpoint of the current step is written.
        """
        if self.model is not None:  # a search lets go of it between trials
            callbacks = self.callback_handler.callbacks
            self._name_scores(self.args, self.distiller, self.eval_dataset, callbacks, may_get_sets=False)
        self._writer.folder = Path(super()._get_output_dir(trial))
        asked = self._train_batch_size = self.args.train_batch_size  # args may have been given the best of a search
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self.resumed_from_step = self._best_step = self._evaluation = None
        if checkpoint is not None and (arithmetic := recorded_arithmetic(checkpoint)) is not None:
            self.teacher.take(arithmetic)
        if self.model_init is None:
            balance_classes(self.distiller.label_losses, self.train_dataset, self.args, self.accelerator)
        resumed = ResumedRun(checkpoint)
        self.add_callback(resumed)
        with self._sigterm.listening():
            try:
                output = super().train(None if checkpoint is None else str(checkpoint), trial, *args, **kwargs)
            except SystemExit:
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # trackers write what they have
                raise
            finally:
                self.remove_callback(resumed)
            self._require_labels()
            self._pushes.log_failed_last(self.hub_model_id)
            if self._sigterm.received(self.args):
                self._save_finished_run()
                raise SystemExit(EXIT_CODE)
        if self._train_batch_size != asked:  # another fitted, which was not known before
            self._warn_about_batch_size()
        self.unreadable_images = unreadable_images(self.train_dataset, self.accelerator)
        if self._average is not None:
            self._average.give_to_student()
        self._share_buffers()
        return output

    def _require_labels(self) -> None:
        """Refuse what a run learnt from labels alone, if none was there; a resumed run may have had some before."""
        own = type(self).compute_loss is not DistillationTrainer.compute_loss
        alone = self.distiller.loss is None and self.args.class_weights is None and not own
        if self._label_watch is not None and alone and self.resumed_from_step is None:
            self._label_watch.require_labels()

    def _begin_steps(self) -> None:
        """Do what comes after the set-up and before the first step."""
        self._term_means.reset()
        self._guard.reset()
        if self._label_watch is not None:
            self._label_watch.begin()
        self._guard.accelerator = self.accelerator  # a search gives each trial another
        if self._train_batch_size != self.args.per_device_train_batch_size:  # found by auto_find_batch_size
            self.args.per_device_train_batch_size = self._train_batch_size
            vars(self).pop("_settings", None)
        if self._connectors_first is not None:
            self._connectors_first.warn_if_nothing_else_trains(self.state.num_train_epochs)
        if isinstance(self.train_dataset, AugmentedDataset) and self.train_dataset.data_cache is not None:
            self.train_dataset.announce_cache(self.args.data_cache_limit)
        if self._teacher_cache is not None:
            self._announce_teacher_cache()
        if self.state.global_step > 0:
            self.resumed_from_step = self.state.global_step
        elif self.teacher is not None and self.args.preflight_images:
            self._try_teacher()

    def _open_teacher_cache(self, distiller: Distiller) -> None:
        images, processor = self.train_dataset, self.processing_class
        self._teacher_cache = teacher_cache(self.args, images, distiller, self.teacher, processor)

    def _announce_teacher_cache(self) -> None:
        """Log the size of the cache, before the first step."""
        images = self.train_dataset[0]["pixel_values"][None].to(self.args.device)
        crops, limit = self.train_dataset.num_crops, self.args.teacher_cache_limit
        self._teacher_cache.announce(self._teacher_features(images), crops, limit)
        if self.state.num_train_epochs <= self.args.teacher_views:
            logger.warning(
                f"teacher_views is {self.args.teacher_views}, and the run has {self.state.num_train_epochs} epochs: no "
                "crop comes again, so this run fills the teacher cache and gains nothing by it."
            )

    def _try_teacher(self) -> None:
        """Log the scores of teacher and student; stop if the teacher is not better, unless that is allowed."""
        training = self.train_dataset
        transform = training.transform if isinstance(training, AugmentedDataset | TrainingStream) else None
        scores = preflight(
            self.teacher,
            self.distiller.network,
            self.eval_dataset,
            self.args.preflight_images,
            crop_size=None if transform is None else transform.crop_size,
            accelerator=self.accelerator,
        )
        if scores is not None:
            self.log({"preflight_teacher_mean_iou": scores.teacher, "preflight_student_mean_iou": scores.student})
            require_better_teacher(scores, self.args.allow_weak_teacher)

    def _teacher_features(self, images: Tensor) -> Features:
        features = self.teacher.features(images)
        return {tap: features[tap] for tap in self.distiller.loss.teacher_taps}  # the others' memory is free from here

    def _taught(self, images: Tensor, crops: list[str] | None) -> Features:
        """The teacher's features of a batch of training crops, from the cache if there is one."""
        if self._teacher_cache is None:
            return self._teacher_features(images)
        return self._teacher_cache.features(images, crops, self._teacher_features)

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer` gives it, with workers that ignore SIGTERM and leave it to this process."""
        stream = self.train_dataset
        if not isinstance(stream, TrainingStream):
            return ignore_sigterm_in_workers(super().get_train_dataloader())
        require_one_order(stream, self.accelerator)
        stream = stream.endless(self.args.process_index, self.args.world_size)
        loader = stream_loader(stream, self.args, self._train_batch_size, self.data_collator, self.accelerator.device)
        return ignore_sigterm_in_workers(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The batches of an optimizer step, and the number of labelled pixels in them over all processes.

        With class weights it is the sum of these pixels' weights.

        None when the checkpoint that was resumed is that of the last step.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            num_batches = 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches and num_batches and isinstance(self.train_dataset, TrainingStream):
            raise ValueError("train_dataset is a stream without a single image: is it iterated for the second time?")
        labelled = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            if "labels" in batch:
                if self._label_watch is not None:
                    self._label_watch.see(batch["labels"])
                labelled = labelled + self.distiller.pixel_weight(batch["labels"]).to(device)
        labelled = self.accelerator.reduce(labelled, reduction="sum")
        if self._label_watch is not None and batches:
            self._label_watch.add(labelled)
        return batches, labelled

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """The losses on the labels plus the terms of the distillation loss, the mean of the batch.

        Means over pixels (`ce`, `focal`) are weighted so that their mean over accumulated batches and processes is the
        mean of all labelled pixels, however unevenly the batches are labelled; `num_items_in_batch` is their number.

        A subclass may call it and add a term of its own. Without a teacher it may also compute the whole loss itself,
        from `model(pixel_values=...).logits`; the log then has that loss and no terms.
        """
        files, crops, inputs = inputs.get("image_ids", []), inputs.get("crop_ids"), self._network_inputs(inputs)
        teacher_features = None
        loss = self.distiller.loss
        if "labels" not in inputs:
            refuse_need_of_labels(loss, "the training batch has")
        if loss is not None:
            loss.set_progress(self.state.global_step / max(1, self.state.max_steps))
            teacher_features = self._taught(inputs["pixel_values"], crops)
        labelled_pixels = None
        if num_items_in_batch is not None:
            batches = self.current_gradient_accumulation_steps * self.args.world_size
            labelled_pixels = not_zero(num_items_in_batch) / batches
        outputs = model(
            **inputs,
            teacher_features=teacher_features,
            labelled_pixels=labelled_pixels,
            output_logits=return_outputs,
        )
        self._guard.remember(inputs, files, outputs["terms"])
        self._term_means.add(outputs["terms"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _network_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The entries of a batch that the networks take, in their memory format."""
        inputs = {name: value for name, value in inputs.items() if name not in ("image_ids", "crop_ids")}
        images = inputs["pixel_values"]
        if self.args.channels_last and isinstance(images, Tensor):
            inputs["pixel_values"] = images.contiguous(memory_format=torch.channels_last)
        return inputs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer` does; then drop gradients of what does not learn now, and stop the run at NaN or infinity.

        Raises:
            FloatingPointError: On every process, if a term of the loss or the gradient is not finite.
            ValueError: If a subclass's `compute_loss` leaves out the terms of the distillation loss.
        """
        remembered = len(self._guard.batches)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if len(self._guard.batches) == remembered:
            self._remember_own_loss(self._prepare_inputs(inputs), loss)
        if self._connectors_first is not None:
            self._connectors_first.drop_gradients(self.state.epoch)
        if self.accelerator.sync_gradients:  # the last batch of an optimizer step
            self._guard.check(self.state.global_step + 1, self.args.output_dir)
        return loss

    def _remember_own_loss(self, inputs: dict[str, Any], loss: Tensor) -> None:
        """Record the loss of a subclass whose `compute_loss` does not call this class's."""
        name = f"{type(self).__name__}.compute_loss"
        if self.distiller.loss is not None:
            raise ValueError(
                f"{name} does not call that of DistillationTrainer, so the terms of method {self.args.method!r} would "
                "be left out. Add super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) to what "
                "it returns, or train without a teacher; a loss on the teacher's features of your own is passed as "
                "loss."
            )
        self._guard.remember(inputs, inputs.get("image_ids", []), {"loss": loss})
        if not self._told_untrained:
            self._told_untrained = True
            trained = [named for named in self.distiller.named_parameters() if named[1].requires_grad]
            if untrained := [parameter for parameter, value in trained if value.grad is None]:
                logger.warning(
                    f"{name} gives {len(untrained)} parameters no gradient, and they are not trained: "
                    f"{', '.join(untrained)}. An auxiliary head learns with the loss of model(**inputs) only."
                )

    def _final_weights(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the student has the weights that are scored, saved and published: the averages, if there are any."""
        return contextlib.nullcontext() if self._average is None else self._average.in_student()

    def _share_buffers(self) -> None:
        """Give all processes the batch norm statistics of process 0: each has its own after a step."""
        if self.args.world_size > 1:
            for name, buffer in self.distiller.named_buffers():
                if name not in self.distiller._ddp_params_and_buffers_to_ignore:  # equal by themselves, and large
                    torch.distributed.broadcast(buffer, src=0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, with the mean of each term since the last log: `raw_` and, weighted, `loss_`."""
        if "loss" in logs:
            logs.update(self._term_means.take(self.distiller.weights, self.accelerator))
        # JSON has no NaN or infinity, which the norm of the gradient is in a step that fp16's scaler skips.
        for name in [name for name, value in logs.items() if isinstance(value, float) and not math.isfinite(value)]:
            del logs[name]
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Three groups: the student's backbone, the rest of the student, the loss's own parameters."""
        if self.optimizer is None:
            given = self.optimizer_cls_and_kwargs
            optimizer_class, kwargs = given or self.get_optimizer_cls_and_kwargs(self.args, self.distiller)
            kwargs = {**kwargs, "lr": self.args.scaled_learning_rate}
            self.optimizer = optimizer_class(parameter_groups(self.distiller, self.args), **kwargs)
        return self.optimizer

    # --- evaluation ---

    def get_eval_dataloader(self, eval_dataset: str | Dataset | datasets.Dataset | None = None) -> DataLoader:
        """A loader of whole images; it drops none, whatever `dataloader_drop_last` is for training."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str):
            require_set(given, self.eval_dataset)
        images = self.eval_dataset[given] if isinstance(given, str) else self._whole_images(given)
        with self._for_evaluation():
            if isinstance(images, EvaluationStream):
                return self._evaluation_loader(images)
            known = eval_dataset is None or isinstance(eval_dataset, str)  # Trainer keeps the loader of known ones
            return ignore_sigterm_in_workers(super().get_eval_dataloader(eval_dataset if known else images))

    def get_test_dataloader(self, test_dataset: Dataset | datasets.Dataset) -> DataLoader:
        """As `get_eval_dataloader`."""
        refuse_splits("test_dataset", test_dataset)
        images = self._whole_images(test_dataset)
        with self._for_evaluation():
            if isinstance(images, EvaluationStream):
                return self._evaluation_loader(images)
            return ignore_sigterm_in_workers(super().get_test_dataloader(images))

    def _whole_images(self, images: Any) -> Any:
        return whole_images(images, self.processing_class, self.student, self._columns)

    def _evaluation_loader(self, stream: EvaluationStream) -> DataLoader:
        require_one_order(stream, self.accelerator)
        stream = stream.share(self.args.process_index, self.args.world_size)
        size = self.args.per_device_eval_batch_size
        loader = stream_loader(stream, self.args, size, self.data_collator, self.accelerator.device)
        return ignore_sigterm_in_workers(loader)

    @contextlib.contextmanager
    def _for_evaluation(self) -> Iterator[None]:
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = False
        self.data_collator = partial(evaluation_collator, **self._collated)
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
        self._evaluation = Evaluation(dataloader.dataset, self.state.global_step)
        self._share_buffers()  # score the statistics that are saved
        # Its data loader draws a seed, which must not change what training draws.
        with self._final_weights(), torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        if isinstance(dataloader.dataset, EvaluationStream):
            output = counted_once(output, dataloader.dataset)
        require_finite_scores(output.metrics)
        if self.is_in_train:
            self._metric_names.require(output.metrics, kwargs.get("metric_key_prefix", "eval"))
        self._scores.require_labels(stop=not self.is_in_train)  # a run is not lost for it
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
        duplicates that fill the last batch, which it can do only along the batch axis. `predict` also returns them as
        predictions, (images, k * k); for masks use the pipeline or `scripts/predict.py`.

        Raises:
            ValueError: If the data set gives no labels.
        """
        inputs = self._network_inputs(self._prepare_inputs(inputs))
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a plain student that `from_pretrained` loads; with `args.push_to_hub` push it.

        A folder that is named like a checkpoint also gets what resuming needs.

        Args:
            output_dir: Folder to write to, by default the output folder.
            _internal_call: Whether to skip the push.
        """
        if self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            save_student(folder, self.distiller, self._average, self.processing_class, self.args)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writer.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        staged = self._writer.staged(self.state, self._record, (self.model, self.optimizer))
        with staged as checkpoint, self._sigterm.with_full_state(self.args):
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub and self.is_world_process_zero() and self._pushes.wants_checkpoint():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            write = partial(self._write_publication, checkpoint=checkpoint)
            self._pushes.add(self._pushes.push(write, self.hub_model_id, progress_message(self.args, self.state)))
        self._writer.delete_old(self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: `_save_checkpoint` pushes the checkpoint when it is in its place."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_checkpoint(Path(resume_from_checkpoint), self.distiller, self._average)

    def _load_best_model(self) -> None:
        logger.info(f"Loading the best model, {self.state.best_model_checkpoint} ({self.state.best_metric}).")
        self._load_from_checkpoint(self.state.best_model_checkpoint)
        self._evaluation = None
        self._best_step = int(Path(self.state.best_model_checkpoint).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> Path | None:
        folder, skip = self._writer.folder, self.args.ignore_data_skip
        self._writer.clear_staging()
        self.accelerator.wait_for_everyone()  # before one looks for checkpoints, or writes one
        if wanted and self.args.auto_find_batch_size and (found := batch_size_of(wanted, folder)) is not None:
            self.args.per_device_train_batch_size = self._train_batch_size = found
            vars(self).pop("_settings", None)
        checkpoint = checkpoint_to_resume(wanted, folder, self._settings if wanted else {}, skip)
        self.accelerator.wait_for_everyone()  # all have looked, before a checkpoint is written
        return checkpoint

    @cached_property
    def _settings(self) -> dict[str, Any]:
        student = self.distiller.network  # with its features
        loss = self.distiller.loss
        return run_settings(self.args, self.train_dataset, student, self.teacher, self.processing_class, loss)

    @property
    def _record(self) -> dict[str, Any]:
        """What a checkpoint records of the run: its settings, and what the teacher measured."""
        return with_arithmetic(self._settings, self.teacher)

    def _save_finished_run(self) -> None:
        """Save the last step's checkpoint after SIGTERM, unless it exists or the student has the best weights."""
        self._sigterm.stopping = True
        last = self._writer.folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not (last / RECORD_FILE).is_file() and not self.args.load_best_model_at_end:
            self._save_checkpoint(self.model, trial=None)
        if self.is_world_process_zero():
            logger.warning(
                f"SIGTERM came after the run's last step, {self.state.global_step}. --resume_from_checkpoint last "
                f"evaluates and saves the student. Exiting with code {EXIT_CODE}."
            )
