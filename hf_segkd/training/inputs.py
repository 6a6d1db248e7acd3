"""`augmented`, `whole_images`: the trainer's inputs, made from data sets of `load_segmentation_dataset`."""

from __future__ import annotations

from typing import Any

import datasets
from accelerate import Accelerator
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_segkd.data import (
    AugmentedDataset,
    EvaluationDataset,
    LabelInfo,
    TrainTransform,
    check_keeps_whole_images,
    check_labels_of,
    label_info,
    without_labels,
)
from hf_segkd.data.image_processors import fixed_size, normalisation, num_bands, reverses_channels
from hf_segkd.data.transforms import no_photometric_change
from hf_segkd.losses import LOSSES, AbstractDistillationLoss
from hf_segkd.networks.channels import check_images
from hf_segkd.networks.class_names import check_labels
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.evaluation_scale import scale_base, warn_of_other_scale

logger = logging.get_logger(__name__)


def augmented(
    dataset: Any,
    args: DistillationArguments,
    processor: Any,
    model: PreTrainedModel,
    loss: AbstractDistillationLoss | None = None,
    unlabelled: datasets.Dataset | None = None,
) -> Dataset | None:
    """Random crops of a data set as `args` and the image processor define them; a torch data set stays as it is.

    Args:
        dataset: A data set of `load_segmentation_dataset`, any torch data set of crops, or None.
        args: Arguments of the run.
        processor: The student's image processor: its size, where `args.crop_size` gives none, mean and std.
        model: The student.
        loss: The distillation loss, None without one.
        unlabelled: Unlabelled images that each epoch also has.

    Raises:
        ValueError: If there is no processor, it does not keep whole images, the size of crops is not known, the labels
            are not the model's, there are fewer images than one step takes, or there are unlabelled images and the loss
            needs labels, or they have no data set to be mixed with; or if data set, processor and model do not agree on
            the channels of images.
    """
    _refuse_splits_and_streams("train_dataset", dataset)
    _refuse_splits_and_streams("unlabelled_dataset", unlabelled)
    if args.data_cache is not None and not isinstance(dataset, datasets.Dataset | None):
        raise ValueError(
            f"data_cache keeps what data sets of load_segmentation_dataset decode; {type(dataset).__name__} reads its "
            "own images. Leave data_cache out (an AugmentedDataset takes it as an argument of its own)."
        )
    if not isinstance(unlabelled, datasets.Dataset | None):
        raise ValueError(
            f"unlabelled_dataset is a {type(unlabelled).__name__}, and it takes a data set of load_unlabelled_images "
            "or another datasets.Dataset with a column image."
        )
    if isinstance(dataset, datasets.Dataset):
        if "annotation" in dataset.column_names:
            check_labels(model, label_info(dataset))
            check_labels_of(dataset)
        else:
            refuse_need_of_labels(loss, "the images of train_dataset have")
            dataset = without_labels(dataset)
        check_images(model.config, _needed(processor), dataset)
        transform = _train_transform(args, processor, model)
        if args.scale_base is None:
            warn_of_other_scale(dataset, transform.scale_base, processor)
        seed = args.seed if args.data_seed is None else args.data_seed
        if unlabelled is not None:
            refuse_need_of_labels(loss, "the images of unlabelled_dataset have")
            unlabelled = without_labels(unlabelled)
            check_images(model.config, processor, unlabelled)
        dataset = AugmentedDataset(
            dataset,
            transform,
            seed,
            unlabelled,
            args.unlabelled_ratio,
            args.bad_images,
            args.teacher_views,
            args.data_cache,
        )
    elif unlabelled is not None:
        raise ValueError(
            "unlabelled_dataset is mixed with a train_dataset of load_segmentation_dataset, and train_dataset is "
            f"{'missing' if dataset is None else type(dataset).__name__}. Let your own data set give the unlabelled "
            f"images too, with all labels {model.config.semantic_loss_ignore_index}; with unlabelled images alone, "
            "pass them as train_dataset."
        )
    elif args.bad_images == "skip" and not isinstance(dataset, AugmentedDataset | None):
        raise ValueError(
            f"bad_images='skip' is for data sets of load_segmentation_dataset; {type(dataset).__name__} has to leave "
            "bad files out by itself."
        )
    if args.teacher_views and not isinstance(dataset, AugmentedDataset | None):
        raise ValueError(
            f"teacher_views draws crops of a data set of load_segmentation_dataset; {type(dataset).__name__} makes its "
            "own. Leave teacher_views out."
        )
    images = args.per_device_train_batch_size * args.world_size
    if dataset is not None and args.dataloader_drop_last and len(dataset) < images:
        raise ValueError(
            f"There are {len(dataset)} training images, but {images} make a batch ({args.per_device_train_batch_size} "
            f"for each of {args.world_size} processes) and incomplete batches are dropped, so nothing would be "
            "trained. Lower per_device_train_batch_size."
        )
    return dataset


