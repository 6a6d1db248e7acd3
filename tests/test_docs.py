import re
from pathlib import Path

import foreign_models
import yaml
from foreign_models import build
from tiny_runs import arguments, network, processor, scenes, trainer
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_segkd.losses import LOSSES
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
    example = example.replace('{"num_classes": 4}', '{"num_classes": 4, "num_images": 8, "image_size": (32, 48)}')
    example = example.replace("max_steps=500", "max_steps=1, preflight_images=0, use_cpu=True, disable_tqdm=True")
    exec(example, given := {})
    assert given["trainer"].state.global_step == 1
    saved = AutoModelForSemanticSegmentation.from_pretrained("runs/student")
    assert saved.config.id2label == given["teacher"].config.id2label


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
    exec(example, {})
    try:
        run = trainer(tmp_path, method="cosine", max_steps=1)
        run.train()
    finally:
        del LOSSES["cosine"]
    (log, *_) = run.state.log_history
    assert 0 < log["raw_cosine"] == log["loss_cosine"] < 2
