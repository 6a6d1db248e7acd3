"""The table of tools in docs/data.md: its lines read the files of each tool, here in the tool's exact layout."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import label_info, load_segmentation_dataset
from hf_segkd.data.labels import voc_palette

DOC = Path(__file__).parents[2] / "docs" / "data.md"
IMAGES = ("a", "b c", "d", "e", "f")
NAMES = ["background", "car", "road"]
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [128, 64, 128]], dtype=np.uint8)
IDS = trees.mask_of([0, 1, 2, 1])
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\nroad:128,64,128::\n"
LABEL_COLOURS = "0 0 0 background\n250 50 83 car\n128 64 128 road\n"


def palette_mask(numbers, palette):
    picture = Image.fromarray(numbers)
    picture.putpalette([level for colour in palette for level in colour])
    return picture


def write(root, image, *masks, text=None):
    """Images, their masks (path, array or picture) and text files (path -> content)."""
    for name in IMAGES:
        trees.write_image(root / image.format(name=name))
        for path, mask in masks:
            target = root / path.format(name=name)
            target.parent.mkdir(parents=True, exist_ok=True)
            (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(target)
    for path, content in (text or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def roboflow(root):
    for split in ("train", "valid", "test"):
        classes = {f"{split}/_classes.csv": "Pixel Value, Class\n0, background\n1, car\n2, road\n"}
        stem = f"{split}/{{name}}_jpg.rf.1a2b"
        write(root, f"{stem}.jpg", (f"{stem}_mask.png", IDS), text=classes)
    (root / "README.dataset.txt").write_text("# ...")


def cvat(root):
    write(
        root,
        "JPEGImages/{name}.jpg",
        ("SegmentationClass/{name}.png", COLOURS[IDS]),
        ("SegmentationObject/{name}.png", COLOURS[IDS]),
        text={"ImageSets/Segmentation/default.txt": "\n".join(IMAGES), "labelmap.txt": LABELMAP},
    )


def datumaro_voc(root):
    cvat(root)
    (root / "ImageSets/Segmentation/default.txt").rename(root / "ImageSets/Segmentation/train.txt")


def datumaro_camvid(root):
    write(
        root,
        "train/{name}.jpg",
        ("trainannot/{name}.png", COLOURS[IDS]),
        text={
            "label_colors.txt": LABEL_COLOURS,
            "train.txt": '/train/a.jpg trainannot/a.png\n"/train/b c.jpg" "trainannot/b c.png"\n',  # as it quotes them
        },
    )


def datumaro_cityscapes(root):
    write(
        root,
        "leftImg8bit/train/{name}_leftImg8bit.png",
        ("gtFine/train/{name}_gtFine_color.png", COLOURS[IDS]),
        ("gtFine/train/{name}_gtFine_instanceIds.png", IDS.astype(np.uint16)),
        ("gtFine/train/{name}_gtFine_labelIds.png", IDS),
        text={"label_colors.txt": LABEL_COLOURS},
    )


def datumaro_kitti(root):
    write(
        root,
        "train/image_2/{name}.png",
        ("train/instance/{name}.png", IDS.astype(np.uint16) * 257 + 1),
        ("train/semantic/{name}.png", IDS.astype(np.uint16)),
        ("train/semantic_rgb/{name}.png", COLOURS[IDS]),
        text={"label_colors.txt": LABEL_COLOURS},
    )


def labelme(root):
    write(
        root,
        "JPEGImages/{name}.jpg",
        ("SegmentationClass/{name}.png", palette_mask(IDS, voc_palette(256))),
        ("SegmentationClassVisualization/{name}.jpg", COLOURS[IDS]),
        text={"class_names.txt": "background\ncar\nroad", "SegmentationClassNpy/a.npy": ""},
    )


def supervisely(root):
    """Masks as quantised by `Image.convert("P")`: the palette is in the order of the file's own colours."""
    classes = [
        {"title": name, "shape": "bitmap", "color": f"#{bytes(colour.tolist()).hex()}"}
        for name, colour in zip(NAMES, COLOURS, strict=True)
    ]
    write(root, "ds0/img/{name}.jpeg", text={"meta.json": json.dumps({"classes": classes, "tags": []})})
    for number, name in enumerate(IMAGES):
        order = [0, 1, 2] if number % 2 else [2, 0, 1]
        mask = palette_mask(np.argsort(order).astype(np.uint8)[IDS], COLOURS[order].tolist())
        assert np.array_equal(np.asarray(mask.convert("RGB")), COLOURS[IDS])
        (root / "ds0/seg").mkdir(exist_ok=True)
        mask.save(root / f"ds0/seg/{name}.jpeg.png")
        (root / "ds0/ann").mkdir(exist_ok=True)
        (root / f"ds0/ann/{name}.jpeg.json").write_text("{}")


