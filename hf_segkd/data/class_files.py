"""`read_classes`: names, numbers and colours of classes, from Python or from the class file of a tool."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .labels import Colour

Classes = Sequence[str] | Mapping[int, str] | str | os.PathLike

# Columns of tables, in lower case: Roboflow's _classes.csv, ADE's objectInfo150, the class_dict.csv of CamVid.
NAME_COLUMNS = ("class", "name", "label", "class name", "class_name", "classes", "names", "labels")
NUMBER_COLUMNS = ("pixel value", "id", "idx", "index", "value", "class_id", "label_id")
COLOUR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
ADE_COLUMNS = {"idx", "ratio", "train", "val", "name"}

LABELMAP_LINE = re.compile(r"([^:]+):\s*(?:(\d+)\s*,\s*(\d+)\s*,\s*(\d+))?\s*:[^:]*:[^:]*")  # CVAT, Datumaro
COLOUR_LINE = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")  # CamVid's label_colors.txt
NUMBER_LINE = re.compile(r"(\d+)\s*[:,;\t]\s*(\S.*)")  # Pascal Context's labels.txt
COUNTED_LINE = re.compile(r"(\d+)\s+(\S.*)")

FORMS = (
    "a list of names or {number: name}; as a file: one name a line, labelmap.txt (CVAT, Datumaro), _classes.csv "
    "(Roboflow), a table with a header, or JSON or YAML with a list, {number: name}, `classes`, `names`, `id2label` or "
    "COCO's `categories`"
)


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their ids.

    Args:
        names: Names of the classes.
        numbers: Number of each class in masks.
        colours: Colour of each class, where the file gives them for all.
        no_class: Numbers that mean no class, according to the file.
    """

    names: list[str]
    numbers: list[int]
    colours: list[Colour] | None = None
    no_class: tuple[int, ...] = ()


