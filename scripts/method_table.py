"""The README's table of methods, from the losses themselves: python scripts/method_table.py [--write].

Parameters and memory are those of a DeepLabV3+ with ResNet-18 that learns from one with ResNet-101, 21 classes.
Memory is what the loss keeps for its backward pass and as state, for two crops of 256 x 256.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse

import torch

from hf_segkd import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.evaluation.reports import table
from hf_segkd.losses import LOSSES, AbstractDistillationLoss, create_loss
from hf_segkd.training.distiller import network_spec
from hf_segkd.types import NetworkSpec

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- methods: made by scripts/method_table.py -->", "<!-- end of methods -->"
BATCH, CROP, NUM_CLASSES = 2, 256, 21


def main() -> None:
    """Print the table, or put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    text = method_table()
    if parser.parse_args().write:
        README.write_text(in_readme(README.read_text(), text))
    else:
        print(text)


def in_readme(readme: str, text: str) -> str:
    """The README with this table in place of the one it has."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def method_table() -> str:
    """One row for each method."""
    student, teacher = spec("resnet18"), spec("resnet101")
    header = ["name", "matches", "taps", "labels", "weight", "extra parameters", "extra MiB", "paper"]
    return table(header, [row(name, student, teacher) for name in LOSSES])


def row(name: str, student: NetworkSpec, teacher: NetworkSpec) -> list[str]:
    """What the table says of a method."""
    loss = create_loss(name, student, teacher)
    parameters = sum(parameter.numel() for parameter in loss.parameters())
    weights = loss.weights
    title = f"[{loss.paper.venue}](https://arxiv.org/abs/{loss.paper.arxiv})" if loss.paper.arxiv else loss.paper.venue
    return [
        f"`{name}`",
        loss.matches,
        ", ".join(loss.student_taps),
        "yes" if loss.needs_labels else "",
        ", ".join(f"{weight:.4g}" if len(weights) == 1 else f"{term} {weight:.4g}" for term, weight in weights.items()),
        f"{parameters / 1e6:.2f} M" if parameters else "",
        f"{kept_bytes(loss, student, teacher) / 2**20:.1f}",
        title,
    ]


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