def supervisely_machine(root):
    write(
        root,
        "train/img/{name}.jpg",
        ("train/masks_machine/{name}.png", np.repeat(IDS[..., None], 3, axis=2)),
        ("train/masks_human/{name}.png", COLOURS[IDS]),
        text={"obj_class_to_machine_color.json": json.dumps({"car": [1, 1, 1], "road": [2, 2, 2]}), "meta.json": "{}"},
    )


def ultralytics(root):
    yaml = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: background\n  1: car\n  2: road\n"
    labels = {"labels/train/a.txt": "0 0.1 0.1 0.5 0.5 0.1 0.5\n", "data.yaml": yaml}
    write(root, "images/train/{name}.jpg", ("masks/train/{name}.png", IDS), text=labels)


def mmsegmentation(root):
    write(root, "img_dir/train/{name}.jpg", ("ann_dir/train/{name}.png", palette_mask(IDS, COLOURS.tolist())))


def bdd100k(root):
    write(root, "images/10k/train/{name}.jpg", ("labels/sem_seg/masks/train/{name}.png", IDS))
    write(root, "images/10k/train/{name}.jpg", ("labels/sem_seg/colormaps/train/{name}.png", COLOURS[IDS]))


def paddleseg(root):
    lists = {"train.txt": "images/a.jpg labels/a.png\n", "labels.txt": "background\ncar\nroad\n"}
    write(root, "images/{name}.jpg", ("labels/{name}.png", palette_mask(IDS, voc_palette(256))), text=lists)


def fiftyone(root):
    write(root, "data/{name}.jpg", ("labels/{name}.png", IDS))


def camvid(root):
    text = {"label_colors.txt": "0 0 0\tbackground\n250 50 83\t\tcar\n128 64 128\troad\n"}
    masks = ("LabeledApproved_full/{name}_L.png", COLOURS[IDS])
    write(root, "701_StillsRaw_full/{name}.png", masks, text=text)


def mapillary(root):
    labels = [{"name": n, "color": c, "evaluate": True} for n, c in zip(NAMES, COLOURS.tolist(), strict=True)]
    text = {"config_v1.2.json": json.dumps({"labels": labels, "version": 1.2})}
    masks = ("training/v1.2/labels/{name}.png", palette_mask(IDS, COLOURS.tolist()))
    write(root, "training/images/{name}.jpg", masks, ("training/v1.2/instances/{name}.png", IDS), text=text)


def binary(root):
    write(root, "images/{name}.jpg", ("masks/{name}.png", ((IDS > 0) * 255).astype(np.uint8)))


def ade20k_full(root):
    mask = IDS.astype(np.uint16)
    mask[0, 0] = 65535
    names = {"names.txt": "\n".join([*NAMES, *(f"class {number}" for number in range(844))])}
    write(
        root, "images_detectron2/training/{name}.jpg", ("annotations_detectron2/training/{name}.tif", mask), text=names
    )


def pascal_context(root):
    """The masks as PNG; `test_mask_kinds` has one of MATLAB."""
    names = {"labels.txt": "".join(f"{number}: class {number}\n" for number in range(1, 460))}
    lists = {"VOC2010/ImageSets/SegmentationContext/train.txt": "a\n"}
    write(
        root, "VOC2010/JPEGImages/{name}.jpg", ("trainval/{name}.png", IDS.astype(np.uint16) + 457), text=names | lists
    )


