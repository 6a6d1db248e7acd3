import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_runs import network, processor, scenes

from hf_segkd.inference import predict
from hf_segkd.space import write_space

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
    return folder


def test_the_mask_shown_is_the_one_predict_gives(folders):
    loaded = app.load_network(str(folders / "student"))
    image = scenes("val", 1)[0]["image"]
    mask, milliseconds = app.segment(loaded, image)
    assert np.array_equal(mask, predict(loaded.model, loaded.processor, image).numpy())
    assert milliseconds > 0


def test_the_legend_lists_the_classes_present_with_their_share():
    mask = np.array([[0, 0, 2], [0, 2, 2], [0, 0, 0]], dtype=np.uint8)
    assert [(name, round(share, 3)) for name, _, share in app.legend(mask, ["sky", "road", "car"])] == [
        ("sky", 0.667),
        ("car", 0.333),
    ]


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (6000, 6000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"6000 x 6000 pixels.*At most 25\.0 million"):
        app.read_image(str(tmp_path / "large.png"), app.MAX_PIXELS)


def test_fewer_pixels_are_taken_where_there_are_many_classes(folders):
    loaded = app.load_network(str(folders / "student"))
    assert app.max_pixels([loaded]) == app.MAX_PIXELS
    loaded.model.config.num_labels = 1000
    assert app.max_pixels([loaded]) == app.MAX_LOGITS // 1000


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_of_every_usual_mode_are_read(mode, tmp_path):
    Image.new("RGB", (5, 3), (200, 10, 10)).convert(mode).save(tmp_path / "picture.tif")
    image = app.read_image(str(tmp_path / "picture.tif"), 100)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_a_picture_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (5, 3)).save(tmp_path / "turned.jpg", exif=exif)
    assert app.read_image(str(tmp_path / "turned.jpg"), 100).size == (3, 5)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_picture_is_refused(content, tmp_path):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        app.read_image(str(tmp_path / "file.png"), 100)


def test_names_of_classes_are_no_html(folders):
    loaded = app.load_network(str(folders / "student"))
    loaded.model.config.id2label = {index: f"<b>{index}</b>" for index in range(4)}
    html, _ = app.result("Student", loaded, scenes("val", 1)[0]["image"])
    assert "<b>0</b>" not in html


def test_the_space_runs_where_the_package_is_not_installed(folders, tmp_path):
    space = tmp_path / "space"
    examples = [scenes("val", 1)[0]["image"]]
    write_space(space, student_id=str(folders / "student"), title="A title", examples=examples)
    check = """
import sys
sys.path.insert(0, ".")
import app, hf_segkd
assert hf_segkd.__file__.startswith(sys.argv[1])
settings = app.read_settings(app.argparse.Namespace(student=None, teacher=None))
network = app.load_network(settings["student"])
image = app.read_image(settings["examples"][0], 10**6)
print(app.result("Student", network, image)[1].shape)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", check, str(space)]
    ran = subprocess.run(command, cwd=space, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(examples[0].size[::-1])


def test_the_readme_of_a_space_says_what_the_hub_needs(tmp_path):
    write_space(tmp_path / "a", student_id="ann/student", teacher_id="ann/teacher", title="Scenes", license="mit")
    _, front, _ = (tmp_path / "a" / "README.md").read_text().split("---\n")
    metadata = yaml.safe_load(front)
    assert (metadata["sdk"], metadata["app_file"], metadata["license"]) == ("gradio", "app.py", "mit")
    assert metadata["models"] == ["ann/student", "ann/teacher"]
    assert json.loads((tmp_path / "a" / "models.json").read_text())["teacher"] == "ann/teacher"
    write_space(tmp_path / "b", student_id="ann/student", title="Scenes")
    assert "license" not in (tmp_path / "b" / "README.md").read_text()


def test_a_space_installs_what_the_package_needs():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"].split()
    assert (ROOT / "app" / "requirements.txt").read_text().split() == needed
