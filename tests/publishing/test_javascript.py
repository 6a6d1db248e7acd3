"""Where a card has lines in JavaScript, and what a static Space is made of."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_runs import SIZE, processor
from transformers import BeitImageProcessor

from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.javascript import STATIC, javascript_size, resize_source
from hf_segkd.publishing.model_card import render_card
from hf_segkd.publishing.static_space import write_static_space

DOCS = Path(__file__).parents[2] / "docs"
FILE = {"format": "onnx", "file": "onnx/model.onnx", "argmax": False, "dynamic": False, "image_size": list(SIZE)}


def card(**more):
    values = {"repo_id": "you/student", "architecture": "DeepLabV3+", "id2label": {0: "sky"}, "method": "none"}
    return render_card(CardFacts(**values, dataset="voc2012", **more))


def code(text):
    return re.findall(r"```js\n(.*?)```", text, re.DOTALL)


def test_a_file_of_the_processors_size_runs_in_javascript():
    assert javascript_size(processor(), [{**FILE, "file": "onnx/model-int8.onnx"}, FILE]) == SIZE


@pytest.mark.parametrize(
    "other", [{"argmax": True}, {"dynamic": True}, {"image_size": [64, 64]}, {"file": "torch_export/model.pt2"}]
)
def test_other_files_do_not(other):
    assert javascript_size(processor(), [{**FILE, **other}]) is None
    assert javascript_size(processor(), []) is None


@pytest.mark.parametrize("other", [{"resample": 3}, {"do_resize": False}, {"size": {"shortest_edge": 32}}])
def test_other_ways_to_prepare_images_do_not(other):
    prepared = processor()
    vars(prepared).update(other)
    assert javascript_size(prepared, [FILE]) is None


def test_other_image_processors_do_not():
    size = {"height": SIZE[0], "width": SIZE[1]}
    assert javascript_size(BeitImageProcessor(size=size, do_center_crop=False, resample=2), [FILE]) is None


def test_the_card_and_the_docs_have_one_snippet():
    (on_card,), (in_docs,) = code(card(javascript_size=(96, 128))), code((DOCS / "devices.md").read_text())
    assert on_card == in_docs
    assert on_card.endswith(f"{resize_source()}\n")
    assert "resized(image, 128, 96)" in on_card
    assert code(card()) == []


def test_card_page_and_docs_name_one_version_of_the_library():
    texts = [card(javascript_size=SIZE), (STATIC / "index.html").read_text()]
    versions = [re.search(r"@huggingface/transformers@([\d.]+)", text)[1] for text in texts]
    assert f"transformers.js {versions[0]} runs" in (DOCS / "devices.md").read_text()
    assert len(set(versions)) == 1


def test_a_static_space_holds_a_page_and_its_settings(tmp_path):
    colours = {"sky": (70, 130, 180), "road": (128, 64, 128)}
    pictures = [Image.new("RGB", (5, 3))]
    title = 'Scenes: "ours", in 100 % & more'
    write_static_space(tmp_path, student_id="ann/a", title=title, license="mit", examples=pictures, colours=colours)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"README.md", "index.html", "page.js", "resize.js", "models.json", "examples/0.png"}
    assert (tmp_path / "resize.js").read_text().rstrip() == resize_source()
    _, front, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")
    metadata = yaml.safe_load(front)
    assert (metadata["title"], metadata["license"], metadata["sdk"]) == (title, "mit", "static")
    assert metadata["models"] == ["ann/a"]
    assert "[ann/a](https://huggingface.co/ann/a)" in text
    settings = json.loads((tmp_path / "models.json").read_text())
    assert settings["colours"] == {name: list(colour) for name, colour in colours.items()}
    assert settings["examples"] == ["examples/0.png"]


def test_the_page_asks_nobody_but_library_and_hub():
    texts = [(STATIC / name).read_text() for name in ("index.html", "page.js", "resize.js")]
    places = {place for text in texts for place in re.findall(r"https?://[^/\"]+", text)}
    assert places == {"https://cdn.jsdelivr.net"}
