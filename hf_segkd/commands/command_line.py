"""`parse_arguments`: reads flags and YAML (flags win); `DataFlags`: the flags that name a data set; `flags_of`."""

from __future__ import annotations

import json
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_segkd.data import load_segmentation_dataset
from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.arguments import json_object

# Subject of `--help` -> its flags. The rest are a command's own, the Hub's by their beginning, and transformers'.
SUBJECTS = {
    "data": (
        *(
            "dataset",
            "data_dir",
            "hub_id",
            "dataset_options",
            "split",
            "train_split",
            "eval_split",
            "max_train_samples",
        ),
        *("max_eval_samples", "image_size", "image_statistics", "check_data", "unlabelled_dir"),
        *(
            "unlabelled_ratio",
            "bad_images",
            "crop_size",
            "scale_range",
            "scale_base",
            "flip_probability",
            "max_class_share",
        ),
        *("photometric", "train_sampling_strategy", "repeat_threshold", "class_weights"),
        *("data_cache", "data_cache_limit"),
    ),
    "student": (
        *("student", "student_config", "pretrained_backbone", "student_taps", "frozen", "ema_decay", "sync_batch_norm"),
    ),
    "teacher": (
        *("teacher", "teacher_taps", "class_map", "teacher_dtype", "teacher_batch_norm", "preflight_images"),
        *("allow_weak_teacher", "teacher_views", "teacher_cache", "teacher_cache_dtype", "teacher_cache_limit"),
    ),
    "method": (
        *("method", "method_kwargs", "distillation_weight", "ce_weight", "label_loss", "label_loss_kwargs"),
        "connector_lr_multiplier",
    ),
    "comparison": ("methods", "seeds", "teacher_flags", "test_split", "equal", "weight_trials", "jobs"),
}
HUB = ("hub_", "push_to_hub")


class _Parser(HfArgumentParser):
    """Its help lists the flags by subject; there are 170 of a training run."""

    def format_help(self) -> str:
        """Usage, then the flags."""
        subject_of = {flag: subject for subject, flags in SUBJECTS.items() for flag in flags}
        kinds = [kind for kind in self.dataclass_types if issubclass(kind, TrainingArguments)]
        of_training = {field.name for kind in kinds for field in fields(kind)}
        groups: dict[str, list[Action]] = {title: [] for title in ("options", *SUBJECTS, "training", "Hub")}
        for action in self._actions:
            title = subject_of.get(action.dest)
            if title is None and action.dest in of_training:
                title = "Hub" if action.dest.startswith(HUB) else "training"
            groups[title or "options"].append(action)
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, self._actions, [])
        for title, actions in groups.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number, as in YAML 1.2; in PyYAML's YAML 1.1 it is a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}$"), list("-+.0123456789")
)


def parse_arguments(*types: type, args: list[str] | None = None) -> tuple[Any, ...]:
    """Parse flags into dataclasses; `--config FILE.yaml` gives defaults that flags override.

    Args:
        *types: Dataclasses whose fields are the flags.
        args: The command line, by default `sys.argv[1:]`.

    Returns:
        One instance of each type.

    Raises:
        SystemExit: With a message, on an unknown flag or YAML key (the nearest known one is named) or a bad value.
    """
    parser, flags = _parser_and_flags(types, args)
    parsed, unknown = _parse(parser, flags)
    unknown = [flag for flag in unknown if flag.startswith("--")] or unknown
    if unknown:
        known = {action.dest for action in parser._actions}
        parser.error(f"unknown flag {unknown[0]}.{did_you_mean(unknown[0].lstrip('-').split('=')[0], known)}")
    return parsed


