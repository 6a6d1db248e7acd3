import dataclasses
import re
from pathlib import Path

import foreign_models
import pytest
import yaml
from foreign_models import build
from tiny_runs import arguments, network, processor, scenes
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_segkd.data import label_info
from hf_segkd.losses.labels import LABEL_LOSSES
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.training.trainer import DistillationTrainer

ROOT = Path(__file__).parents[1]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network().save_pretrained("runs/teacher")
    processor().save_pretrained("runs/teacher")
    (example,) = blocks("README.md", "python")
    example = example.replace("num_classes=4", "num_classes=4, num_images=8, image_size=(32, 48)")
    example = example.replace("max_steps=500", "max_steps=1, preflight_images=0, use_cpu=True, disable_tqdm=True")
    exec(example, given := {})
    trainer = given["trainer"]
    assert trainer.state.global_step == 1
    saved = AutoModelForSemanticSegmentation.from_pretrained("runs/student")
    assert saved.config.id2label == label_info(scenes()).id2label
    assert trainer.processing_class.to_dict() == processor().to_dict()


def test_the_example_of_a_teacher_of_other_pixels_and_classes_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = list(network().config.id2label.values())
    labels = {"id2label": dict(enumerate(["a", "b", "c"]))}
    build(foreign_models.segformer, **labels).save_pretrained("teacher")
    SegformerImageProcessor(image_mean=[0.5] * 3).save_pretrained("teacher")
    Path("scene_classes.yaml").write_text(yaml.safe_dump({"a": names[0], "b": names[2], "c": None}))
    (example,) = blocks("docs/teachers.md", "python")
    example = re.sub(r'^name = ".*"$', 'name = "teacher"', example, flags=re.M)
    given = {
        "DistillationTrainer": DistillationTrainer,
        "DistillationArguments": lambda **values: arguments(**values | {"folder": "run", "max_steps": 1}),
        **{"student": network(), "student_processor": processor(), "train": scenes(), "val": scenes("val", 2)},
    }
    exec(example, given)
    trainer = given["trainer"]
    assert trainer.state.global_step == 1
    assert trainer.teacher.classes.common == (0, 2)
    assert trainer.teacher.renormalisation is not None


def test_the_example_of_a_class_map_is_one(tmp_path):
    (example,) = blocks("docs/teachers.md", "yaml")
    (tmp_path / "map.yaml").write_text(example)
    teacher = dict(enumerate(["car", "bus", "sky", *(f"class {index}" for index in range(3, 13))]))
    found = ClassMap.from_yaml(tmp_path / "map.yaml", teacher, {0: "person", 1: "vehicle"})
    assert found.groups == ((12,), (0, 1))


def test_the_example_of_an_own_loss_trains(tmp_path):
    (example,) = blocks("docs/own_loss.md", "python")
    given = {"student": network(), "teacher": network(width=12, seed=1), "train": scenes(), "processor": processor()}
    example = example.replace('output_dir="run"', f"**{of_one_step(tmp_path)}")
    exec(example, given)
    (log, *_) = given["trainer"].state.log_history
    assert 0 < log["raw_cosine"] < 2
    assert log["loss_cosine"] == pytest.approx(2 * log["raw_cosine"])
    assert given["trainer"].args.method == "cosine"


def test_the_example_of_an_own_compute_loss_trains(tmp_path):
    (example,) = blocks("docs/methods.md", "python")
    exec(example, given := {})
    args = arguments(tmp_path, max_steps=1, method="kd", label_loss="dice")
    teacher = network(width=12, seed=1)
    run = given["WithPoly"](network(), args, teacher=teacher, train_dataset=scenes(), processing_class=processor())
    run.train()
    (log, *_) = run.state.log_history
    assert 0 < log["loss"] - log["loss_dice"] - log["loss_kd"] < 1


def test_the_table_of_losses_on_the_labels_names_all_with_their_options():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*) \| (\w+) \|$", (ROOT / "docs/methods.md").read_text(), flags=re.M)
    table = {name: (set(re.findall(r"`(\w+)`", options)), over) for name, options, over in rows if name in LABEL_LOSSES}
    assert list(table) == list(LABEL_LOSSES)
    for name, loss in LABEL_LOSSES.items():
        options = {field.name for field in dataclasses.fields(loss)} - {"weight", "smoothing"}
        assert table[name] == (options, "pixels" if loss.averages_pixels else "batches")


def of_one_step(folder):
    values = {"output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    return values | {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
