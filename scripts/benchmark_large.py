"""What a large picture costs beyond the network: peak memory, each in a process of its own, and time, side by side.

    python scripts/benchmark_large.py [--width 4000 --height 3000]

A small network (DeepLabV3+ on MobileNetV2 of width 0.1, 150 classes), fp32, on the CPU with one thread. "At once" makes
the logits of all classes at the picture's size; it is timed on 2 million pixels, for which most machines have room.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import re
import statistics
import subprocess
import time
from typing import Any

import torch
from PIL import Image
from transformers import SegformerImageProcessor

from hf_segkd.data.image_processors import whole_image
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.networks.inference import logits_at, predict

NUM_LABELS, TIMED_SIZE = 150, (1600, 1200)
# Variant -> the one that shows what its network takes.
MEMORY = {"whole": "network", "tiles": "network_tile"}
TIMED = ("at_once", "whole", "tiles")


class Bench:
    """A network and a picture."""

    def __init__(self, width: int, height: int, tile: int) -> None:
        torch.manual_seed(0)
        heads = {"aspp_channels": 8, "decoder_channels": 8, "num_labels": NUM_LABELS}
        config = DeepLabV3PlusConfig(backbone="mobilenet_v2", depth_multiplier=0.1, **heads)
        self.model = DeepLabV3PlusForSemanticSegmentation(config).eval()
        self.processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=False)
        self.image = Image.effect_noise((width, height), 64).convert("RGB")
        self.tile = tile

    def logits(self, image: Image.Image, **options: bool) -> torch.Tensor:
        """What the network says of an image."""
        with torch.inference_mode():
            return self.model(pixel_values=whole_image(self.processor, image)[None], **options).logits

    def network(self) -> Any:
        """The network alone on the whole picture, its logits at stride 4."""
        return self.logits(self.image, resize_logits=False)

    def network_tile(self) -> Any:
        """The same on a tile of it."""
        return self.logits(self.image.crop((0, 0, self.tile, self.tile)), resize_logits=False)

    def at_once(self) -> Any:
        """All logits at the picture's size, then their largest."""
        return logits_at(self.logits(self.image), self.image.size[::-1])[0].argmax(0)

    def whole(self) -> Any:
        """`predict`."""
        return predict(self.model, self.processor, self.image)

    def tiles(self) -> Any:
        """`predict` in tiles."""
        return predict(self.model, self.processor, self.image, self.tile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4000, help="of the picture whose memory is measured")
    parser.add_argument("--height", type=int, default=3000, help="the same")
    parser.add_argument("--tile", type=int, default=1024, help="side of the tiles")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each variant; the median counts")
    parser.add_argument("--peak_of", choices=[*MEMORY, *MEMORY.values()], help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak_of is not None:
        print(peak(Bench(given.width, given.height, given.tile), given.peak_of))
        return
    pixels = given.width * given.height
    print(f"{given.width} x {given.height} pixels, {NUM_LABELS} classes, bytes for each pixel:")
    for variant, own in MEMORY.items():
        both, network = (peak_in_a_process(name, given) for name in (variant, own))
        beyond = (both - network) / pixels
        print(f"  {variant:<8} {both / pixels:6.0f}, of which beyond the network itself {beyond:5.0f}")
    bench = Bench(*TIMED_SIZE, given.tile)
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    for _ in range(given.rounds):
        for name in TIMED:  # in turns, so that a busy machine disturbs all alike
            start = time.process_time()
            getattr(bench, name)()
            seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{TIMED_SIZE[0]} x {TIMED_SIZE[1]} pixels, seconds of the processor, and their ratio to all at once:")
    for name in TIMED:
        print(f"  {name:<8} {median[name]:6.2f}  {median[name] / median['at_once']:.2f}")


def peak_in_a_process(variant: str, given: argparse.Namespace) -> int:
    """Bytes that a variant takes at most, beyond what the network and the picture take before it."""
    size = ["--width", str(given.width), "--height", str(given.height), "--tile", str(given.tile)]
    command = [sys.executable, str(Path(__file__).resolve()), *size, "--peak_of", variant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(bench: Bench, variant: str) -> int:
    """The same, in this process, which must be a new one."""
    image, bench.image = bench.image, bench.image.crop((0, 0, 64, 64))
    bench.whole()  # what libraries load on their first use is not the picture's
    bench.image = image
    before = peak_memory()
    getattr(bench, variant)()
    return peak_memory() - before


def peak_memory() -> int:
    """Bytes; not getrusage's, which begin with those of the process that started this one."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
