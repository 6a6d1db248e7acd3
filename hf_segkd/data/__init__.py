"""Data sets for semantic segmentation: loading, checking, joint augmentation, evaluation."""

from .account import LabelAccount, check_dataset, check_labels_of, count_labels, evenly_spread
from .colours import class_colours
from .decoding import label_info, stored_channels
from .image_processors import check_keeps_whole_images, whole_image
from .labels import LabelInfo, class_names, voc_palette
from .loading import load_segmentation_dataset
from .multiband import MultiBandImage, read_bands
from .photometric import PhotoMetricDistortion, RandomBlur
from .streams import EvaluationStream, TrainingStream
from .torch_datasets import AugmentedDataset, EvaluationDataset, evaluation_collator, train_collator
from .transforms import TrainTransform
from .unlabelled import load_unlabelled_images, without_labels

__all__ = [
    "AugmentedDataset",
    "EvaluationDataset",
    "EvaluationStream",
    "LabelAccount",
    "LabelInfo",
    "MultiBandImage",
    "PhotoMetricDistortion",
    "RandomBlur",
    "TrainTransform",
    "TrainingStream",
    "check_dataset",
    "check_keeps_whole_images",
    "check_labels_of",
    "class_colours",
    "class_names",
    "count_labels",
    "evaluation_collator",
    "evenly_spread",
    "label_info",
    "load_segmentation_dataset",
    "load_unlabelled_images",
    "read_bands",
    "stored_channels",
    "train_collator",
    "voc_palette",
    "whole_image",
    "without_labels",
]
