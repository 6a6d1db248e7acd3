"""`DistillationArguments`: the training arguments of distillation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_segkd.training.argument_values import check_values
from hf_segkd.training.processes import refuse_sharding


@dataclass(repr=False)  # TrainingArguments' own leaves tokens out
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with what distillation adds, and the defaults of the segmentation literature.

    Defaults that differ from `TrainingArguments`: SGD with momentum 0.9 and weight decay 5e-4 on every parameter,
    polynomial decay of power 0.9 to zero (AttnFD's released code), no gradient clipping, incomplete last training
    batches dropped (a batch of one image has no batch statistics in the ASPP's pooling branch).

    Raises:
        ValueError: If a value is out of range or contradicts another.

    Example:
        >>> from hf_segkd import DistillationArguments
        >>> args = DistillationArguments(output_dir="runs/student", method="cwd", max_steps=500, use_cpu=True)
        >>> args.learning_rate, args.optim_args, args.images_per_step
        (0.007, 'momentum=0.9', 8)
    """

    # --- distillation ---
    method: str = field(
        default="none",
        metadata={"help": "Distillation loss, a name in hf_segkd.losses.LOSSES; none trains without a teacher."},
    )
    method_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the loss's constructor, as a JSON object."}
    )
    distillation_weight: float = field(
        default=1.0, metadata={"help": "What all terms of the method are multiplied by, beside their own weights."}
    )
    ce_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy on the labels."})
    label_loss: str = field(
        default="ce",
        metadata={
            "help": "Loss on the labels: ce, ohem, focal, dice or lovasz, or several joined by commas, whose terms are "
            "added, such as ce,dice."
        },
    )
    label_loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the loss on the labels, as a JSON object; of several losses each under its name."
        },
    )
    class_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in ce, ohem and focal: one number for each, or inverse, sqrt or effective, "
            "which are made of the pixels that each class has in the training masks."
        },
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of the teacher and its forward, whatever --bf16 and --fp16 say: float32, bfloat16 "
            "or float16; auto leaves its weights as they were loaded, and --bf16 and --fp16 hold for it too; fastest "
            "measures at the first batch which the device is fastest in, and folds batch norms into convolutions."
        },
    )
    teacher_batch_norm: str = field(
        default="auto",
        metadata={
            "help": "What the teacher's batch norms normalise by: eval, their running statistics; batch_stats, those "
            "of each batch; auto, what the method asks for (ofd's preset official: batch_stats). They never change."
        },
    )
    preflight_images: int = field(
        default=32,
        metadata={
            "help": "Score teacher and student on so many validation images before the first step, and stop if the "
            "teacher is not better; 0 does not."
        },
    )
    allow_weak_teacher: bool = field(
        default=False, metadata={"help": "Train with a teacher that is not better than the student, too."}
    )

    teacher_views: int = field(
        default=0,
        metadata={
            "help": "Number of crops that a training image is seen in, in turn, epoch after epoch; 0 draws a new one "
            "in each epoch."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps what the method reads of the teacher for each crop, so that the teacher runs "
            "once for each of teacher_views crops; runs of the same teacher, method and images share it."
        },
    )
    teacher_cache_dtype: str = field(
        default="float16",
        metadata={"help": "Number format of the teacher cache: float16, bfloat16, or float32, which is exact."},
    )
    teacher_cache_limit: float | None = field(
        default=None, metadata={"help": "GiB that the teacher cache may take; by default all that the disk has left."}
    )

    # --- optimizer ---
    optim: str = field(default="sgd", metadata={"help": "Optimizer, as in TrainingArguments."})
    optim_args: str | None = field(
        default=None, metadata={"help": "Optimizer arguments; sgd gets momentum=0.9 when this is not given."}
    )
    learning_rate: float = field(default=0.007, metadata={"help": "Learning rate of the backbone."})
    weight_decay: float = field(
        default=5e-4, metadata={"help": "Weight decay of every parameter, those of batch norms included."}
    )
    head_lr_multiplier: float = field(
        default=10.0,
        metadata={"help": "Learning rate of everything but the backbone, relative to learning_rate."},
    )
    connector_lr_multiplier: float = field(
        default=10.0,
        metadata={"help": "Learning rate of the loss's own parameters, relative to learning_rate."},
    )
    frozen: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Beginnings of names of the student's parts that stay as they are, e.g. backbone.conv1: parameters "
            "get no gradient, batch norms keep their statistics."
        },
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="polynomial", metadata={"help": "Schedule, as in TrainingArguments: polynomial, cosine, ..."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 does not clip."})
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the moving average of the student's weights, e.g. 0.999, which is then what is scored, "
            "saved and published; 0 is off."
        },
    )
    recipe_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images per optimizer step the recipe was made for; another number is warned about."},
    )

    scale_lr: bool = field(
        default=False,
        metadata={
            "help": "Train with learning_rate x images per optimizer step / recipe_batch_size (the linear scaling rule "
            "of Goyal et al. 2017); learning_rate itself stays as it is, in what is saved too."
        },
    )

    # --- training images ---
    crop_size: list[int] | None = field(
        default=None,
        metadata={"help": "Height and width of training crops; by default the size the image processor resizes to."},
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Random scale of training images: from, to."}
    )
    scale_base: int | None = field(
        default=None,
        metadata={
            "help": "Scale 1 is an image with a short side of so many pixels; by default the size the image processor "
            "resizes to, or the image's own if it does not resize."
        },
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Chance of a horizontal flip."})
    max_class_share: float = field(
        default=1.0,
        metadata={"help": "Draw a crop again, up to ten times, while one class fills more than this share of it."},
    )
    photometric: str = field(
        default="none",
        metadata={"help": "Photometric augmentation, an option of hf_segkd.data.TrainTransform."},
    )

    repeat_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Draw the training images more often that show a class which fewer than this share of them show: 0 "
            "is off, 1 evens out most (repeat factor sampling, Gupta et al. 2019)."
        },
    )
    unlabelled_ratio: float = field(
        default=1.0, metadata={"help": "Unlabelled images, where there are some, for each labelled one in an epoch."}
    )

    bad_images: str = field(
        default="stop",
        metadata={
            "help": "What to do about a training file that cannot be read: stop with its name, or skip it for the next "
            "one and count. Evaluation always stops."
        },
    )

    data_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps decoded training images and masks, so that each file is decoded once; any "
            "number of runs share it."
        },
    )
    data_cache_limit: float | None = field(
        default=None, metadata={"help": "GiB that the data cache may take; by default all that the disk has left."}
    )

    # --- publishing ---
    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the published student, as the Hub spells it (apache-2.0, ...); never assumed."},
    )
    hub_self_contained: bool = field(
        default=False,
        metadata={"help": "Publish the student's code too, for trust_remote_code=True where the package is missing."},
    )

    # --- running ---
    sync_batch_norm: bool = field(
        default=False,
        metadata={"help": "Batch norms of student and connectors take the statistics of all GPUs' images together."},
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Channels-last memory format: the same values up to rounding, faster."},
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Drop the last incomplete training batch; evaluation always sees every image."},
    )
    per_device_eval_batch_size: int = field(
        default=1,
        metadata={"help": "Images per device and evaluation step; more than 1 pays where sizes are equal."},
    )
    eval_tile: list[int] | None = field(
        default=None,
        metadata={
            "help": "Evaluate in tiles of this side, or height and width, in pixels of the processed images, which may "
            "be too large for the network; by default it sees whole images."
        },
    )
    eval_overlap: int | None = field(
        default=None,
        metadata={"help": "Pixels that neighbouring tiles share; by default a quarter of their side."},
    )
    max_logged_classes: int = field(
        default=50,
        metadata={
            "help": "Log the IoU of each class if there are at most so many; of more, only the one that "
            "metric_for_best_model names."
        },
    )
    log_pictures: int = field(
        default=0,
        metadata={
            "help": "Send pictures of so many validation images to TensorBoard, trackio and wandb with each "
            "evaluation: image, truth, teacher and student."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide non-finite losses from the log; there are none, since the first one stops the run."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Must stay True: evaluation is streamed."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every parameter of student and loss has a gradient."}
    )

    def __post_init__(self) -> None:
        refuse_sharding(self)
        if self.lr_scheduler_type == "polynomial" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0}
        if self.optim == "sgd" and self.optim_args is None:
            self.optim_args = "momentum=0.9"
        if self.hub_token == "<HUB_TOKEN>":  # to_dict writes this for any token, so that its output can be a recipe
            self.hub_token = None
        self.method_kwargs = json_object(self.method_kwargs, "method_kwargs")
        self.label_loss_kwargs = json_object(self.label_loss_kwargs, "label_loss_kwargs")
        self.class_weights = word_or_numbers(self.class_weights)
        if self.lr_scheduler_kwargs is not None:
            self.lr_scheduler_kwargs = json_object(self.lr_scheduler_kwargs, "lr_scheduler_kwargs")
        super().__post_init__()
        check_values(self)

    @property
    def images_per_step(self) -> int:
        """Images per optimizer step, over all processes."""
        return self.world_size * self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate of the backbone that the run starts with: `learning_rate`, scaled if `scale_lr` says so."""
        return self.learning_rate * (self.images_per_step / self.recipe_batch_size if self.scale_lr else 1)

    def warn_about_batch_size(self) -> str | None:
        """The warning for when images per optimizer step are not what the recipe was made for."""
        actual = self.images_per_step
        if self.recipe_batch_size in (None, actual):
            return None
        factor = actual / self.recipe_batch_size
        what_to_do = (
            f"Its learning rate of {self.learning_rate:g} is scaled by {factor:g} to {self.scaled_learning_rate:g}."
            if self.scale_lr
            else f"Change one of these, or scale the learning rate by {factor:g} to {self.learning_rate * factor:g}, "
            "as --scale_lr does."
        )
        return (
            f"The recipe is for {self.recipe_batch_size} images per optimizer step; this run has {actual} "
            f"({self.world_size} processes x {self.per_device_train_batch_size} per device x "
            f"{self.gradient_accumulation_steps} accumulation steps). {what_to_do}"
        )


def json_object(value: dict[str, Any] | str | None, flag: str) -> dict[str, Any]:
    """A flag that holds a JSON object (or, from Python, a dict); nothing is the empty one.

    Raises:
        ValueError: If it is not JSON, or no object.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{flag} takes a JSON object, got {value!r}: {error}.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"--{flag} takes a JSON object, got {value!r}.")
    return parsed


def word_or_numbers(values: Sequence[str | float] | str | None) -> str | list[float] | None:
    """A flag that holds a word, or numbers; both may come as the words of a command line.

    Raises:
        ValueError: If there are several, and one is no number.
    """
    if values is None or isinstance(values, str):
        return values
    values = list(values)
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    try:
        return [float(value) for value in values]
    except ValueError as error:
        raise ValueError(f"class_weights takes one word or a number for each class, got {values}.") from error


def default_settings() -> dict[str, Any]:
    """The default training arguments, to find what a run changed."""
    PartialState()  # keeps the state of the run, where there is one: other arguments would set it up anew
    return DistillationArguments(accelerator_config={"use_configured_state": True}).to_dict()
