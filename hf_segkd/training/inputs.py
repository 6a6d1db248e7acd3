"""`augmented`, `whole_images`: the trainer's inputs, made from data sets of `load_segmentation_dataset`."""

from __future__ import annotations

from functools import partial
from typing import Any

import datasets
from accelerate import Accelerator
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from hf_segkd.data import (
    AugmentedDataset,
    EvaluationDataset,
    EvaluationStream,
    LabelInfo,
    TrainTransform,
    check_keeps_whole_images,
    check_labels_of,
    class_names,
    label_info,
    voc_palette,
)
from hf_segkd.data.columns import ColumnNames
from hf_segkd.data.image_processors import fixed_size, normalisation, num_bands, reverses_channels
from hf_segkd.data.labels import LabelScheme
from hf_segkd.data.own_datasets import as_loaded, is_loaded, named_classes
from hf_segkd.data.rows import RowReader, scheme_of
from hf_segkd.data.stream_sources import Source
from hf_segkd.data.transforms import no_photometric_change
from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.networks.channels import check_images, check_processor
from hf_segkd.networks.class_names import check_labels
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.crop_size import LARGEST_CROP, measured_crop_size
from hf_segkd.training.evaluation_scale import scale_base, warn_of_other_scale
from hf_segkd.training.stream_inputs import (
    SourceMaker,
    dataset_name,
    is_stream,
    refuse_need_of_labels,
    refuse_splits,
    training_stream,
    unlabelled_images,
)

logger = logging.get_logger(__name__)


def augmented(
    dataset: Any,
    args: DistillationArguments,
    processor: Any,
    model: PreTrainedModel,
    loss: AbstractDistillationLoss | None = None,
    unlabelled: Any = None,
    names: ColumnNames = ColumnNames(),  # noqa: B008  a tuple
) -> Dataset | None:
    """Random crops of a data set as `args` and the image processor define them; one that gives tensors stays as it is.

    Args:
        dataset: A data set of `load_segmentation_dataset`, any `datasets.Dataset`, torch data set or stream, or None.
        args: Arguments of the run.
        processor: The student's image processor: its size, where `args.crop_size` gives none, mean and std.
        model: The student.
        loss: The distillation loss, None without one.
        unlabelled: Unlabelled images that each epoch also has; a stream, too.
        names: The columns of images and masks; by default they are found.

    Raises:
        ValueError: If there is no processor, it does not keep whole images, the size of crops is not known, the labels
            are not the model's, there are fewer images than one step takes, or there are unlabelled images and the loss
            needs labels, or they have no data set to be mixed with; if data set, processor and model do not agree on
            the channels of images; if columns can't be found; or if a stream comes without `args.max_steps`.
    """
    refuse_splits("train_dataset", dataset)
    refuse_splits("unlabelled_dataset", unlabelled)
    if not isinstance(unlabelled, datasets.Dataset | Dataset | None):
        raise ValueError(
            f"unlabelled_dataset is a {type(unlabelled).__name__}, and it takes a data set of load_unlabelled_images, "
            "or another data set or stream with images."
        )
    given = dataset
    if dataset is not None and not is_stream(dataset):
        dataset = as_loaded(dataset, "train_dataset", partial(_scheme, model, processor), names, num_bands(processor))
    if unlabelled is not None and dataset is not None and not is_loaded(dataset) and not is_stream(dataset):
        raise ValueError(
            "unlabelled_dataset is mixed with images before they are augmented, not with tensors, and "
            f"train_dataset is {type(dataset).__name__}. Let your own data set give the unlabelled images too, with "
            f"all labels {model.config.semantic_loss_ignore_index}; with unlabelled images alone, pass them as "
            "train_dataset."
        )
    if unlabelled is not None and dataset is None:
        raise ValueError("unlabelled_dataset is mixed with train_dataset, which is missing: pass it as train_dataset.")
    if isinstance(dataset, datasets.Dataset) and is_loaded(dataset):
        if "annotation" in dataset.column_names:
            check_labels(model, label_info(dataset))
            check_labels_of(dataset)
        else:
            columns = "" if is_loaded(given) else f" ({', '.join(getattr(given, 'column_names', ['image']))})"
            refuse_need_of_labels(loss, f"the images of train_dataset{columns} have")
            if columns:
                logger.warning(f"train_dataset has no column of masks{columns}: images without labels.")
            dataset = unlabelled_images(dataset, "train_dataset", names, None)
        check_images(model.config, _needed(processor), dataset)
    if unlabelled is not None:
        refuse_need_of_labels(loss, "the images of unlabelled_dataset have")
        if not is_stream(unlabelled):
            unlabelled = unlabelled_images(unlabelled, "unlabelled_dataset", names, num_bands(processor))
            check_images(model.config, _needed(processor), unlabelled)
    streams = is_stream(dataset) or is_stream(unlabelled)
    not_for_these = [name for name in ("teacher_views", "data_cache") if getattr(args, name)]
    if not_for_these and dataset is not None and (streams or not is_loaded(dataset)):
        raise ValueError(
            f"{' and '.join(not_for_these)} is for data sets of pictures that have a length, and "
            f"{'there is a stream' if streams else f'train_dataset ({type(dataset).__name__}) gives tensors'}. Leave "
            "it out."
        )
    if streams:
        transform_for = partial(_train_transform, args, processor, model)
        return training_stream(dataset, unlabelled, args, transform_for, _source_maker(model, processor, names), loss)
    if isinstance(dataset, datasets.Dataset) and is_loaded(dataset):
        if args.crop_size is None and fixed_size(_needed(processor)) is None:
            args.crop_size = list(measured_crop_size(dataset))
            logger.warning(
                f"crop_size is not given, and images keep their sizes: training crops are {args.crop_size[0]} x "
                f"{args.crop_size[1]} (height x width), as the images are in the middle, {LARGEST_CROP} at most."
            )
        transform = _train_transform(args, processor, model)
        if args.scale_base is None:
            warn_of_other_scale(dataset, transform.scale_base, processor)
        seed = args.seed if args.data_seed is None else args.data_seed
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
    elif dataset is not None and not isinstance(dataset, AugmentedDataset):
        if args.bad_images == "skip":
            raise ValueError(
                "bad_images='skip' is for data sets whose images are read here; "
                f"{type(dataset).__name__} gives tensors, and has to leave bad files out by itself."
            )
        logger.warning("train_dataset gives tensors (pixel_values): they are used as they are, without augmentation.")
    images = args.per_device_train_batch_size * args.world_size
    if dataset is not None and args.dataloader_drop_last and len(dataset) < images:
        raise ValueError(
            f"There are {len(dataset)} training images, but {images} make a batch ({args.per_device_train_batch_size} "
            f"for each of {args.world_size} processes) and incomplete batches are dropped, so nothing would be "
            f"trained. Give --per_device_train_batch_size {max(1, len(dataset) // args.world_size)}, or fewer."
        )
    return dataset


