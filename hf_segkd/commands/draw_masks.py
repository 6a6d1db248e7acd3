"""`hf-segkd draw_masks`: draws index masks from polygons and run-length encodings, once."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.data.annotated_images import PlacedImage, link_or_copy, place
from hf_segkd.data.annotations import AnnotatedImage, Annotations, class_ids, draw, require_pycocotools
from hf_segkd.data.class_files import read_classes
from hf_segkd.data.coco import read_coco
from hf_segkd.data.image_files import TURNS
from hf_segkd.data.labelme import read_labelme
from hf_segkd.data.labels import IGNORE_INDEX
from hf_segkd.evaluation.reports import table
from hf_segkd.suggestions import did_you_mean

logger = logging.getLogger(__name__)

CLASSES_FILE = "classes.json"
VOID = "void"
LABELME_IGNORE = "__ignore__"  # labelme's own scripts use it for pixels without a class


@dataclass(kw_only=True)
class DrawingCommand:
    """Flags: the annotations to draw, and their classes."""

    annotations: str = field(metadata={"help": "COCO JSON file, or a folder of labelme's JSON files."})
    images: str = field(metadata={"help": "Folder of the images."})
    output: str = field(
        metadata={"help": f"Folder of the data set: SPLIT/images, SPLIT/labels and {CLASSES_FILE} go there."}
    )
    unlabelled: str = field(
        metadata={
            "help": f"Class of the pixels that no shape covers, such as background; or {VOID}: they have no class "
            "(255), for images in which everything is labelled."
        }
    )
    split: str = field(default="train", metadata={"help": "Name of the split."})
    classes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names in the order of the class ids, or a file with them; by default the class of `unlabelled` "
            "and COCO's categories in the order of their ids. labelme's files have no such list."
        },
    )
    void_labels: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Labels whose pixels have no class (255); {LABELME_IGNORE} is one unless it has another place."
        },
    )
    left_out_labels: list[str] = field(
        default_factory=list, metadata={"help": "Labels that are not drawn, as if their shapes were not there."}
    )


def main(args: list[str] | None = None) -> Path:
    """Write the masks, put the images beside them, print what was drawn; returns the folder of the masks.

    Raises:
        ValueError: If the annotations cannot be read, a label is not among the classes, an image is missing or of
            another size, or the masks or other classes exist already. Nothing is written then.
    """
    (command,) = parse_arguments(DrawingCommand, args=args)
    require_pycocotools()
    source, root = Path(command.annotations).expanduser(), Path(command.output).expanduser()
    split, masks = root / command.split, root / command.split / "labels"
    if masks.exists():
        raise ValueError(f"{masks} exists already; give another output or split, or remove it.")
    if not source.exists():
        raise ValueError(f"annotations: there is no file or folder {source}.")
    annotations = read_labelme(source) if source.is_dir() else read_coco(source)
    names = class_names_of(command, annotations)
    _tell_of_unknown_labels(command, {*(annotations.names or ()), *annotations.labels})
    void = list(command.void_labels)
    if LABELME_IGNORE not in (*names, *void, *command.left_out_labels):
        void.append(LABELME_IGNORE)
    ids = class_ids(names, void, command.left_out_labels, annotations.labels)
    file = root / CLASSES_FILE
    _check_classes_file(file, names)
    unlabelled = IGNORE_INDEX if command.unlabelled == VOID else names.index(command.unlabelled)
    images = annotations.images
    if unlabelled == IGNORE_INDEX:
        images = _with_shapes(images, ids)
    placed = place(images, Path(command.images).expanduser())
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".masks-", dir=root) as scratch:
        drawn = Path(scratch, "labels")
        drawn.mkdir()
        told = _draw_all(annotations, placed, ids, unlabelled, drawn)
        (split / "images").mkdir(parents=True, exist_ok=True)
        for image in placed:
            link_or_copy(image.path, split / "images" / image.target)
        os.replace(drawn, masks)
    file.write_text(json.dumps(names, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(told.describe(names, len(placed)))
    print(f"\nMasks are in {masks}. They are read by:")
    print(f"  load_segmentation_dataset('folder', {str(root)!r}, {command.split!r}, classes={str(file)!r})")
    return masks


def class_names_of(command: DrawingCommand, annotations: Annotations) -> list[str]:
    """Names of the classes in the order of their ids.

    Raises:
        ValueError: If they are not known, too many or not unique, or the class of unlabelled pixels is not among them.
    """
    if command.classes is not None:
        one_file = len(command.classes) == 1 and Path(command.classes[0]).expanduser().is_file()
        names = read_classes(command.classes[0]).names if one_file else command.classes
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise ValueError(f"classes: {', '.join(twice)} occurs several times.")
        if command.unlabelled not in (VOID, *names):
            raise ValueError(
                f"unlabelled: {command.unlabelled!r} is not in classes: {', '.join(names)}."
                f"{did_you_mean(command.unlabelled, names)} Add it, or give {VOID!r} for pixels without a class."
            )
    elif annotations.names is None:
        raise ValueError(
            "labelme's files do not say which classes there are, and another split may have others: give them in their "
            f"order with --classes. The labels in these files are {', '.join(annotations.labels)}."
        )
    else:
        without = {*command.void_labels, *command.left_out_labels}
        names = [name for name in annotations.names if name not in without]
        if command.unlabelled not in (VOID, *names):
            names = [command.unlabelled, *names]
    if len(names) > IGNORE_INDEX:
        raise ValueError(f"There are {len(names)} classes, and masks of 8 bits hold at most {IGNORE_INDEX}.")
    return names


def _tell_of_unknown_labels(command: DrawingCommand, known: set[str]) -> None:
    for label in sorted({*command.void_labels, *command.left_out_labels} - known):
        logger.warning(
            f"No shape has the label {label!r} of void_labels or left_out_labels.{did_you_mean(label, known)}"
        )


def _with_shapes(images: list[AnnotatedImage], ids: dict[str, int | None]) -> list[AnnotatedImage]:
    """The images that have a label; the others would teach nothing."""
    labelled = [image for image in images if any(ids[shape.label] is not None for shape in image.shapes)]
    if not labelled:
        raise ValueError("No image has a shape, so that there is nothing to draw.")
    if empty := len(images) - len(labelled):
        logger.warning(
            f"{empty} of {len(images)} images have no shape, so that no pixel is labelled; no mask is drawn."
        )
    return labelled


@dataclass
class Account:
    """Counts of what was drawn.

    Args:
        shapes: Label -> number of shapes drawn.
        pixels: Number of pixels of each value, (256,).
        contested: Number of pixels that shapes of several classes share.
    """

    shapes: Counter[str]
    pixels: np.ndarray
    contested: int = 0

    def describe(self, names: Sequence[str], images: int) -> str:
        """A table of the classes."""
        total = int(self.pixels.sum())
        rows = [
            [str(index), name, str(self.shapes[name]), f"{100 * self.pixels[index] / total:.2f} %"]
            for index, name in enumerate(names)
        ]
        rows.append([str(IGNORE_INDEX), "no class", "", f"{100 * self.pixels[IGNORE_INDEX] / total:.2f} %"])
        shared = f"{100 * self.contested / total:.2f} % of the pixels lie in shapes of several classes."
        return f"{table(['id', 'class', 'shapes', 'pixels'], rows)}\n\n{images} masks. {shared}"


def _draw_all(
    annotations: Annotations,
    placed: list[PlacedImage],
    ids: dict[str, int | None],
    unlabelled: int,
    folder: Path,
) -> Account:
    told = Account(Counter(), np.zeros(256, dtype=np.int64))
    not_drawn = Counter(annotations.not_drawn)
    for file in tqdm(placed, unit="image"):
        mask, empty, contested = draw(file.image, ids, unlabelled, annotations.small_on_top)
        picture = Image.fromarray(mask)
        if file.orientation in TURNS:
            picture = picture.transpose(TURNS[file.orientation])
        picture.save(folder / f"{Path(file.target).stem}.png")
        told.shapes.update(shape.label for shape in file.image.shapes)
        told.pixels += np.bincount(mask.ravel(), minlength=256)
        told.contested += contested
        not_drawn.update({(label, "covers no pixel"): count for label, count in empty.items()})
    if not_drawn:
        kinds = ", ".join(f"{count} {label!r} ({kind})" for (label, kind), count in sorted(not_drawn.items()))
        logger.warning(f"{sum(not_drawn.values())} shapes are not regions and were not drawn: {kinds}.")
    left_out = Counter({label: told.shapes[label] for label, value in ids.items() if value is None})
    if left_out:
        logger.warning(f"Left out as asked for: {', '.join(f'{n} {label!r}' for label, n in left_out.items())}.")
    return told


def _check_classes_file(file: Path, names: list[str]) -> None:
    if file.exists() and (there := read_classes(file).names) != names:
        raise ValueError(
            f"{file} holds the classes {', '.join(there)}, of another split; here they are {', '.join(names)}. Give "
            f"--classes {file}, or another output."
        )
