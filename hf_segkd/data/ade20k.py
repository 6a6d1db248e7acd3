"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, 20,210 / 2,000 images."""

from __future__ import annotations

import os

import datasets

from .files import canonical_split, check_num_images, dataset_from_files, files_by_name, find_root, paired_ids, shorten
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme

LAYOUT = "ADEChallengeData2016/{images,annotations}/{training,validation}"
SPLIT_SIZES = {"train": 20210, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}

# First name of each class in objectInfo150.txt of the release, as mmsegmentation and transformers shorten them.
NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""

CLASS_NAMES = [name.strip() for name in NAMES.split(",")]

# The colours of the MIT scene parsing toolkit (color150), as RRGGBB.
COLOURS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
    ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
    eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
    0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
    8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
    00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
PALETTE = [tuple(bytes.fromhex(colour)) for colour in COLOURS.split()]

SCHEME = LabelScheme(
    info=LabelInfo.from_names("ade20k", CLASS_NAMES, PALETTE),
    raw_to_id={0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw: raw - 1 for raw in range(1, 151)}},
    out_of_range_hint="The masks of the scene parsing benchmark hold 0 (no class) and 1..150; is this the full ADE20K?",
)


def load_ade20k(data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True) -> datasets.Dataset:
    """Load a split of the scene parsing benchmark; the test images have no public labels.

    Args:
        data_dir: `ADEChallengeData2016` or the folder that holds it.
        split: "train" or "val" (or "validation").
        check_size: Whether anything but the full 20,210 or 2,000 images is an error.

    Raises:
        ValueError: If folders or files are missing, or the split does not exist.
    """
    split = canonical_split(split, SPLIT_SIZES, "ade20k")
    root = find_root(data_dir, ("", "ADEChallengeData2016"), f"images/{FOLDERS[split]}", LAYOUT)
    mask_folder = find_root(root, ("",), f"annotations/{FOLDERS[split]}", LAYOUT) / "annotations" / FOLDERS[split]
    images = files_by_name(root / "images" / FOLDERS[split], (".jpg",))
    masks = files_by_name(mask_folder, (".png",))
    where = f"ade20k {split} in {root}"
    ids = paired_ids(images, masks, where, LAYOUT)
    if check_size:
        _check_complete(split, ids, where)
    return dataset_from_files([images[i] for i in ids], [masks[i] for i in ids], ids, SCHEME, split)


def _check_complete(split: str, ids: list[str], where: str) -> None:
    """Compare with the names of the release, which are numbered without gaps."""
    expected = [f"ADE_{split}_{number:08d}" for number in range(1, SPLIT_SIZES[split] + 1)]
    missing = sorted(set(expected) - set(ids))
    check_num_images(len(ids), SPLIT_SIZES[split], where, f"Missing: {shorten(missing)}." if missing else "")
