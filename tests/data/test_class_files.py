"""Class files as their tools write them; a header never becomes a class."""

import json

import pytest

from hf_segkd.data.class_files import read_classes

NAMES = ["background", "car", "road"]
COLOURS = [(0, 0, 0), (0, 0, 142), (128, 64, 128)]
COCO = {
    "images": [],
    "categories": [{"id": 3, "name": "car", "supercategory": "thing"}, {"id": 1, "name": "person"}],
}
FILES = {
    "names.txt": ("background\ncar\n\nroad\n", NAMES, [0, 1, 2], None),
    # labelme's labels.txt
    "labels.txt": ("__ignore__\n_background_\ncar\n", ["_background_", "car"], [0, 1], None),
    # CVAT and Datumaro
    "labelmap.txt": (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:0,0,142::\nroad:128,64,128:a,b:\n",
        NAMES,
        [0, 1, 2],
        COLOURS,
    ),
    "uncoloured/labelmap.txt": ("# label:color_rgb:parts:actions\ncar:::\nroad:::\n", ["car", "road"], [0, 1], None),
    # CamVid
    "label_colors.txt": ("0 0 0 background\n0 0 142\tcar\n128 64 128 road\n", NAMES, [0, 1, 2], COLOURS),
    "class_dict.csv": ("name,r,g,b\nbackground,0,0,0\ncar,0,0,142\nroad,128,64,128\n", NAMES, [0, 1, 2], COLOURS),
    # Roboflow
    "_classes.csv": ("Pixel Value, Class\n0, background\n1, car\n2, road\n", NAMES, [0, 1, 2], None),
    "one_column.csv": ("name\nbackground\ncar\nroad\n", NAMES, [0, 1, 2], None),
    # The scene parsing benchmark; 0 is no class there
    "objectInfo150.txt": (
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\t\t\n2\t0.1072\t6046\t612\tbuilding, edifice\n",
        ["wall", "building"],
        [1, 2],
        None,
    ),
    "objectInfo150.csv": (
        "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1576,11664,1172,1,wall\n2,0.1072,6046,612,1,building;edifice\n",
        ["wall", "building"],
        [1, 2],
        None,
    ),
    # Pascal Context
    "context/labels.txt": ("1: accordion\n2: aeroplane\n", ["accordion", "aeroplane"], [1, 2], None),
    "counted.txt": ("0 background\n1 car\n", ["background", "car"], [0, 1], None),
    "begin_with_numbers.txt": ("2 lane road\n4 lane road\n", ["2 lane road", "4 lane road"], [0, 1], None),
    "list.json": (json.dumps(NAMES), NAMES, [0, 1, 2], None),
    "numbers.json": (
        json.dumps({"2": "road", "0": "background", "10": "sky"}),
        ["background", "road", "sky"],
        [0, 2, 10],
        None,
    ),
    "config.json": (json.dumps({"model_type": "x", "id2label": {"0": "off", "1": "on"}}), ["off", "on"], [0, 1], None),
    "instances.json": (json.dumps(COCO), ["person", "car"], [1, 3], None),
    "categories.json": (json.dumps(COCO["categories"]), ["person", "car"], [1, 3], None),
    # Supervisely
    "meta.json": (
        json.dumps({"classes": [{"title": "car", "shape": "bitmap", "color": "#00008E", "id": 7}]}),
        ["car"],
        [0],
        [(0, 0, 142)],
    ),
    "obj_class_to_machine_color.json": (json.dumps({"car": [1, 1, 1]}), ["car"], [1], [(1, 1, 1)]),
    # Mapillary Vistas, Datumaro's dataset_meta.json
    "config_v1.2.json": (
        json.dumps({"labels": [{"name": "object--car", "readable": "Car", "color": [0, 0, 142]}]}),
        ["object--car"],
        [0],
        [(0, 0, 142)],
    ),
    "dataset_meta.json": (
        json.dumps(
            {"labels": NAMES[:2], "label_map": {"0": "background", "1": "car"}, "segmentation_colors": COLOURS[:2]}
        ),
        NAMES[:2],
        [0, 1],
        COLOURS[:2],
    ),
    # Ultralytics
    "data.yaml": ("path: x\nnc: 2\nnames:\n  0: person\n  1: car\n", ["person", "car"], [0, 1], None),
    "old.yaml": ("names: [person, car]\n", ["person", "car"], [0, 1], None),
}


@pytest.mark.parametrize("name", FILES)
def test_a_class_file_is_read_for_what_it_is(tmp_path, name):
    text, names, numbers, colours = FILES[name]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    listed = read_classes(tmp_path / name)
    assert (listed.names, listed.numbers, listed.colours) == (names, numbers, colours)
    assert listed.no_class == ((0,) if name.startswith("objectInfo") else ())
    assert read_classes(name, tmp_path) == listed  # found in the data set's folder too


def test_python_takes_a_list_or_the_names_by_number():
    assert read_classes(["a", "b"]).numbers == [0, 1]
    for names in ({3: "b", 1: "a"}, {"3": "b", "1": "a"}):
        assert (read_classes(names).names, read_classes(names).numbers) == (["a", "b"], [1, 3])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.json", '{"road": 0}', "must hold a list of names"),
        ("names.json", '{"0": 1}', "the name of a class is a text, got 1"),
        ("table.csv", "colour;size\n1;2\n", "no header that is known"),
        ("table.csv", "id,name\n1,a\n1,b\n", "each class needs a number of its own, from 0, got 1, 1"),
        ("names.txt", "# nothing\n", "names no class"),
    ],
)
def test_a_file_of_no_known_form_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)
