import base64
import io
import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_segkd.commands import draw_masks
from hf_segkd.data import check_dataset, class_names, label_info, load_segmentation_dataset
from hf_segkd.data.annotations import run_lengths, uncompressed

coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (pip install hf-segkd[annotations])")

HEIGHT, WIDTH = 30, 40


def picture(path, size=(WIDTH, HEIGHT), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def box(x0, y0, x1, y1, size=(HEIGHT, WIDTH)):
    """The same rectangle as pixels."""
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def coco_file(path, annotations, images=("a.jpg",), categories=((7, "car"), (3, "tree")), size=(HEIGHT, WIDTH)):
    content = {
        "images": [
            {"id": 10 + number, "file_name": name, "height": size[0], "width": size[1]}
            for number, name in enumerate(images)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": number, "image_id": 10, "iscrowd": 0, **annotation} for number, annotation in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def labelme_file(path, shapes, name="a.jpg", size=(HEIGHT, WIDTH)):
    """As labelme 6.3.1 writes it."""
    content = {
        "version": "6.3.1",
        "flags": {},
        "shapes": [
            {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}}
            | {"mask": mask}
            for label, kind, points, mask in shapes
        ],
        "imagePath": name,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def run(tmp_path, annotations, *flags, unlabelled="background"):
    places = {"annotations": annotations, "images": tmp_path / "photos", "output": tmp_path / "scenes"}
    given = [word for flag, value in places.items() for word in (f"--{flag}", str(value))]
    return draw_masks.main([*given, "--unlabelled", unlabelled, *flags])


def drawn(folder, name="a"):
    return np.asarray(Image.open(folder / f"{name}.png"))


def test_coco_polygons_and_both_run_length_encodings_become_ids_in_the_order_of_the_categories(tmp_path, capsys):
    picture(tmp_path / "photos" / "a.jpg")
    bright = box(30, 20, 36, 25)
    counts = coco.encode(np.asfortranarray(bright.astype(np.uint8)))["counts"].decode()
    runs = np.flatnonzero(np.diff(box(2, 22, 6, 28).ravel(order="F"), prepend=False, append=False))
    annotations = [
        {"category_id": 7, "segmentation": [rectangle(4, 3, 14, 9), rectangle(20, 3, 25, 9)]},
        {"category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
        {
            "category_id": 7,
            "iscrowd": 1,
            "segmentation": {
                "size": [HEIGHT, WIDTH],
                "counts": np.diff(runs, prepend=0, append=HEIGHT * WIDTH).tolist(),
            },
        },
    ]
    folder = run(tmp_path, coco_file(tmp_path / "a.json", annotations))
    expected = np.zeros((HEIGHT, WIDTH))
    expected[bright] = 1  # "tree", whose category id is the lower one
    expected[box(4, 3, 14, 9) | box(20, 3, 25, 9) | box(2, 22, 6, 28)] = 2
    assert (drawn(folder) == expected).all()
    assert "| 2   | car        | 2      | 9.50 %" in capsys.readouterr().out  # 60 + 30 + 24 of 1200 pixels

    dataset = load_segmentation_dataset("folder", tmp_path / "scenes", classes=tmp_path / "scenes" / "classes.json")
    check_dataset(dataset)
    assert class_names(label_info(dataset).id2label) == ["background", "tree", "car"]
    assert (tmp_path / "scenes" / "train" / "images" / "a.jpg").samefile(tmp_path / "photos" / "a.jpg")


def test_compressed_runs_are_those_of_cocos_own_code():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.3, 0.99):
        for size in ((1, 1), (7, 5), (300, 200)):
            mask = rng.random(size) < share
            mask[: size[0] // 2, 1:] = False  # long runs too
            encoding = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert uncompressed(encoding["counts"].decode()) == run_lengths(mask)["counts"]
            assert (coco.decode(coco.frPyObjects(run_lengths(mask), *size)) == mask).all()


def test_a_polygon_covers_the_pixels_whose_centres_lie_in_it(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    corners = np.array([(3.2, 2.7), (36.4, 8.1), (30.9, 27.6), (14.3, 20.2), (6.6, 28.3)])
    annotations = [{"category_id": 7, "segmentation": [corners.ravel().tolist()]}]
    found = drawn(run(tmp_path, coco_file(tmp_path / "a.json", annotations))) == 2
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside, distance = np.zeros((HEIGHT, WIDTH), dtype=bool), np.full((HEIGHT, WIDTH), np.inf)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)  # even-odd rule
        along = (((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)).clip(0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    assert distance[found != inside].max(initial=0) < 0.5
    assert (found != inside).sum() < 0.05 * inside.sum()


def test_of_coco_the_smaller_shape_is_on_top_and_a_crowd_below_all(tmp_path, capsys):
    picture(tmp_path / "photos" / "a.jpg")
    annotations = [
        {"category_id": 3, "segmentation": [rectangle(10, 10, 12, 12)]},
        {"category_id": 7, "segmentation": [rectangle(5, 5, 20, 20)]},
        {"category_id": 3, "iscrowd": 1, "segmentation": [rectangle(18, 18, 22, 22)]},
    ]
    expected = np.where(box(18, 18, 22, 22), 1, 0)
    expected[box(5, 5, 20, 20)] = 2
    expected[box(10, 10, 12, 12)] = 1
    assert (drawn(run(tmp_path, coco_file(tmp_path / "a.json", annotations))) == expected).all()
    assert "0.67 % of the pixels lie in shapes of several classes" in capsys.readouterr().out  # 4 + 4 of 1200


def test_labelmes_regions_are_drawn_one_on_the_other_and_the_rest_is_told(tmp_path, caplog):
    picture(tmp_path / "photos" / "a.jpg")
    small = np.zeros((4, 6), dtype=np.uint8)
    small[1:3, 1:5] = 1
    png = io.BytesIO()
    Image.fromarray(small).save(png, "PNG")
    shapes = [
        ("road", "rectangle", [[38, 29], [2, 1]], None),
        ("car", "polygon", [[5, 5], [15, 5], [15, 12], [5, 12]], None),
        ("car", "mask", [[20, 10], [25, 13]], base64.b64encode(png.getvalue()).decode()),
        ("car", "circle", [[30, 20], [34, 20]], None),
        ("__ignore__", "oriented_rectangle", [[6, 20], [10, 16], [14, 20], [10, 24]], None),
        ("car", "linestrip", [[1, 1], [9, 9]], None),
        ("car", "point", [[1, 1]], None),
        ("car", "point", [[2, 2]], None),
    ]
    labelme_file(tmp_path / "photos" / "a.json", shapes)
    mask = drawn(run(tmp_path, tmp_path / "photos", "--classes", "background", "road", "car"))
    assert set(np.unique(mask)) == {0, 1, 2, 255}
    assert (mask[box(5, 5, 15, 12)] == 2).all()
    assert ((mask == 2) & box(20, 10, 26, 14) == box(21, 11, 25, 13)).all()
    assert ((mask == 0) == ~box(2, 1, 38, 29)).all()
    assert (mask == 255).sum() == pytest.approx(32, abs=8)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    radius = np.hypot(x - 30, y - 20)
    assert (mask[radius < 3.5] == 2).all()
    assert (mask[(radius > 4.5) & (x > 26)] != 2).all()
    assert "3 shapes are not regions and were not drawn: 1 'car' (linestrip), 2 'car' (point)" in caplog.text


def test_labelmes_image_path_counts_from_its_file_and_may_be_written_on_windows(tmp_path):
    picture(tmp_path / "photos" / "north" / "a.jpg")
    labelme_file(tmp_path / "marks" / "north" / "a.json", [("car", "rectangle", [[1, 1], [4, 3]], None)])
    labelme_file(tmp_path / "marks" / "b.json", [("car", "rectangle", [[1, 1], [4, 3]], None)], "..\\photos\\b.jpg")
    picture(tmp_path / "photos" / "b.jpg")
    folder = run(tmp_path, tmp_path / "marks", "--classes", "background", "car")
    assert sorted(file.name for file in folder.iterdir()) == ["b.png", "north_a.png"]
    assert (drawn(folder, "north_a") == box(1, 1, 4, 3)).all()
    assert len(load_segmentation_dataset("folder", tmp_path / "scenes", classes=["background", "car"])) == 2


def test_labels_have_a_class_or_are_told_to_have_none(tmp_path, caplog):
    picture(tmp_path / "photos" / "a.jpg")
    file = coco_file(
        tmp_path / "a.json",
        [
            {"category_id": 7, "segmentation": [rectangle(0, 0, 4, 4)]},
            {"category_id": 3, "segmentation": [rectangle(8, 8, 12, 12)]},
            {"category_id": 1, "segmentation": [rectangle(20, 20, 24, 24)]},
        ],
        categories=((7, "car"), (3, "tree"), (1, "hair")),
    )
    with pytest.raises(ValueError, match=r"not in classes: hair, tree\. The classes are car, road"):
        run(tmp_path, file, "--classes", "car", "road", "--void_labels", "trees", unlabelled="void")
    assert "No shape has the label 'trees' of void_labels or left_out_labels. Did you mean 'tree'?" in caplog.text
    assert not (tmp_path / "scenes").exists()
    mask = drawn(
        run(
            tmp_path,
            file,
            "--classes",
            "road",
            "car",
            "--void_labels",
            "tree",
            "--left_out_labels",
            "hair",
            unlabelled="road",
        )
    )
    expected = np.where(box(8, 8, 12, 12), 255, 0)
    expected[box(0, 0, 4, 4)] = 1
    assert (mask == expected).all()
    assert "Left out as asked for: 1 'hair'" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "car", "car"], "car occurs several times"),
        (["--classes", "car", "sky"], r"unlabelled: 'background' is not in classes: car, sky"),
        (["--classes", "background", "car", "--void_labels", "car"], "car: in void_labels and in classes"),
    ],
)
def test_classes_that_cannot_be_meant_are_errors(tmp_path, flags, message):
    picture(tmp_path / "photos" / "a.jpg")
    file = coco_file(tmp_path / "a.json", [{"category_id": 7, "segmentation": [rectangle(0, 0, 4, 4)]}])
    with pytest.raises(ValueError, match=message):
        run(tmp_path, file, *flags)


def test_labelmes_files_do_not_say_which_classes_there_are(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    labelme_file(tmp_path / "photos" / "a.json", [("van", "rectangle", [[1, 1], [4, 3]], None)])
    with pytest.raises(
        ValueError, match=r"give them in their order with --classes\. The labels in these files are van"
    ):
        run(tmp_path, tmp_path / "photos")


def test_an_image_without_shapes_is_all_background_or_left_out_and_told(tmp_path, caplog):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(tmp_path / "photos" / name)
    file = coco_file(
        tmp_path / "a.json", [{"category_id": 7, "segmentation": [rectangle(0, 0, 40, 30)]}], images=("a.jpg", "b.jpg")
    )
    folder = run(tmp_path, file)
    assert (drawn(folder, "b") == 0).all()
    assert "1 images are left out, with nothing annotated: c.jpg" in caplog.text
    caplog.clear()
    folder = run(
        tmp_path, file, "--split", "val", "--classes", "tree", "car", "--output", str(tmp_path / "o"), unlabelled="void"
    )
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert "1 of 2 images have no shape" in caplog.text


def test_annotations_that_are_no_regions_are_counted_by_label_and_reason(tmp_path, caplog):
    picture(tmp_path / "photos" / "a.jpg")
    annotations = [
        {"category_id": 7, "segmentation": [rectangle(0, 0, 4, 4)]},
        {"category_id": 7, "bbox": [1, 1, 5, 5], "segmentation": []},
        {"category_id": 3, "keypoints": [1, 1, 2]},
        {"category_id": 7, "segmentation": [[1, 1, 5, 5]]},
        {"category_id": 7, "segmentation": [rectangle(50, 50, 60, 60)]},
    ]
    with caplog.at_level(logging.WARNING):
        run(tmp_path, coco_file(tmp_path / "a.json", annotations))
    assert (
        "4 shapes are not regions and were not drawn: 1 'car' (covers no pixel), "
        "1 'car' (no segmentation, bbox alone), 1 'car' (polygon of fewer than three points), "
        "1 'tree' (no segmentation, keypoints alone)"
    ) in caplog.text


@pytest.mark.parametrize(
    ("orientation", "turned_first"), [*((number, True) for number in range(1, 9)), *((n, False) for n in range(5, 9))]
)
def test_masks_lie_on_the_upright_photo_whichever_pixels_they_were_drawn_on(
    tmp_path, orientation, turned_first, caplog
):
    stored = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photos").mkdir()
    Image.fromarray(stored).save(tmp_path / "photos" / "a.png", exif=exif)
    with Image.open(tmp_path / "photos" / "a.png") as photo:
        seen = np.asarray(ImageOps.exif_transpose(photo) if turned_first else photo)  # by the annotator
    rows, columns = np.nonzero(seen[..., 0])
    corners = rectangle(*map(int, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    annotations = [{"category_id": 7, "segmentation": [corners]}]
    run(tmp_path, coco_file(tmp_path / "a.json", annotations, images=("a.png",), size=seen.shape[:2]))
    row = load_segmentation_dataset("folder", tmp_path / "scenes", classes=["background", "tree", "car"])[0]
    assert ((np.asarray(row["image"])[..., 0] == 255) == (np.asarray(row["annotation"]) == 2)).all()
    assert ("after is assumed" in caplog.text) == (orientation in (2, 3, 4))


def damaged(**changes):
    return {"category_id": 7, "segmentation": [rectangle(0, 0, 4, 4)], **changes}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (damaged(image_id=99), "annotation 0 has image_id 99, and no image has that id"),
        (damaged(category_id=2), "annotation 0 has category_id 2, and no category"),
        (
            damaged(segmentation=[[1, 2, 3, 4, 5]]),
            r"a polygon must be a list of numbers x, y, x, y \.\.\., got 1, 2, 3",
        ),
        (
            damaged(segmentation={"size": [40, 30], "counts": [1200]}),
            "is of 30 x 40 pixels, and the image a.jpg of 40 x 30",
        ),
        (damaged(segmentation={"size": [30, 40], "counts": [5, 7]}), "cover 12 pixels, and the image a.jpg has 1200"),
        (damaged(segmentation={"size": [30, 40], "counts": "00"}), "is damaged: its runs cover 0 pixels"),
    ],
)
def test_damaged_annotations_are_named_and_nothing_is_written(tmp_path, annotation, message):
    picture(tmp_path / "photos" / "a.jpg")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, coco_file(tmp_path / "a.json", [annotation]))
    assert not (tmp_path / "scenes" / "train").exists()


def test_images_that_are_missing_or_of_another_size_are_named(tmp_path):
    file = coco_file(tmp_path / "a.json", [damaged()], images=("a.jpg", "../outside.jpg"))
    picture(tmp_path / "photos" / "a.jpg")
    picture(tmp_path / "outside.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 images are not there: \.\./outside\.jpg"):
        run(tmp_path, file)
    picture(tmp_path / "photos" / "outside.jpg", (WIDTH, 10))
    with pytest.raises(ValueError, match=r"outside\.jpg is 40 x 10 pixels, and its annotation in .* is for 40 x 30"):
        run(tmp_path, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not COCO JSON: it must hold the lists images, annotations, categories"),
        ('{"images": [], "categories": [], "annotations": [{"segments_info": []}]}', "panoptic"),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "images has no file_name, height, width"),
    ],
)
def test_other_json_is_refused_for_what_it_is(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tmp_path / "a.json")


def test_a_second_split_must_have_the_classes_of_the_first_and_no_mask_is_overwritten(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    file = coco_file(tmp_path / "a.json", [damaged()])
    run(tmp_path, file)
    with pytest.raises(ValueError, match="labels exists already"):
        run(tmp_path, file)
    other = coco_file(tmp_path / "b.json", [damaged()], categories=((7, "car"),))
    with pytest.raises(ValueError, match=r"holds the classes background, tree, car, of another split"):
        run(tmp_path, other, "--split", "val")
    classes = tmp_path / "scenes" / "classes.json"
    assert drawn(run(tmp_path, other, "--split", "val", "--classes", str(classes))).max() == 2


def test_without_pycocotools_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-segkd\[annotations\]'"):
        run(tmp_path, tmp_path / "a.json")