def known_labels(*images: Any, names: ColumnNames = ColumnNames()) -> LabelInfo | None:  # noqa: B008  a tuple
    """The classes of the first data set, or dict of data sets, that has them; None where none does."""
    for given in images:
        for part in given.values() if isinstance(given, dict) else [given]:
            if is_loaded(part) and "annotation" in part.column_names:
                return label_info(part)
            if (classes := named_classes(part, names)) is not None:
                return LabelInfo.from_names("own data", classes, voc_palette(len(classes)))
    return None


def whole_images(
    dataset: Any,
    processor: Any,
    model: PreTrainedModel,
    names: ColumnNames = ColumnNames(),  # noqa: B008  a tuple
) -> Any:
    """Whole images of a data set as the image processor prepares them; one that gives tensors stays as it is.

    Args:
        dataset: A data set of `load_segmentation_dataset`, any `datasets.Dataset`, torch data set or stream, a dict of
            such, or None.
        processor: The student's image processor.
        model: The student.
        names: The columns of images and masks; by default they are found.

    Raises:
        ValueError: If there is no processor, it does not keep whole images, the labels are not the model's, there is
            no image, or columns can't be found; if a dict is empty, or its names are no words.
    """
    if isinstance(dataset, dict):
        wrong = [name for name, part in dataset.items() if not isinstance(name, str) or part is None]
        if wrong or not dataset:
            raise ValueError(
                "eval_dataset is a dict, of names (words) and data sets, and "
                f"{'is empty' if not dataset else f'{wrong[0]!r} is none, or has none'}."
            )
        return {name: whole_images(part, processor, model, names) for name, part in dataset.items()}
    if is_stream(dataset):
        if isinstance(dataset, EvaluationStream):
            return dataset
        source = _source_maker(model, processor, names)("eval_dataset", dataset, labelled=True)
        if not source.may_give_tensors:
            _needed(processor)
        ignored = model.config.semantic_loss_ignore_index
        return EvaluationStream(source, processor, source.reader.scheme.info, _split(dataset), ignored)
    if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
        raise ValueError("A data set without images has no score: eval_dataset is empty.")
    dataset = as_loaded(dataset, "eval_dataset", partial(_scheme, model, processor), names, num_bands(processor))
    if not is_loaded(dataset):
        return dataset
    check_labels(model, label_info(dataset))
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


def _scheme(model: PreTrainedModel, processor: Any, called: str, classes: list[str] | None) -> LabelScheme:
    """What the numbers in the masks of a data set mean: the classes of its features, else those of the network."""
    names = class_names(model.config.id2label) if classes is None else classes
    reduces = bool(getattr(processor, "do_reduce_labels", False))
    if reduces:
        logger.warning_once(  # of each evaluation anew otherwise
            f"{called}: the image processor has do_reduce_labels, so 0 in the masks is taken for no class and 1 for "
            f"{names[0]!r}."
        )
    return scheme_of(LabelInfo.from_names(called, names, voc_palette(len(names))), reduces)


def _source_maker(model: PreTrainedModel, processor: Any, names: ColumnNames) -> SourceMaker:
    """Makes the source of a stream, for `training_stream`."""

    def make(where: str, rows: Any, labelled: bool) -> Source:
        if isinstance(rows, datasets.IterableDataset) and rows._distributed is not None:
            raise ValueError(
                f"{where} is split by split_dataset_by_node, and the trainer shares it among the processes by itself: "
                "pass the whole stream."
            )
        check_processor(model.config, processor)
        scheme = None
        if labelled:
            scheme = _scheme(model, processor, dataset_name(rows), named_classes(rows, names))
            check_labels(model, scheme.info)
        return Source(rows, RowReader(where, scheme, names, num_bands(processor)))

    return make


def _split(stream: Any) -> str:
    return str(stream.split or "eval") if isinstance(stream, datasets.IterableDataset) else "eval"


def _train_transform(args: DistillationArguments, processor: Any, model: PreTrainedModel) -> TrainTransform:
    processed = fixed_size(_needed(processor))
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
    if not isinstance(processor, BaseImageProcessor) and not hasattr(processor, "do_resize"):
        raise ValueError(
            f"processing_class is a {type(processor).__name__}, and must be an image processor of transformers (such "
            "as SegformerImageProcessor), which is saved with the student."
        )
    check_keeps_whole_images(processor)
    return processor