def read_classes(classes: Classes, folder: str | os.PathLike | None = None) -> ClassList:
    """The classes that a user names.

    Args:
        classes: Names in the order of the numbers in the masks, `{number: name}`, or a file with them.
        folder: Folder to look for a file that is not in the working directory.

    Raises:
        ValueError: If the file does not exist or its form is not known, or a number or name is not valid.
    """
    if not isinstance(classes, str | os.PathLike):
        return _of_names(classes, "classes")
    path = Path(classes).expanduser()
    if not path.is_file() and folder is not None:
        path = Path(folder).expanduser() / path
    if not path.is_file():
        raise ValueError(f"classes: {classes} is not a file. Give {FORMS}.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return _of_document(json.loads(text), f"classes: {path}")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _of_document(yaml.safe_load(text), f"classes: {path}")
    return _of_lines(text, f"classes: {path}", is_table=path.suffix.lower() in (".csv", ".tsv"))


def _of_names(names: Any, where: str) -> ClassList:
    """Classes from a list of names, or their names by number."""
    if isinstance(names, Mapping):
        return _listed(list(names.values()), where, list(names))
    return _listed(list(names), where)


def _of_document(content: Any, where: str) -> ClassList:
    """Classes from the content of a JSON or YAML file."""
    if isinstance(content, dict):
        if "label_map" in content:  # Datumaro's dataset_meta.json
            names, colours = content["label_map"], content.get("segmentation_colors")
            return _listed(list(names.values()), where, list(names), colours)
        for key in ("classes", "names", "id2label", "categories", "labels"):
            if isinstance(content.get(key), list | dict):
                content = content[key]
                break
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        return _of_objects(content, where)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _listed(content, where)
    if isinstance(content, dict) and content and all(str(key).isdecimal() for key in content):
        return _listed(list(content.values()), where, list(content))
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        # Supervisely's obj_class_to_machine_color.json; its colours are numbers in three equal channels.
        numbers = [value[0] for value in content.values()] if all(len({*v}) == 1 for v in content.values()) else None
        return _listed(list(content), where, numbers, list(content.values()))
    raise ValueError(f"{where} must hold a list of names, or another form that is known: {FORMS}.")


def _of_objects(objects: list[dict[str, Any]], where: str) -> ClassList:
    """Classes from COCO's categories (`id`, `name`), or from Supervisely (`title`) or Mapillary, with a `color`."""
    names = [item.get("title", item.get("name")) for item in objects]
    if all("id" in item and "title" not in item for item in objects):
        return _listed(names, where, [item["id"] for item in objects])
    has_colours = all("color" in item for item in objects)
    return _listed(names, where, colours=[item["color"] for item in objects] if has_colours else None)


def _of_lines(text: str, where: str, is_table: bool) -> ClassList:
    """Classes from a text file; lines that begin with # are comments."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and lines[0] == "__ignore__":  # -1 in labelme's labels.txt
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{where} names no class.")
    if found := _all_match(LABELMAP_LINE, lines):
        colours = [match.groups()[1:] for match in found if match[2]]
        return _listed([match[1] for match in found], where, colours=colours if len(colours) == len(found) else None)
    if found := _all_match(COLOUR_LINE, lines):
        return _listed([match[4] for match in found], where, colours=[match.groups()[:3] for match in found])
    if (table := _of_table(lines, where)) is not None:
        return table
    found = _all_match(NUMBER_LINE, lines) or _all_match(COUNTED_LINE, lines)
    # Names may begin with a number: where a space follows it, the lines must count.
    if found and (_all_match(NUMBER_LINE, lines) or _count([int(match[1]) for match in found])):
        return _listed([match[2] for match in found], where, [match[1] for match in found])
    if is_table:
        raise ValueError(f"{where} begins with {lines[0]!r}, which is no header that is known. Give {FORMS}.")
    return _listed(lines, where)


def _all_match(form: re.Pattern[str], lines: list[str]) -> list[re.Match[str]]:
    """The matches of lines that all have a form; empty where one has not."""
    found = [form.fullmatch(line) for line in lines]
    return found if all(found) else []


def _count(numbers: list[int]) -> bool:
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _of_table(lines: list[str], where: str) -> ClassList | None:
    """Classes from a table whose first line is a known header; None from other lines."""
    delimiter = max("\t;,", key=lines[0].count)
    header, *rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    header = [column.strip().lower() for column in header]
    name = next((header.index(column) for column in NAME_COLUMNS if column in header), None)
    number = next((header.index(column) for column in NUMBER_COLUMNS if column in header), None)
    colour = next(([header.index(c) for c in columns] for columns in COLOUR_COLUMNS if {*columns} <= {*header}), None)
    if name is None or not rows or (len(header) > 1 and number is None and colour is None):
        return None
    if short := [row for row in rows if len(row) < len(header)]:
        raise ValueError(f"{where}: the line {delimiter.join(short[0])!r} lacks columns of the header {header}.")
    is_ade = {*header} >= ADE_COLUMNS
    return _listed(
        [re.split("[,;]", row[name])[0] if is_ade else row[name] for row in rows],  # the first of the synonyms
        where,
        None if number is None else [row[number] for row in rows],
        None if colour is None else [[row[c] for c in colour] for row in rows],
        no_class=(0,) if is_ade else (),
    )


def _listed(
    names: list[Any],
    where: str,
    numbers: Sequence[int | str] | None = None,
    colours: Sequence[Any] | None = None,
    no_class: tuple[int, ...] = (),
) -> ClassList:
    """The classes in the order of their numbers, checked; by default they are numbered as they come."""
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise ValueError(f"{where}: the name of a class is a text, got {wrong[0]!r}.")
    numbers = [str(number).strip() for number in (range(len(names)) if numbers is None else numbers)]
    if not all(number.isdecimal() for number in numbers) or len({int(number) for number in numbers}) < len(names):
        raise ValueError(f"{where}: each class needs a number of its own, from 0, got {', '.join(numbers)}.")
    order = sorted(range(len(names)), key=lambda place: int(numbers[place]))
    return ClassList(
        [names[place].strip() for place in order],
        [int(numbers[place]) for place in order],
        colours and [as_colour(colours[place], where) for place in order],
        no_class,
    )


def as_colour(value: Any, where: str) -> Colour:
    """A colour from [r, g, b], "r,g,b" or "#RRGGBB".

    Raises:
        ValueError: If it is no colour; `where` begins the message.
    """
    try:
        if isinstance(value, str) and value.startswith("#"):
            levels = tuple(bytes.fromhex(value[1:]))
        else:
            levels = tuple(int(level) for level in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        levels = ()
    if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
        raise ValueError(f"{where}: a colour is [r, g, b] with 0 to 255, or '#RRGGBB'; got {value!r}.")
    return levels
