"""The tables of methods in README.md and docs/methods.md, and docs/method_arguments.md: made from the losses.

python scripts/method_table.py [--write]

Parameters and memory are those of a DeepLabV3+ with ResNet-18 that learns from one with ResNet-101, 21 classes.
Memory is what the loss keeps for its backward pass and as state, for two crops of 256 x 256.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from hf_segkd import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.evaluation.reports import table
from hf_segkd.losses import LOSSES, AbstractDistillationLoss, create_loss
from hf_segkd.training.distiller import network_spec
from hf_segkd.types import NetworkSpec

README = Path(__file__).parents[1] / "README.md"
METHODS_PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
ARGUMENTS_PAGE = Path(__file__).parents[1] / "docs" / "method_arguments.md"
START, END = "<!-- methods: made by scripts/method_table.py -->", "<!-- end of methods -->"
BATCH, CROP, NUM_CLASSES = 2, 256, 21

INTRODUCTION = """# Arguments of the methods

`--method NAME --method_kwargs '{"ARGUMENT": VALUE}'`, or `create_loss(NAME, student, teacher, ARGUMENT=VALUE)` in
Python. Types and defaults are JSON's. A feature is named as in `network.tap_channels`. A preset sets several arguments;
those that are given beside it win. See also [which method to take](methods.md#which-one-to-take) and
[what gives the numbers of public code](methods.md#arguments-that-give-what-public-code-computes).

`python scripts/method_table.py --write` makes this page from the losses' signatures and docstrings.
"""
TYPES = {
    float: "number",
    int: "whole number",
    bool: "true or false",
    str: "feature",
    str | None: "feature or null",
    tuple[str, ...]: "list of features",
    Mapping[str, float]: "feature -> number",
}


def main() -> None:
    """Print table and page, or put them into README.md and docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them")
    tables = {README: catalogue(), METHODS_PAGE: method_table()}
    if parser.parse_args().write:
        for page, text in tables.items():
            page.write_text(with_table(page.read_text(), text))
        ARGUMENTS_PAGE.write_text(arguments_page())
    else:
        print(*tables.values(), arguments_page(), sep="\n\n")


def with_table(page: str, text: str) -> str:
    """The page with this table in place of the one it has."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def catalogue() -> str:
    """Name, idea and paper of each method."""
    return table(["name", "matches", "paper"], [entry(name) for name in LOSSES])


def entry(name: str) -> list[str]:
    """What the catalogue says of a method."""
    paper = LOSSES[name].paper
    title = f"[{paper.venue}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.venue
    return [f"`{name}`", LOSSES[name].matches, title]


def method_table() -> str:
    """What each method reads and costs."""
    student, teacher = spec("resnet18"), spec("resnet101")
    header = ["name", "features", "labels", "weight", "extra parameters", "extra MiB"]
    return table(header, [row(name, student, teacher) for name in LOSSES])


def row(name: str, student: NetworkSpec, teacher: NetworkSpec) -> list[str]:
    """What the table says of a method."""
    loss = create_loss(name, student, teacher)
    parameters = sum(parameter.numel() for parameter in loss.parameters())
    weights = loss.weights
    return [
        f"`{name}`",
        ", ".join(loss.student_taps),
        "yes" if loss.needs_labels else "",
        ", ".join(f"{weight:.4g}" if len(weights) == 1 else f"{term} {weight:.4g}" for term, weight in weights.items()),
        f"{parameters / 1e6:.2f} M" if parameters else "",
        f"{kept_bytes(loss, student, teacher) / 2**20:.1f}",
    ]


def arguments_page() -> str:
    """The page of all methods' arguments and presets."""
    return "\n".join([INTRODUCTION, *(arguments_of(loss) for loss in LOSSES.values())])


def arguments_of(loss: type[AbstractDistillationLoss]) -> str:
    """A method's section of the page."""
    described, types = descriptions(loss), get_type_hints(loss.__init__)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(loss).parameters.items()
        if name not in ("student", "teacher")
    }
    items = [
        f"`{name}` ({type_name(types[name])}, default {code(value)}): {described[name]}"
        for name, value in defaults.items()
    ]
    for argument, presets in loss.presets.items():
        for name, values in presets.items():
            sets = "sets " + ", ".join(f"`{key}` {code(value)}" for key, value in values.items())
            items.append(
                f"{code({argument: name})} {'is the default' if values.items() <= defaults.items() else sets}."
            )
    lines = [textwrap.fill(f"- {item}", 120, subsequent_indent="  ", break_on_hyphens=False) for item in items]
    return "\n".join([f"## `{loss.name}`", "", f"{loss.paper.title} ({loss.paper.venue}).", "", *lines, ""])


def descriptions(loss: type[AbstractDistillationLoss]) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each argument; the class's own word comes last."""
    found = {}
    for base in reversed(loss.__mro__):
        section = re.search(r"^Args:\n((?:    .*\n|\n)+)", inspect.cleandoc(base.__doc__ or "") + "\n", flags=re.M)
        for name, text in re.findall(r"^    (\w+): ((?:.*\n)(?:        .*\n)*)", section[1] if section else "", re.M):
            found[name] = " ".join(text.split())
    return found


def type_name(hint: Any) -> str:
    """A type in the words of JSON."""
    return ", ".join(map(code, get_args(hint))) if get_origin(hint) is Literal else TYPES[hint]


def code(value: Any) -> str:
    """A value as one writes it in JSON."""
    return f"`{json.dumps(value)}`"


def spec(backbone: str) -> NetworkSpec:
    """What a DeepLabV3+ offers."""
    config = DeepLabV3PlusConfig(backbone=backbone, num_labels=NUM_CLASSES)
    return network_spec(DeepLabV3PlusForSemanticSegmentation(config))


def kept_bytes(loss: AbstractDistillationLoss, student: NetworkSpec, teacher: NetworkSpec) -> int:
    """Bytes of the loss's buffers, and of the tensors it makes and keeps for its backward pass."""
    inputs = features(student, 1), features(teacher, 2)
    labels = torch.randint(NUM_CLASSES, (BATCH, CROP, CROP), generator=torch.Generator().manual_seed(3))
    known = {tensor.untyped_storage().data_ptr() for tensor in [*inputs[0].values(), *inputs[1].values()]}
    known |= {parameter.untyped_storage().data_ptr() for parameter in loss.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        terms = loss(*inputs, labels)
    del terms
    state = sum(buffer.numel() * buffer.element_size() for buffer in loss.buffers())
    return state + sum(storage.nbytes() for storage in kept.values())


def features(network: NetworkSpec, seed: int) -> dict[str, torch.Tensor]:
    """Random maps of every tap, at the strides of these networks."""
    generator = torch.Generator().manual_seed(seed)
    maps = {"classifier_weight": torch.randn(NUM_CLASSES, network.channels["decoder"], 1, 1, generator=generator)}
    for tap, channels in network.channels.items():
        size = CROP // stride(tap)
        maps[tap] = torch.randn(BATCH, channels, size, size, generator=generator)
    return {tap: map_.requires_grad_() for tap, map_ in maps.items()}


def stride(tap: str) -> int:
    """Image pixels per pixel of a tap."""
    place = tap.removesuffix("_pre").removesuffix("_post")
    return {"low_level": 4, "stage1": 4, "decoder": 4, "logits": 4, "stage2": 8}.get(place, 16)


if __name__ == "__main__":
    main()