TOOLS = {
    "Roboflow, Semantic Segmentation Masks": roboflow,
    "CVAT, Segmentation mask 1.1": cvat,
    "Datumaro, voc_segmentation": datumaro_voc,
    "Datumaro, camvid": datumaro_camvid,
    "Datumaro, cityscapes": datumaro_cityscapes,
    "Datumaro, kitti_segmentation": datumaro_kitti,
    "labelme, labelme2voc.py": labelme,
    "Supervisely, to_segmentation_task": supervisely,
    "Supervisely, Export as masks": supervisely_machine,
    "Ultralytics, masks beside labels": ultralytics,
    "mmsegmentation": mmsegmentation,
    "BDD100K": bdd100k,
    "PaddleSeg": paddleseg,
    "FiftyOne, ImageSegmentationDirectory": fiftyone,
    "CamVid": camvid,
    "Mapillary Vistas 1.2": mapillary,
    "Binary masks of 0 and 255": binary,
    "ADE20K-full, 847 classes (Mask2Former's conversion)": ade20k_full,
    "Pascal Context, 459 classes": pascal_context,
}
EXPECTED = {
    "Binary masks of 0 and 255": IDS.clip(max=1),
    "Supervisely, Export as masks": np.array([255, 0, 1], np.uint8)[IDS],
    "Pascal Context, 459 classes": IDS.astype(np.uint16) + 456,
}


def lines_of_the_table():
    """Tool -> the line that reads its files."""
    rows = re.findall(r"^\| ([^|]+?) +\| `load\((.*)\)` +\|$", DOC.read_text(), re.MULTILINE)
    return {tool: f"load({arguments})" for tool, arguments in rows}


def read(tool, root):
    def load(**options):
        return load_segmentation_dataset("folder", root, **options)

    return eval(lines_of_the_table()[tool], {"load": load})


def test_the_table_names_the_tools_that_are_tested():
    assert list(lines_of_the_table()) == list(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_line_of_a_tool_reads_its_files(tool, tmp_path):
    TOOLS[tool](tmp_path)
    dataset = read(tool, tmp_path)
    assert len(dataset) == {"PaddleSeg": 1, "Pascal Context, 459 classes": 1, "Datumaro, camvid": 2}.get(
        tool, 4 if "validation_share" in lines_of_the_table()[tool] else 5
    )
    for row in dataset:
        ids = np.asarray(row["annotation"])
        expected = EXPECTED.get(tool, IDS)
        if tool.startswith("ADE20K"):
            assert ids[0, 0] == 65535
            ids, expected = ids[1:], expected[1:]
        assert np.array_equal(ids, expected)
    names = list(label_info(dataset).id2label.values())
    if tool.startswith("Binary"):
        assert names == ["good", "defect"]
    elif tool.startswith("Supervisely, Export"):
        assert names == ["car", "road"]
    elif tool.startswith(("ADE20K", "Pascal")):
        assert len(names) == (847 if tool.startswith("ADE20K") else 459)
    else:
        assert names == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["voc_segmentation", "camvid", "cityscapes", "kitti_segmentation"])
def test_what_datumaro_itself_writes_is_read(kind, tmp_path):
    datumaro = pytest.importorskip("datumaro")
    annotation = pytest.importorskip("datumaro.components.annotation")
    media = pytest.importorskip("datumaro.components.media")
    items = [
        datumaro.DatasetItem(
            id=name,
            subset="train",
            media=media.Image.from_numpy(data=np.full((*IDS.shape, 3), 90, np.uint8)),
            annotations=[annotation.Mask(image=label == IDS, label=label) for label in range(3)],
        )
        for name in ("a", "b c")
    ]
    categories = {
        annotation.AnnotationType.label: annotation.LabelCategories.from_iterable(NAMES),
        annotation.AnnotationType.mask: annotation.MaskCategories(
            {k: tuple(c) for k, c in enumerate(COLOURS.tolist())}
        ),
    }
    dataset = datumaro.Dataset.from_iterable(items, categories=categories, media_type=media.Image)
    dataset.export(str(tmp_path), kind, save_media=True)
    loaded = read(f"Datumaro, {kind}", tmp_path)
    assert len(loaded) == 2
    assert all(np.array_equal(np.asarray(row["annotation"]), IDS) for row in loaded)
    assert list(label_info(loaded).id2label.values()) == NAMES


@pytest.mark.slow
def test_what_labelmes_own_writer_writes_is_read(tmp_path):
    imgviz = pytest.importorskip("imgviz")
    labelme(tmp_path)
    for mask in (tmp_path / "SegmentationClass").iterdir():
        imgviz.io.lblsave(str(mask), IDS)
    assert np.array_equal(np.asarray(read("labelme, labelme2voc.py", tmp_path)[0]["annotation"]), IDS)
