"""`class_keys`: the name under which the IoU of each class is logged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping


def class_keys(id2label: Mapping[int, str]) -> list[str]:
    """`iou_` and the name of each class, in the order of the ids; what is no letter, digit or underscore becomes one.

    Classes whose names become the same, or empty, have their id behind it (all have, should that make others the same).

    Args:
        id2label: Class id, from 0 without gaps, to its name.

    Example:
        >>> class_keys({0: "road", 1: "traffic light", 2: "traffic-light", 3: "?"})
        ['iou_road', 'iou_traffic_light_1', 'iou_traffic_light_2', 'iou_3']
    """
    names = [re.sub(r"\W+", "_", id2label[index]).strip("_") for index in range(len(id2label))]
    numbered = [f"iou_{name}_{index}" if name else f"iou_{index}" for index, name in enumerate(names)]
    count = Counter(names)
    keys = [f"iou_{name}" if name and count[name] == 1 else other for name, other in zip(names, numbered, strict=True)]
    return keys if len(set(keys)) == len(keys) else numbered