def known_labels(*images: Any) -> LabelInfo | None:
    """The classes of the first data set, or dict of data sets, that has them; None where none does."""
    for given in images:
        for part in given.values() if isinstance(given, dict) else [given]:
            if isinstance(part, datasets.Dataset) and "annotation" in part.column_names:
                return label_info(part)
    return None


def whole_images(dataset: Any, processor: Any, model: PreTrainedModel) -> Any:
    """Whole images of a data set as the image processor prepares them; a torch data set stays as it is.

    Args:
        dataset: A data set of `load_segmentation_dataset`, any torch data set, a dict of such, or None.
        processor: The student's image processor.
        model: The student.

    Raises:
        ValueError: If there is no processor, it does not keep whole images, the labels are not the model's, or there is
            no image.
    """
    if isinstance(dataset, dict):
        return {name: whole_images(part, processor, model) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    check_labels(model, label_info(dataset))
    if len(dataset) == 0:
        raise ValueError("A data set without images has no score: eval_dataset is empty.")
    check_labels_of(dataset)
    check_images(model.config, _needed(processor), dataset)
    return EvaluationDataset(dataset, processor)


def unreadable_images(images: Any, accelerator: Accelerator) -> list[str]:
    """List `image_id` of each training image that was left out, and warn of their number; call it on all processes.

    Empty where bad images stop the training, and for data sets that are not ours.
    """
    if not isinstance(images, AugmentedDataset) or images.bad_images != "skip":
        return []
    found = accelerator.reduce(images.unreadable.int().to(accelerator.device), reduction="sum").cpu()
    unreadable = [images.name_of(index) for index in found.nonzero().flatten().tolist()]
    if unreadable and accelerator.is_main_process:
        shown = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
        logger.warning(f"{len(unreadable)} of {len(found)} training images could not be read: {shown}.")
    return unreadable


def refuse_need_of_labels(loss: AbstractDistillationLoss | None, what: str) -> None:
    """Make sure that a student can learn from images without labels.

    Args:
        loss: The distillation loss, None without one.
        what: What has no labels, for the message.

    Raises:
        ValueError: If there is no loss, or its terms depend on the labels.
    """
    if loss is not None and not loss.needs_labels:
        return
    able = ", ".join(name for name, kind in LOSSES.items() if not kind.needs_labels)
    reason = (
        "With method 'none' the student learns from labels alone"
        if loss is None
        else f"Method {loss.name!r}, as it is set, compares student and teacher by the labels"
    )
    raise ValueError(f"{reason}, and {what} no labels. Methods that need none: {able}.")


def _refuse_splits_and_streams(name: str, images: Any) -> None:
    if isinstance(images, datasets.DatasetDict):
        raise ValueError(f"{name} holds the splits {', '.join(images)}; pass one of them.")
    if isinstance(images, datasets.IterableDataset | IterableDataset):
        raise ValueError(
            f"{name} is a stream ({type(images).__name__}), whose length is not known and which can't be resumed at an "
            "image. Pass a data set with a length: datasets.load_dataset without streaming, or a torch data set with "
            "__len__ and __getitem__."
        )


def _train_transform(args: DistillationArguments, processor: Any, model: PreTrainedModel) -> TrainTransform:
    processed = fixed_size(processor)
    crop_size = args.crop_size or processed
    if crop_size is None:
        raise ValueError(
            "The image processor does not resize to one height and width, so it does not give the size of training "
            "crops. Pass crop_size (height width)."
        )
    if num_bands(processor) is not None and args.photometric != "none":
        raise ValueError(no_photometric_change(args.photometric))
    return TrainTransform(
        crop_size=tuple(crop_size),
        scale_range=tuple(args.scale_range),
        scale_base=args.scale_base or scale_base(processor),
        flip_probability=args.flip_probability,
        photometric=args.photometric,
        max_class_share=args.max_class_share,
        ignore_index=model.config.semantic_loss_ignore_index,
        reverse_channels=reverses_channels(processor),
        **normalisation(processor),
    )


def _needed(processor: Any) -> Any:
    if processor is None:
        raise ValueError(
            "processing_class is missing: an image processor (such as SegformerImageProcessor) holds the size, mean "
            "and std of the images."
        )
    check_keeps_whole_images(processor)
    return processor
