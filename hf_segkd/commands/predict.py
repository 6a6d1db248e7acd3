"""`scripts/predict.py`: pictures of what a network sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.data import class_colours, class_names
from hf_segkd.data.files import IMAGE_SUFFIXES
from hf_segkd.data.image_files import read_rgb
from hf_segkd.data.image_processors import num_bands
from hf_segkd.data.multiband import read_bands
from hf_segkd.data.numberings import official_numbers
from hf_segkd.evaluation.pictures import legend, overlay
from hf_segkd.networks import with_taps
from hf_segkd.networks.channels import check_processor
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network


@dataclass
class PredictionCommand:
    """What to look at."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    images: list[str] = field(metadata={"help": "Image files, or folders of them."})
    output: str = field(metadata={"help": "Folder to write to: NAME.png is the overlay, NAME_mask.png the class ids."})
    numbering: str = field(
        default="classes",
        metadata={
            "help": "Numbers in NAME_mask.png: the network's class ids (classes), or the official ones that the server "
            "of a benchmark takes: cityscapes (labelIds, road is 7) or ade20k (1 to 150)."
        },
    )
    opacity: float = field(default=0.6, metadata={"help": "0 shows the image alone, 1 the classes alone."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU."})


def main(args: list[str] | None = None) -> list[Path]:
    """Write an overlay and a mask for each image; returns the overlays' paths.

    Raises:
        ValueError: If the flags make no sense, or, when all others are done, some images could not be read.
    """
    (command,) = parse_arguments(PredictionCommand, args=args)
    if not 0 <= command.opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {command.opacity}.")
    output = Path(command.output)
    files = image_files(command.images)
    _refuse_overwriting(files, output)
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() and not command.use_cpu else "cpu"
    model, processor = load_network(command.model)
    check_processor(model.config, processor)
    bands = num_bands(processor)
    model = with_taps(model.to(device))  # also masks with classes become logits
    names = class_names(model.config.id2label)
    numbers = np.arange(len(names), dtype=np.uint8 if len(names) <= 256 else np.uint16)
    if command.numbering != "classes":
        numbers = official_numbers(command.numbering, names)
    palette = class_colours(names)
    written, refused = [], []
    for file in tqdm(files, unit="image"):
        try:
            image = read_rgb(str(file), str(file)) if bands is None else read_bands(str(file), str(file), bands)
        except ValueError as error:  # the others are worth having
            refused.append(str(error))
            continue
        mask = predict(model, processor, image).cpu().numpy()
        written.append(output / f"{file.stem}.png")
        overlay(image, mask, palette, command.opacity).save(written[-1])
        Image.fromarray(numbers[mask]).save(output / f"{file.stem}_mask.png")
    legend(names, palette, width=480).save(output / "legend.png")
    print(f"Wrote {len(written)} overlays with their masks, and legend.png, to {output}.")
    if refused:
        raise ValueError("\n".join([f"{len(refused)} of {len(files)} images could not be read.", *refused]))
    return written


def image_files(paths: list[str]) -> list[Path]:
    """The images among files and in folders, in order of name.

    Raises:
        ValueError: If a path does not exist, there is no image, or two images would be written to one name.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"There is no file or folder {path}.")
    if not files:
        raise ValueError(f"No images ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(paths)}.")
    stems = [file.stem for file in files]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(f"Several images are called {sorted(twice)[0]!r}; their pictures would overwrite each other.")
    return files


def _refuse_overwriting(files: list[Path], output: Path) -> None:
    inputs = {file.resolve() for file in files}
    targets = [name for file in files for name in (f"{file.stem}.png", f"{file.stem}_mask.png")] + ["legend.png"]
    for name in targets:
        if (output / name).resolve() in inputs:
            raise ValueError(f"{output / name} is one of the images and would be overwritten. Choose another --output.")
        if targets.count(name) > 1:
            raise ValueError(f"Two pictures would be called {name!r}. Rename an image, or predict them one by one.")
