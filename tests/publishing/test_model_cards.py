import re
from pathlib import Path

import pytest
from card_reports import row
from huggingface_hub import ModelCard

from hf_segkd.publishing.model_card import TEMPLATE

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))
each_card = pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)


def percent(cell):
    return float(cell.split(" ± ")[0])


@each_card
def test_a_rendered_card_has_its_pictures_and_scores(path):
    card = ModelCard.load(path)
    metrics = [result.metric_type for result in card.data.eval_results]
    assert metrics == ["mean_iou", "mean_accuracy", "overall_accuracy"]
    shown = [line.split("](")[1].rstrip(")") for line in card.text.splitlines() if line.startswith("![")]
    assert "per_class_iou.png" in shown
    assert all((path.parent / name).is_file() for name in shown)


@each_card
def test_the_numbers_of_a_rendered_card_agree_with_each_other(path):
    card = ModelCard.load(path)
    ours = row(card.text, "**this network**")[1:4]
    assert [float(cell) for cell in ours] == [result.metric_value for result in card.data.eval_results]
    (table,) = re.findall(r"\| class .*?\n\n", card.text, re.DOTALL)
    classes = [line.split(" | ") for line in table.splitlines()[2:-1]]
    for column, network in ((1, "teacher"), (2, "student, labels alone"), (3, "**this network**")):
        mean = sum(float(line[column].strip(" |")) for line in classes) / len(classes)
        assert mean == pytest.approx(percent(row(card.text, network)[1]), abs=0.011)
    gain = percent(row(card.text, "student, distilled")[1]) - percent(row(card.text, "student, labels alone")[1])
    (told,) = re.findall(r"\*\*\+([\d.]+) ± [\d.]+\*\* points", card.text)
    assert float(told) == pytest.approx(gain, abs=0.011)


@each_card
def test_a_rendered_card_is_of_the_template_as_it_is_now(path):
    card, template = path.read_text(), TEMPLATE.read_text()
    headings = [line for line in card.splitlines() if line.startswith("##")]
    assert headings == [line for line in template.splitlines() if line.startswith("##")]
    for start in ("- images of other origin", "@software{hf_segkd"):
        assert card.split(start)[1][:110] == template.split(start)[1][:110]


def test_the_card_of_camvid_shows_none_of_its_images_and_names_its_terms():
    card = next(path for path in CARDS if path.parent.name == "camvid")
    assert [file.name for file in card.parent.glob("*.png")] == ["per_class_iou.png"]
    assert "Not shown: the frames of CamVid are for non-commercial use." in card.read_text()
    assert "CC BY-NC 4.0" in card.read_text()


def test_there_are_cards():
    assert {path.parent.name for path in CARDS} == {"camvid", "demo"}