def given_flags(*types: type, args: list[str] | None = None) -> dict[str, Any]:
    """The flags that a command line and its `--config` give: flag -> value, without those that are left as they are.

    Args:
        *types: Dataclasses, flags of others are passed over.
        args: A command line that `parse_arguments` took, by default `sys.argv[1:]`.
    """
    parser, flags = _parser_and_flags(types, args, strict=False)
    for action in parser._actions:
        action.default = SUPPRESS
    return vars(parser.parse_known_args(flags)[0])


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Flags and values as a command line; a flag without a value, None or no items, is left out."""
    flags = []
    for key, value in values.items():
        if value is None or value == []:
            continue
        if isinstance(value, list):
            flags += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in value)]
        else:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _parser_and_flags(
    types: tuple[type, ...], args: list[str] | None, strict: bool = True
) -> tuple[HfArgumentParser, list[str]]:
    """The parser of the flags, and the command line with what its `--config` holds before it."""
    flags = list(sys.argv[1:] if args is None else args)
    parser = _Parser(
        types,
        allow_abbrev=False,
        usage="%(prog)s --config FILE.yaml [--flag value ...]   (--help lists all flags)",
    )
    known = {action.dest for action in parser._actions} if strict else None
    parser.add_argument("--config", help="YAML file of defaults for the flags below.")
    config, flags = _take_config(flags, parser)
    if any(flag.partition("=")[0] == "--config" for flag in flags):
        parser.error("--config is given twice; one file holds the defaults.")
    return parser, [*_flags_of_yaml(config, known, parser), *flags]


def _parse(parser: HfArgumentParser, flags: list[str]) -> tuple[tuple[Any, ...], list[str]]:
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
    except ValueError as error:  # also from transformers' own checks of its flags
        raise ValueError(str(error)) from error
    # HfArgumentParser hands flags that belong to none of its dataclasses back as a namespace of their own.
    return tuple(part for part in parsed if type(part) in parser.dataclass_types), unknown


def _take_config(flags: list[str], parser: HfArgumentParser) -> tuple[str | None, list[str]]:
    for index, flag in enumerate(flags):
        if flag == "--config":
            if index + 1 == len(flags):
                parser.error("--config needs the path of a YAML file.")
            return flags[index + 1], flags[:index] + flags[index + 2 :]
        if flag.startswith("--config="):
            return flag.removeprefix("--config="), flags[:index] + flags[index + 1 :]
    return None, flags


def _flags_of_yaml(path: str | None, known: set[str] | None, parser: HfArgumentParser) -> list[str]:
    """The keys and values of a YAML file as command line flags, so that argparse checks and converts them alike.

    A key that is not among the known ones is refused, unless these are None.
    """
    if path is None:
        return []
    if not Path(path).is_file():
        parser.error(f"--config: there is no file {path}.")
    try:
        values = _Loader(Path(path).read_text()).get_single_data() or {}
    except yaml.YAMLError as error:
        parser.error(f"{path} is not YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold `key: value` lines, got a {type(values).__name__}.")
    for key in values:
        if known is not None and key not in known:
            parser.error(f"{path}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    return flags_of(values)


@dataclass(kw_only=True)
class TileFlags:
    """How a network is shown large images; see `hf_segkd.networks.tiles`."""

    tile: list[int] | None = field(
        default=None,
        metadata={
            "help": "Side, or height and width, of tiles that large images are shown to the network in, e.g. 1024; by "
            "default it sees whole images."
        },
    )
    overlap: int | None = field(
        default=None, metadata={"help": "Pixels that neighbouring tiles share; by default a quarter of their side."}
    )


@dataclass(kw_only=True)
class DataFlags:
    """Arguments of `load_segmentation_dataset`, all but the split."""

    dataset: str = field(metadata={"help": "Name of the data set, see load_segmentation_dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Its folder."})
    hub_id: str | None = field(default=None, metadata={"help": "A copy of the data set on the Hub."})
    dataset_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of load_segmentation_dataset, as a JSON object."}
    )

    def __post_init__(self) -> None:
        self.dataset_options = json_object(self.dataset_options, "dataset_options")

    @property
    def num_channels(self) -> int | None:
        """Number of bands that images are read with as they are stored; None for RGB."""
        return self.dataset_options.get("num_channels")

    def load(self, split: str) -> datasets.Dataset:
        """One split of the data set."""
        return load_segmentation_dataset(self.dataset, self.data_dir, split, hub_id=self.hub_id, **self.dataset_options)

    def source(self, split: str) -> dict[str, Any]:
        """The origin of the images for a report, so that they can be found again."""
        data_dir = None if self.data_dir is None else str(Path(self.data_dir).absolute())
        flags = {"dataset": self.dataset, "data_dir": data_dir, "hub_id": self.hub_id}
        return {**flags, "dataset_options": self.dataset_options, "split": split}
