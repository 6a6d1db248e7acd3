"""What `make demo` says about its runs; the runs themselves are in test_end_to_end.py."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hf_segkd.commands.study import Run
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.data.demo import SPLITS
from hf_segkd.evaluation.reports import SCORES_FILE

spec = importlib.util.spec_from_file_location("demo_script", Path(__file__).parents[1] / "scripts" / "demo.py")
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)


def run_of(folder, seed, scores):
    """A finished run with a validation mIoU (0..1) for every second step."""
    folder.mkdir()
    log = [{"step": 2 * (index + 1), "eval_mean_iou": score} for index, score in enumerate(scores)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (folder / SCORES_FILE).write_text(json.dumps({"seed": seed, "mean_iou": scores[-1]}))
    return Run("train", folder)


@pytest.fixture
def runs(tmp_path):
    alone = [run_of(tmp_path / f"a{seed}", seed, [0.1, 0.2, 0.3 + 0.1 * seed, 0.32 + 0.1 * seed]) for seed in (0, 1)]
    return alone, [run_of(tmp_path / f"d{seed}", seed, [0.5]) for seed in (0, 1)]


def test_every_seed_has_a_row_and_its_own_gain(runs):
    gains = demo.gains_of(*runs)
    assert gains == pytest.approx([18, 8])
    assert demo.by_seed(*runs, gains) == [
        ["0", "32.00", "50.00", "+18.00"],
        ["1", "42.00", "50.00", "+8.00"],
        ["all", "37.00 ± 7.07", "50.00 ± 0.00", "13.00 ± 7.07"],
    ]


def test_a_loss_is_told_as_a_loss():
    assert demo.verdict([3.0, -1.0]) == (
        "The distilled student is better with 1 of 2 seeds (+1.00 points of mIoU on average, -1.00 with the worst of "
        "the seeds)."
    )
    assert demo.verdict([-3.0, 1.0]).startswith("The distilled student did NOT gain here (-1.00 points")


def test_the_last_quarter_of_the_student_alone_is_told(runs):
    text = demo.last_quarter(runs[0])
    assert "10.0, 20.0, 35.0, 37.0 (mean of the seeds); +2.00 points since step 6 of 8" in text


def test_the_images_without_labels_are_scenes_that_no_split_has(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "UNLABELLED", 2)
    options = yaml.safe_load((demo.RECIPES / "demo.yaml").read_text())["dataset_options"]
    files = sorted(demo.write_unlabelled(tmp_path / "images", options).iterdir())
    assert [file.name for file in files] == ["train_00000.png", "train_00001.png"]
    first = Image.open(files[0])
    assert first.size == (128, 96)
    for split in ("train", "val", "test"):
        (scene,) = load_segmentation_dataset("demo", split=split, num_images=1, **options)
        assert scene["image"].tobytes() != first.tobytes()


def test_the_student_has_a_small_share_of_the_teachers_labels():
    student, teacher = (
        yaml.safe_load((demo.RECIPES / f"{name}.yaml").read_text()) for name in ("demo", "demo_teacher")
    )
    assert student["max_train_samples"] == 16
    assert "max_train_samples" not in teacher
    assert student["dataset_options"] == teacher["dataset_options"]
    assert SPLITS["train"] == 512
