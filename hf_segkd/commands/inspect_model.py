"""`hf-segkd inspect_model`: prints a table of the maps of a network that distillation can compare."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import OneFormerConfig, PreTrainedModel

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.evaluation.reports import table
from hf_segkd.networks import FeatureNetwork, trial_size, with_taps
from hf_segkd.networks.feature_paths import Tap, recorded
from hf_segkd.networks.loading import explained, load_config, load_model
from hf_segkd.networks.outputs import image_channels

# Height and width of the image when neither a flag nor the config says one.
DEFAULT_SIZE = 256


@dataclass
class InspectionCommand:
    """Flags: the network to inspect."""

    model: str = field(metadata={"help": "Folder or Hub id of the network; may also come first, without the flag."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width of the image that is tried; by default the config's, or 256."}
    )
    config_only: bool = field(default=False, metadata={"help": "Load the config alone and draw the weights."})
    all: bool = field(default=False, metadata={"help": "Also list what is inside of blocks that give a map."})

    def __post_init__(self) -> None:
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"--image_size takes height and width in pixels, got {self.image_size}.")


@dataclass(frozen=True)
class Candidate:
    """A map that a feature can name.

    Attributes:
        path: Its name: a module's path, with `:N` where it gives several maps; in hf_segkd's networks the feature.
        kind: The module's class.
        shape: (b, c, h, w).
        taps: The default features that are this map.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    taps: tuple[str, ...] = ()


def main(args: list[str] | None = None) -> list[Candidate]:
    """Print the table, and return its rows."""
    flags = list(sys.argv[1:] if args is None else args)
    if flags and not flags[0].startswith("-"):
        flags = ["--model", *flags]
    (command,) = parse_arguments(InspectionCommand, args=flags)
    model = load(command)
    size = tuple(command.image_size or trial_size(model.config, DEFAULT_SIZE))
    parameter = next(model.parameters())
    image = torch.zeros(1, image_channels(model.config), *size, dtype=parameter.dtype, device=parameter.device)
    network = _with_any_task(model)
    with torch.inference_mode():
        found = candidates(network, image, command.all)
        logits = network(pixel_values=image).logits
    rows = [[row.path, row.kind, _times(row.shape), _stride(row.shape, size), ", ".join(row.taps)] for row in found]
    print(f"{type(model).__name__}, one image of {size[0]} x {size[1]} (height x width)\n")
    print(table(["name", "type", "map (b, c, h, w)", "stride", "default taps"], rows))
    print(f"\nlogits of the output: {_times(logits.shape)}, stride {_stride(logits.shape, size)}")
    return found


def load(command: InspectionCommand) -> PreTrainedModel:
    """The network, with its weights or with random ones."""
    with explained(command.model):
        if command.config_only:
            config, auto_class = load_config(command.model)
            return auto_class.from_config(config).eval()
        return load_model(command.model)[0].eval()


def candidates(network: torch.nn.Module, image: Tensor, everything: bool = False) -> list[Candidate]:
    """The maps that features can name, in the order of the modules.

    Each map is listed once, under the name of its default feature or else the shortest; of equal blocks in a row only
    the last is listed. Modules inside a block that gives a map are left out, unless they are default features or the
    block is a head.

    Args:
        network: A network with features.
        image: (1, c, hh, ww).
        everything: Leave nothing out.
    """
    if not isinstance(network, FeatureNetwork):
        features = network(pixel_values=image, output_features=True).features
        return [Candidate(tap, "tap of hf_segkd", tuple(feature.shape), (tap,)) for tap, feature in features.items()]
    model = network.model
    paths = [path for path, _ in model.named_modules() if path]
    with recorded(model, paths) as outputs:
        logits = network(pixel_values=image).logits
    maps: dict[Tap, Tensor] = {}
    for path in paths:
        found = outputs[path].maps if path in outputs else []
        for index, map_ in enumerate(found):
            if len(map_) == len(image):  # not the windows of an attention
                maps[Tap(path, index if len(found) > 1 else None)] = map_
    defaults: dict[Tap, list[str]] = {}
    for name, tap in network.taps.items():
        defaults.setdefault(tap, []).append(name)
    if "logits" not in network.taps and (ends := [tap for tap, map_ in maps.items() if map_ is logits]):
        defaults[ends[-1]] = ["logits"]  # the classifier, after the head that it is in
    shown = list(maps) if everything else _not_hidden(maps, defaults, network.config.num_labels)
    rows = [
        Candidate(
            str(tap), type(model.get_submodule(tap.path)).__name__, tuple(maps[tap].shape), tuple(defaults.get(tap, ()))
        )
        for tap in shown
    ]
    return rows if everything else _without_repeats(rows)


def _not_hidden(maps: Mapping[Tap, Tensor], defaults: Container[Tap], num_labels: int) -> list[Tap]:
    # A module that ends in a channel for each class is a head, whose modules are listed too.
    blocks = tuple(f"{tap.path}." for tap, map_ in maps.items() if tap.index is None and map_.shape[1] != num_labels)
    names: dict[int, list[Tap]] = {}
    for tap, map_ in maps.items():
        if tap in defaults or not tap.path.startswith(blocks):
            names.setdefault(id(map_), []).append(tap)
    kept: set[Tap] = set()
    for twins in names.values():  # modules that give one and the same tensor
        shortest = min(twins, key=lambda tap: (tap.index is not None, len(tap.path)))
        kept.update([tap for tap in twins if tap in defaults] or [shortest])
    return [tap for tap in maps if tap in kept]


def _without_repeats(rows: list[Candidate]) -> list[Candidate]:
    """Keep only the last of blocks in a row that differ only in their number, which shows how many there are."""
    kept: list[Candidate] = []
    count = 1
    for row, following in itertools.zip_longest(rows, rows[1:]):
        if following is not None and not row.taps and _like(row) == _like(following):
            count += 1
            continue
        kept.append(row if count == 1 else replace(row, kind=f"{row.kind} (last of {count})"))
        count = 1
    return kept


def _like(row: Candidate) -> tuple[object, ...]:
    return re.sub(r"\d+", "N", row.path), row.kind, row.shape


def _with_any_task(model: PreTrainedModel) -> torch.nn.Module:
    if isinstance(model.config, OneFormerConfig):  # the text of its task changes no shape
        task = torch.zeros(1, model.config.task_seq_len, dtype=torch.int64)
        return FeatureNetwork(model, inputs={"task_inputs": task})
    return with_taps(model)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _stride(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    height, width = (f"{image / found:.3g}" for image, found in zip(size, shape[-2:], strict=True))
    return height if height == width else f"{height} x {width}"
