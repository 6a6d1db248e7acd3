"""`ClassMap`: which class of the teacher teaches which class of the student; `match_classes` finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers.utils import logging

from hf_segkd.data import class_names
from hf_segkd.losses.base import at_least_float32
from hf_segkd.networks.class_names import are_default_names, name_key
from hf_segkd.suggestions import did_you_mean

logger = logging.get_logger(__name__)

# A softmax over one class is 1 whatever the logits are.
FEWEST_CLASSES = 2


class ClassMap:
    """Maps each class of the teacher to the student's class that it teaches, or to none.

    Several classes of the teacher may teach one of the student: their probabilities add up. Classes without a partner
    drop out: the teacher's from its distribution, the student's from what is compared with it. The classes that are
    left, in the student's order, are the common classes.

    Args:
        targets: One entry for each class of the teacher: index of the student's class, or None.
        teacher: Names of the teacher's classes, in order.
        student: Names of the student's classes, in order.

    Attributes:
        common: Indices of the student's classes that have a partner, ascending.
        groups: For each of them the teacher's classes that teach it.

    Raises:
        ValueError: If a target is no class of the student, or fewer than two classes are common.
    """

    def __init__(self, targets: Sequence[int | None], teacher: Sequence[str], student: Sequence[str]) -> None:
        self.targets, self.teacher, self.student = tuple(targets), tuple(teacher), tuple(student)
        if len(self.targets) != len(self.teacher):
            raise ValueError(f"Got {len(self.targets)} targets for the {len(self.teacher)} classes of the teacher.")
        wrong = [target for target in self.targets if target is not None and not 0 <= target < len(self.student)]
        if wrong:
            raise ValueError(f"The student has the classes 0 to {len(self.student) - 1}, got {wrong[0]} as a target.")
        self.common = tuple(sorted({target for target in self.targets if target is not None}))
        if len(self.common) < FEWEST_CLASSES:
            raise ValueError(
                f"Teacher and student have {len(self.common)} common classes, and distilling logits takes at least "
                f"{FEWEST_CLASSES}. The teacher's are {list(self.teacher)}, the student's {list(self.student)}: map "
                "more of them (class_map), or choose a method that compares features."
            )
        self.groups = tuple(
            tuple(index for index, target in enumerate(self.targets) if target == label) for label in self.common
        )

    @classmethod
    def from_names(cls, teacher: Mapping[int, str], student: Mapping[int, str]) -> ClassMap:
        """Pair classes of one name; case, surrounding blanks and word separators (blank, _, -) don't count.

        Args:
            teacher: The teacher's `config.id2label`.
            student: The student's.

        Raises:
            ValueError: If the student has a name twice, or fewer than two names are common.
        """
        taught, learnt = _names(teacher), _names(student)
        keys = [name_key(name) for name in learnt]
        if [name_key(name) for name in taught] == keys:
            return cls(range(len(learnt)), taught, learnt)
        twice = sorted({name for name in learnt if keys.count(name_key(name)) > 1})
        if twice:
            raise ValueError(f"The student has classes of one name, {twice}: pair the classes by index or by a file.")
        place = {key: index for index, key in enumerate(keys)}
        return cls([place.get(name_key(name)) for name in taught], taught, learnt)

    @classmethod
    def from_indices(cls, teacher: Mapping[int, str], student: Mapping[int, str]) -> ClassMap:
        """Pair the classes in their order, whatever they are called.

        Raises:
            ValueError: If they differ in number.
        """
        if len(teacher) != len(student):
            raise ValueError(
                f"Classes can't be paired by index: the teacher has {len(teacher)}, the student {len(student)}."
            )
        return cls(range(len(student)), _names(teacher), _names(student))

    @classmethod
    def from_yaml(cls, file: str | Path, teacher: Mapping[int, str], student: Mapping[int, str]) -> ClassMap:
        """Read a map: a line `teacher's class: student's class` each, by name or by index.

        A class of the teacher that is mapped to `null`, or not listed, has no partner.

        Args:
            file: The YAML file.
            teacher: The teacher's `config.id2label`.
            student: The student's.

        Raises:
            ValueError: If the file is missing or not such a map, or names a class that does not exist, or one of the
                teacher's twice.
        """
        if not Path(file).is_file():
            raise ValueError(f"class_map takes names, index or a YAML file, and there is no file {str(file)!r}.")
        try:
            pairs = yaml.safe_load(Path(file).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not YAML: {error}") from error
        if not isinstance(pairs, dict):
            raise ValueError(f"{file} must hold lines `teacher's class: student's class`.")
        taught, learnt = _names(teacher), _names(student)
        targets: dict[int, int | None] = {}
        for key, value in pairs.items():
            source = _index(key, taught, "teacher", file)
            if source in targets:
                raise ValueError(f"{file} maps the teacher's class {source} ({taught[source]}) twice.")
            targets[source] = None if value is None else _index(value, learnt, "student", file)
        return cls([targets.get(index) for index in range(len(taught))], taught, learnt)

    @property
    def is_identity(self) -> bool:
        """Whether both have the same classes in the same order."""
        return self.targets == tuple(range(len(self.student)))

    @property
    def is_complete(self) -> bool:
        """Whether every class of the student has a partner."""
        return len(self.common) == len(self.student)

    @property
    def without_partner(self) -> tuple[list[str], list[str]]:
        """Names of the classes that drop out, the teacher's and the student's."""
        taught = [name for name, target in zip(self.teacher, self.targets, strict=True) if target is None]
        return taught, [name for index, name in enumerate(self.student) if index not in self.common]

    def describe(self) -> str:
        """Say which classes are paired and which drop out, in a sentence or two."""
        pairs = [
            f"{' + '.join(self.teacher[index] for index in group)} -> {self.student[label]}"
            for group, label in zip(self.groups, self.common, strict=True)
            if [name_key(self.teacher[index]) for index in group] != [name_key(self.student[label])]
        ]
        taught, learnt = self.without_partner
        text = f"Teacher and student have {len(self.common)} common classes"
        text += f", under other names {', '.join(pairs)}." if pairs else "."
        if taught:
            text += f" The teacher's {', '.join(taught)} drop out."
        if learnt:
            text += f" The student learns {', '.join(learnt)} from the labels alone."
        return text

    def merge(self, logits: Tensor) -> Tensor:
        """The teacher's logits of the common classes.

        A softmax of the result is that of the teacher without the classes that drop out, with the probabilities of
        classes that teach the same one added up.

        Args:
            logits: (b, k, h, w), k classes of the teacher.

        Returns:
            (b, m, h, w), m common classes; in float32 at least, for the sums of half precision.
        """
        logits = at_least_float32(logits)
        merged = logits[:, [group[0] for group in self.groups]]
        for index, group in enumerate(self.groups):
            if len(group) > 1:
                merged[:, index] = logits[:, list(group)].logsumexp(1)
        return merged

    def spread(self, merged: Tensor) -> Tensor:
        """Logits of all classes of the student, (b, k, h, w), from those of the common ones, (b, m, h, w).

        The others get one that is never the largest, and finite after any interpolation.
        """
        if self.is_complete:
            return merged
        shape = (len(merged), len(self.student), *merged.shape[2:])
        logits = merged.new_full(shape, torch.finfo(merged.dtype).min / 2)
        logits[:, list(self.common)] = merged
        return logits


def match_classes(
    class_map: ClassMap | str | None, teacher: Mapping[int, str], student: Mapping[int, str]
) -> ClassMap | None:
    """The map that a user asked for, or the one that suits the names of the classes.

    Args:
        class_map: A map; "names" or "index"; a YAML file (see `ClassMap.from_yaml`); or None: by name where at least
            two names are common, else by index where the numbers of classes agree and no name is common at another
            index.
        teacher: The teacher's `config.id2label`.
        student: The student's.

    Returns:
        The map; None where none was asked for and neither names nor numbers agree, or a name contradicts the order.

    Raises:
        ValueError: If the map that was asked for does not fit the two networks.
    """
    taught, learnt = _names(teacher), _names(student)
    if isinstance(class_map, ClassMap):
        if (list(class_map.teacher), list(class_map.student)) != (taught, learnt):
            raise ValueError(
                f"The class map is for a teacher of {list(class_map.teacher)} and a student of "
                f"{list(class_map.student)}, but these have {taught} and {learnt}."
            )
        return class_map
    if class_map == "names":
        return ClassMap.from_names(teacher, student)
    if class_map == "index":
        return ClassMap.from_indices(teacher, student)
    if class_map is not None:
        return ClassMap.from_yaml(class_map, teacher, student)
    nameless = are_default_names(taught) or are_default_names(learnt)
    if (
        not nameless
        and len({name_key(name) for name in taught} & {name_key(name) for name in learnt}) >= FEWEST_CLASSES
    ):
        found = ClassMap.from_names(teacher, student)
        if not found.is_identity:
            (logger.info if found.is_complete else logger.warning)(found.describe())
        return found
    if len(taught) != len(learnt):
        return None
    keys = [name_key(name) for name in taught]
    if moved := [name for index, name in enumerate(learnt) if name_key(name) in keys and keys[index] != name_key(name)]:
        logger.warning(
            f"The classes are not paired: {moved[0]} is not at one index in the teacher's {taught} and the student's "
            f"{learnt}. Say which teaches which with class_map."
        )
        return None
    if not nameless:
        logger.warning(f"The teacher calls its labels {taught}, the student {learnt}; they are paired by index.")
    return ClassMap.from_indices(teacher, student)


def _names(id2label: Mapping[int, str]) -> list[str]:
    if set(id2label) != set(range(len(id2label))):
        raise ValueError(
            f"config.id2label names the classes 0, 1, 2 ... by integers, and has the keys {list(id2label)[:5]}; its "
            "network can be paired with no other before that is mended."
        )
    return class_names(id2label)


def _index(label: Any, names: list[str], side: str, file: str | Path) -> int:
    """Index of a class that a file names."""
    if isinstance(label, bool):
        raise ValueError(f"{file} holds a class {label}, which is YAML's reading of yes, no, on or off: quote it.")
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise ValueError(f"{file}: the {side} has the classes 0 to {len(names) - 1}, got {label}.")
        return label
    if not isinstance(label, str):
        raise ValueError(f"{file}: a class of the {side} is a name or an index, got {label!r}.")
    keys = [name_key(name) for name in names]
    if keys.count(name_key(label)) > 1:
        raise ValueError(f"{file}: the {side} has several classes {label!r}; give the index.")
    if name_key(label) not in keys:
        hint = did_you_mean(label, names)
        raise ValueError(f"{file}: the {side} has no class {label!r}.{hint} It has: {', '.join(names)}.")
    return keys.index(name_key(label))
