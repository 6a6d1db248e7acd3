from pathlib import Path

import pytest
from huggingface_hub import ModelCard

CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_rendered_card_has_its_pictures_and_scores(path):
    card = ModelCard.load(path)
    metrics = [result.metric_type for result in card.data.eval_results]
    assert metrics == ["mean_iou", "mean_accuracy", "overall_accuracy"]
    shown = [line.split("](")[1].rstrip(")") for line in card.text.splitlines() if line.startswith("![")]
    assert "per_class_iou.png" in shown
    assert all((path.parent / name).is_file() for name in shown)


def test_the_card_of_camvid_shows_none_of_its_images_and_names_its_terms():
    card = next(path for path in CARDS if path.parent.name == "camvid")
    assert [file.name for file in card.parent.glob("*.png")] == ["per_class_iou.png"]
    assert "non-commercial" in card.read_text()


def test_there_are_cards():
    assert {path.parent.name for path in CARDS} == {"camvid", "demo"}
