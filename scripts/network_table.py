"""Parameters and multiply-adds of the papers' networks: python scripts/network_table.py [--write].

The table is in docs/networks.md. Nothing is computed: the networks are built and run on PyTorch's meta device.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

import hf_segkd  # noqa: F401  registers the networks with the Auto classes
from hf_segkd.evaluation.reports import table
from hf_segkd.networks.profiling import count_macs

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
START, END = "<!-- networks: made by scripts/network_table.py -->", "<!-- end of networks -->"


@dataclass(frozen=True)
class Network:
    """A network of the papers, and what is known of the original.

    Args:
        name: What the papers call it.
        config: Its configuration here; model_type is DeepLabV3+ unless given.
        role: Where it stands in the papers' tables.
        num_labels: Classes.
        size: Height and width of the image.
        parameters: Of the original, in millions.
        gmacs: Multiply-adds of the original for one image of this size, in 1e9.
    """

    name: str
    config: dict[str, Any]
    role: str
    num_labels: int
    size: tuple[int, int]
    parameters: str
    gmacs: str

    def build(self) -> PreTrainedModel:
        """The network, without memory for its weights."""
        config = {"model_type": "segkd-deeplabv3plus", **self.config, "num_labels": self.num_labels}
        with torch.device("meta"):
            return AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model(**config))


ATTNFD_MOBILENET = {"backbone": "mobilenet_v2", "pad_before_expansion": True, "late_dilation": True}
PSPNET, HRNET, ISANET = ({"model_type": f"segkd-{name}"} for name in ("pspnet", "hrnet", "isanet"))
MMSEG = {"layout": "mmsegmentation"}
TEACHER, STUDENT = "teacher", "student"
# AttnFD (arXiv 2403.05451), Table 1: parameters; multiply-adds counted on the authors' code.
ATTNFD = [
    ("DeepLabV3+ ResNet-101", {"backbone": "resnet101"}, TEACHER, "59.3", "92.8"),
    ("DeepLabV3+ ResNet-18", {"backbone": "resnet18"}, STUDENT, "16.6", "42.7"),
    ("DeepLabV3+ MobileNetV2", ATTNFD_MOBILENET, STUDENT, "5.9", "27.1"),
]
# FAKD (arXiv 2208.14143), Tables 1 to 3, which give neither: counted on mmsegmentation's networks, for 150 classes and
# 512 x 512 pixels (ADE20K), then for 19 classes and 512 x 1024 (Cityscapes).
FAKD = [
    ("PSPNet ResNet-101", {**PSPNET, "backbone": "resnet101"}, TEACHER, "68.068", "256.2", "67.968", "511.7"),
    ("PSPNet ResNet-18", {**PSPNET, "backbone": "resnet18"}, STUDENT, "12.816", "54.3", "12.790", "108.5"),
    ("HRNet-W48", {**HRNET, "backbone": "hrnet_w48"}, TEACHER, "65.953", "95.0", "65.859", "186.9"),
    ("HRNet-W18-small", {**HRNET, "backbone": "hrnet_w18_small"}, STUDENT, "3.975", "10.2", "3.939", "19.2"),
    ("DeepLabV3+ ResNet-101", {**MMSEG, "backbone": "resnet101"}, TEACHER, "62.683", "254.8", "62.582", "507.5"),
    ("DeepLabV3+ MobileNetV2", {**MMSEG, "backbone": "mobilenet_v2"}, STUDENT, "15.345", "69.1", "15.244", "136.1"),
    ("ISANet ResNet-101", {**ISANET, "backbone": "resnet101"}, TEACHER, "56.800", "227.5", "56.700", "454.9"),
    ("ISANet ResNet-18", {**ISANET, "backbone": "resnet18"}, STUDENT, "12.112", "52.6", "12.087", "105.1"),
]
NETWORKS = [
    *(Network(name, config, f"AttnFD, {role}", 21, (513, 513), *known) for name, config, role, *known in ATTNFD),
    *(Network(name, config, f"FAKD, {role}", 150, (512, 512), *known[:2]) for name, config, role, *known in FAKD),
    *(Network(name, config, f"FAKD, {role}", 19, (512, 1024), *known[2:]) for name, config, role, *known in FAKD),
]
HEADER = ["network", "in the tables of", "classes", "image", "M parameters", "original", "GMACs", "original"]


def main() -> None:
    """Print the table, or put it into docs/networks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write it into docs/networks.md")
    text = table(HEADER, [row(network) for network in NETWORKS])
    if parser.parse_args().write:
        before, rest = PAGE.read_text().split(START)
        PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")
    else:
        print(text)


def row(network: Network) -> list[str]:
    """What the table says of a network: its numbers with as many digits as the original's."""
    model = network.build()
    numbers = []
    for ours, original in ((model.num_parameters() / 1e6, network.parameters), (macs(model, network), network.gmacs)):
        digits = len(original.partition(".")[2])
        numbers += [f"{ours:.{digits}f}", original]
    height, width = network.size
    return [network.name, network.role, str(network.num_labels), f"{height} x {width}", *numbers]


def macs(model: PreTrainedModel, network: Network) -> float:
    """Multiply-adds of inference, without the auxiliary head, in 1e9."""
    return count_macs(model, network.size) / 1e9


if __name__ == "__main__":
    main()
