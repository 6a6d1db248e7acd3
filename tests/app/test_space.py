import base64
import io
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from foreign_models import SIDE, build, eomt, no_scipy  # noqa: F401
from PIL import Image
from tiny_runs import network, processor, scenes
from transformers import SegformerImageProcessor

from hf_segkd.data import cityscapes
from hf_segkd.data.decoding import read_image
from hf_segkd.networks import with_taps
from hf_segkd.networks.inference import predict
from hf_segkd.publishing.space import write_space

pytest.importorskip("gradio", reason="needs gradio (pip install hf-segkd[app])")

from hf_segkd.app import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved student and teacher."""
    folder = tmp_path_factory.mktemp("networks")
    for name, width in (("student", 8), ("teacher", 12)):
        network(width=width).save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
    # As published with its code, which nobody is asked to trust where the package is there.
    config = json.loads((folder / "student" / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_deeplabv3plus.DeepLabV3PlusConfig",
        "AutoModelForSemanticSegmentation": "modeling_deeplabv3plus.DeepLabV3PlusForSemanticSegmentation",
    }
    (folder / "student" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def student(folders):
    return app.load_network(str(folders / "student"))


def test_the_mask_shown_is_the_one_predict_gives(student):
    image = scenes("val", 1)[0]["image"]
    html, mask = app.result("Student", student, image)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, predict(student.model, student.processor, image).numpy())
    assert re.search(r"<b>\d+\.\d ms</b> forward pass · <b>[\d.]+ M</b> parameters", html)


@pytest.mark.parametrize(("seconds", "passes"), [(0.0, 5), (0.6, 1)])
def test_the_time_is_that_of_the_fastest_of_a_few_passes_and_a_slow_network_runs_once(
    seconds, passes, student, monkeypatch
):
    def predict_slowly(model, processor, image):
        clock[0] += seconds
        return predict(model, processor, image)

    def forward(pixel_values, original=student.model.forward):
        clock[0] += durations.pop()
        return original(pixel_values)

    clock, durations = [0.0], [0.001, 0.001, 0.002, 0.004, 0.007][:passes][::-1]
    fastest = min(durations)
    monkeypatch.setattr(app.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(app, "predict", predict_slowly)
    monkeypatch.setattr(student.model, "forward", forward)
    _, milliseconds = app.segment(student, Image.new("RGB", (48, 32)))
    assert milliseconds == pytest.approx(1000 * fastest)
    assert durations == []
    assert not student.model._forward_hooks
    assert not student.model._forward_pre_hooks


def test_the_classes_are_laid_over_the_picture_at_a_size_for_screens():
    mask = np.zeros((1000, 2560), dtype=np.uint8)
    mask[:, 1280:] = 1
    html = app.overlay(Image.new("RGB", (2560, 1000), (0, 0, 200)), mask, [(0, 0, 0), (128, 0, 0)])
    photo, classes = (
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        for data in re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    )
    assert photo.size == classes.size == (1280, 500)
    assert photo.getpixel((100, 100))[2] > 190
    assert [classes.getpixel((x, 250)) for x in (0, 639, 640, 1279)] == [(0, 0, 0)] * 2 + [(128, 0, 0)] * 2


def test_the_legend_lists_the_classes_present_with_their_share_the_largest_first():
    mask = np.array([[2, 2, 0], [2, 0, 0], [2, 2, 2]], dtype=np.uint8)
    entries = app.legend(mask, ["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)])
    assert [(name, colour, round(share, 3)) for name, colour, share in entries] == [
        ("car", (0, 0, 142), 0.667),
        ("sky", (70, 130, 180), 0.333),
    ]


def test_classes_of_one_name_have_one_colour_in_both_networks(folders):
    names = app.load_network(str(folders / "student")).names
    network = app.load_network(str(folders / "student"), {names[2]: [1, 2, 3], "of another network": [4, 5, 6]})
    assert network.palette == [(0, 0, 0), (128, 0, 0), (1, 2, 3), (128, 128, 0)]


def test_a_page_of_ones_own_has_the_colours_of_the_classes_names(tmp_path, monkeypatch):
    classes = cityscapes.INFO.id2label
    network(id2label=classes, label2id={name: index for index, name in classes.items()}).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    shown = {}
    page = SimpleNamespace(launch=lambda **settings: None)
    monkeypatch.setattr(app, "build_page", lambda networks, *texts: shown.update(networks) or page)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # main() lifts it for its process
    app.main(["--student", str(tmp_path)])
    assert shown["Student"].palette == cityscapes.INFO.palette


@pytest.mark.usefixtures("no_scipy")
def test_a_teacher_that_predicts_masks_is_shown_as_predict_sees_it(tmp_path):
    model = build(eomt).eval()
    torch.manual_seed(1)
    model.class_predictor.weight.data.normal_()  # so that more than one class is seen
    model.save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}, do_reduce_labels=False).save_pretrained(tmp_path)
    teacher, image = app.load_network(str(tmp_path)), scenes("val", 1)[0]["image"]
    html, mask = app.result("Teacher", teacher, image)
    assert np.array_equal(mask, predict(with_taps(model), teacher.processor, image).numpy())
    assert len(np.unique(mask)) > 1
    assert "M</b> parameters" in html


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (6000, 6000)).save(tmp_path / "large.png")
    # What is left could not be decoded.
    (tmp_path / "large.png").write_bytes((tmp_path / "large.png").read_bytes()[:100])
    with pytest.raises(ValueError, match="6000 x 6000 pixels, more than the limit of 25,000,000"):
        app.read_rgb(str(tmp_path / "large.png"), "The picture", app.MAX_PIXELS)


def test_a_large_picture_is_shown_in_tiles_whose_passes_are_timed_together(student, monkeypatch):
    image = scenes("val", 1)[0]["image"].resize((144, 96))
    student.processor.do_resize = False
    whole, _ = app.segment(student, image)
    monkeypatch.setattr(app, "MAX_WHOLE_PIXELS", 144 * 96 - 1)
    monkeypatch.setattr(app, "TILE", 64)
    clock, shapes = [0.0], []

    def forward(pixel_values, original=student.model.forward):
        clock[0] += 0.25
        shapes.append(tuple(pixel_values.shape[2:]))
        return original(pixel_values)

    monkeypatch.setattr(app.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(student.model, "forward", forward)
    mask, milliseconds = app.segment(student, image)
    assert set(shapes) == {(64, 64)}
    assert milliseconds == 250 * len(shapes) == 250 * 6  # tiles at 0, 48 and 80 of 144, 0 and 32 of 96
    assert np.array_equal(mask, predict(student.model, student.processor, image, tile=64).numpy())
    assert mask.shape == whole.shape


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_of_every_usual_mode_are_read_as_data_sets_are(mode, tmp_path):
    file = str(tmp_path / "picture.tif")
    scenes("val", 1)[0]["image"].convert(mode).save(file)
    image = app.read_rgb(file, "it", 10_000)
    assert image.mode == "RGB"
    assert np.array_equal(image, read_image({"path": file, "bytes": None}))


def test_a_picture_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (5, 3)).save(tmp_path / "turned.jpg", exif=exif)
    assert app.read_rgb(str(tmp_path / "turned.jpg"), "it", 100).size == (3, 5)


def test_a_picture_of_16_bits_is_refused(tmp_path):
    Image.new("I;16", (5, 3)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        app.read_rgb(str(tmp_path / "deep.png"), "it", 100)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_picture_is_refused(content, tmp_path):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ValueError, match="no picture that can be read"):
        app.read_rgb(str(tmp_path / "file.png"), "it", 100)


def test_names_of_classes_are_no_html(student):
    student.model.config.id2label = {index: f"<b>{index}</b>" for index in range(4)}
    html, _ = app.result("Student", student, scenes("val", 1)[0]["image"])
    assert "&lt;b&gt;" in html
    assert "<b>0</b>" not in html


def test_flags_stand_in_for_what_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "HERE", tmp_path)
    with pytest.raises(SystemExit):
        app.main([])
    (tmp_path / "models.json").write_text('{"student": "ann/student", "title": "Scenes"}')
    settings = app.read_settings(app.argparse.Namespace(student="ann/other", teacher=None))
    assert settings == {"student": "ann/other", "teacher": None, "title": "Scenes", "examples": [], "colours": None}


# Run in a Space's folder: what it prints shows that nothing is needed which requirements.txt does not name.
CHECK = """
import sys
for name in ("datasets", "evaluate", "accelerate", "matplotlib"):
    sys.modules[name] = None
