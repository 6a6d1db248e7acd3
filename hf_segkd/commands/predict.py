"""`hf-segkd predict`: writes pictures of a network's predictions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from hf_segkd.commands.command_line import TileFlags, parse_arguments
from hf_segkd.commands.prediction_files import LEGEND, are_there, image_files, refuse_overwriting, save
from hf_segkd.data import class_colours, class_names
from hf_segkd.data.image_files import read_rgb
from hf_segkd.data.image_processors import num_bands
from hf_segkd.data.multiband import read_bands
from hf_segkd.data.numberings import official_numbers
from hf_segkd.evaluation.pictures import legend, overlay
from hf_segkd.networks import with_taps
from hf_segkd.networks.channels import check_processor
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network
from hf_segkd.networks.tiles import check_tile
from hf_segkd.training.run_settings import digest

LONGEST_WAIT = timedelta(days=30)  # how long processes that are done wait for the others


@dataclass
class PredictionCommand(TileFlags):
    """Flags: the network and the images."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    images: list[str] = field(metadata={"help": "Image files, or folders of them and of further folders."})
    output: str = field(
        metadata={
            "help": "Folder to write to, in which folders are as in the ones of images: NAME.png is the overlay, "
            "NAME_mask.png the class ids. Pictures of the same network and flags that are there already are kept."
        }
    )
    masks_only: bool = field(default=False, metadata={"help": "Write the masks, and no overlays."})
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
    """Write an overlay and a mask for each image; returns the overlays' paths (if only masks are written, theirs).

    Under `accelerate launch` each process takes its share of the images. A file appears when it is whole, so a run that
    was stopped continues with the missing images when it is started again.

    Raises:
        ValueError: If the flags make no sense, or, when all others are done, some images could not be read.
    """
    (command,) = parse_arguments(PredictionCommand, args=args)
    if not 0 <= command.opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {command.opacity}.")
    check_tile(command.tile, command.overlap)
    state = PartialState(cpu=command.use_cpu, timeout=LONGEST_WAIT)
    output = Path(command.output)
    files = image_files(command.images, output)
    refuse_overwriting(files, output)
    state.wait_for_everyone()  # nobody writes before all have the same list
    output.mkdir(parents=True, exist_ok=True)
    model, processor = load_network(command.model)
    check_processor(model.config, processor)
    bands = num_bands(processor)
    model = with_taps(model.to("cpu" if command.use_cpu else state.device))  # also turns masks with classes into logits
    names = class_names(model.config.id2label)
    numbers = np.arange(len(names), dtype=np.uint8 if len(names) <= 256 else np.uint16)
    if command.numbering != "classes":
        numbers = official_numbers(command.numbering, names)
    palette = class_colours(names)
    made_with = _made_with(command, model, processor)
    share = list(files)[state.process_index :: state.num_processes]
    written, kept, refused = [], 0, []
    for file in tqdm(share, unit="image", disable=not state.is_main_process):
        picture, mask_file = output / f"{files[file]}.png", output / f"{files[file]}_mask.png"
        wanted = [mask_file] if command.masks_only else [picture, mask_file]
        if are_there(wanted, file, made_with):
            written.append(wanted[0])
            kept += 1
            continue
        try:
            image = read_rgb(str(file), str(file)) if bands is None else read_bands(str(file), str(file), bands)
        except ValueError as error:  # go on with the others
            refused.append(str(error))
            continue
        mask = predict(model, processor, image, command.tile, command.overlap).cpu().numpy()
        mask_file.parent.mkdir(parents=True, exist_ok=True)
        if not command.masks_only:
            save(overlay(image, mask, palette, command.opacity), picture)
        save(Image.fromarray(numbers[mask]), mask_file, made_with)  # last, so that it shows that both exist
        written.append(wanted[0])
    if state.is_main_process and not command.masks_only:
        save(legend(names, palette, width=480), output / LEGEND, made_with)
    results = gather_object([(len(written), kept, refused)])  # waits for all: an error ends the other processes
    state.destroy_process_group()
    if state.is_main_process:
        _report(results, command)
    return written


def _report(results: list[tuple[int, int, list[str]]], command: PredictionCommand) -> None:
    """Report what all processes wrote, and raise for what they could not read."""
    written, kept = (sum(result[part] for result in results) for part in (0, 1))
    refused = sorted(error for result in results for error in result[2])
    what = "masks" if command.masks_only else f"overlays with their masks, and {LEGEND},"
    before = f" {kept} of them were there before." if kept else ""
    print(f"Wrote {written} {what} to {command.output}.{before}")
    if refused:
        raise ValueError("\n".join([f"{len(refused)} of {written + len(refused)} images could not be read.", *refused]))


def _made_with(command: PredictionCommand, model: nn.Module, processor: Any) -> str:
    """A hash of what pictures depend on beside their images: weights, classes, image processor and flags."""
    places = ("model", "images", "output", "use_cpu")
    flags = {name: value for name, value in asdict(command).items() if name not in places}
    facts = [digest(model), model.config.id2label, processor.to_json_string(), flags]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