sys.path.insert(0, ".")
import app, hf_segkd
assert hf_segkd.__file__.startswith(sys.argv[1]), hf_segkd.__file__
settings = app.read_settings(app.argparse.Namespace(student=None, teacher=None))
network = app.load_network(settings["student"])
image = app.read_rgb(settings["examples"][0], "it", 10**6)
app.build_page({"Student": network}, settings["title"], settings["examples"])
app.Image.fromarray(app.result("Student", network, image)[1]).save("mask.png")
"""


def test_the_space_runs_where_the_package_is_not_installed(folders, student, tmp_path):
    space = tmp_path / "space"
    image = scenes("val", 1)[0]["image"]
    write_space(space, student_id=str(folders / "student"), title="A title", examples=[image])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", CHECK, str(space)]
    ran = subprocess.run(command, cwd=space, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    mask = torch.from_numpy(np.array(Image.open(space / "mask.png")))
    assert torch.equal(mask.long(), predict(student.model, student.processor, image))


def test_a_space_holds_what_it_needs_of_the_package_and_no_more(tmp_path):
    write_space(tmp_path, student_id="ann/student", title="Scenes", examples=[Image.new("RGB", (5, 3))])
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    models = {f"hf_segkd/models/{path.name}" for path in (ROOT / "hf_segkd" / "models").glob("*.py")}
    data = {f"hf_segkd/data/{name}.py" for name in ("image_files", "image_processors", "labels")}
    parts = (
        "__init__",
        "callable_network",
        "feature_network",
        "feature_paths",
        "inference",
        "logits_network",
        "outputs",
        "tiles",
    )
    networks = {f"hf_segkd/networks/{name}.py" for name in parts}
    others = {f"hf_segkd/{name}.py" for name in ("__init__", "auto", "losses/base", "types")}
    own = {"app.py", "models.json", "requirements.txt", "README.md", "examples/0.png"}
    assert files == models | data | networks | others | own
    assert (tmp_path / "app.py").read_bytes() == (ROOT / "app" / "app.py").read_bytes()


def test_the_readme_of_a_space_says_what_the_hub_needs(tmp_path):
    title = 'Scenes: "ours", in 100 % & more'
    write_space(tmp_path / "a", student_id="ann/student", teacher_id="ann/teacher", title=title, license="mit")
    _, front, _ = (tmp_path / "a" / "README.md").read_text(encoding="utf-8").split("---\n")
    metadata = yaml.safe_load(front)
    assert (metadata["title"], metadata["license"]) == (title, "mit")
    assert (metadata["sdk"], metadata["app_file"]) == ("gradio", "app.py")
    assert metadata["models"] == ["ann/student", "ann/teacher"]
    assert json.loads((tmp_path / "a" / "models.json").read_text())["teacher"] == "ann/teacher"
    write_space(tmp_path / "b", student_id="ann/student", title="Scenes")
    assert "license" not in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_a_space_installs_versions_that_the_package_takes():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    index, *needed = (ROOT / "app" / "requirements.txt").read_text().splitlines()
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    bounds = {line.split(",")[0] for line in needed if not line.startswith("scipy")}  # of teachers that predict masks
    assert bounds < set(config["options"]["install_requires"].split())
