import logging
from types import SimpleNamespace

import foreign_models
import numpy as np
import pytest
import torch
from foreign_models import SIDE, build, no_scipy  # noqa: F401
from PIL import Image
from tiny_runs import SIZE, arguments, network, processor, same, scenes, trainer, weights
from torch import nn
from torch.utils.data import Dataset
from transformers import SegformerImageProcessor, TrainerCallback

from hf_segkd.networks.class_map import ClassMap
from hf_segkd.training.preflight import _centre
from hf_segkd.training.trainer import DistillationTrainer

NAMES = list(network().config.id2label.values())
NAMED = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


class Knowing(nn.Module):
    """A teacher that finds, for a class each, the pixels of some brightness."""

    def __init__(self, brightness=(0, 1, 2, 3), labels=NAMES):
        super().__init__()
        self.config = network().config
        self.config.id2label = dict(enumerate(labels))
        self.tap_channels, self.tap_norms = {"logits": len(labels)}, {}
        self.brightness = torch.tensor(brightness).view(1, -1, 1, 1)
        self.dtype = torch.float32
        self.seen = []

    def forward(self, pixel_values, output_features=False):
        self.seen.append(pixel_values)
        logits = -(pixel_values[:, :1] - self.brightness).abs()
        return SimpleNamespace(logits=logits, features={"logits": logits} if output_features else None)


class PaintedLabels:
    """An image processor that shows the labels of an image in place of it, class 2 with brightness 2."""

    image_mean, image_std, do_normalize = [0.0] * 3, [1.0] * 3, True
    rescale_factor, do_rescale, do_resize = 1.0, True, False

    def __init__(self, dataset):
        self.labels = {row["image"].tobytes(): row["annotation"] for row in dataset}

    def __call__(self, images, return_tensors="pt"):
        known = self.labels.get(images.tobytes(), Image.new("L", images.size))  # training images: class 0
        labels = torch.from_numpy(np.array(known)).float()
        return {"pixel_values": labels.expand(1, 3, *labels.shape)}

    def save_pretrained(self, folder):
        pass


def run_with(folder, teacher, student=None, teacher_processor=None, class_map=None, eval_dataset=None, **options):
    images = scenes("val", 7)
    options = {"method": "kd", "preflight_images": 4, "max_steps": 1, "crop_size": list(SIZE), **options}
    return DistillationTrainer(
        network() if student is None else student,
        arguments(folder, **options),
        teacher=teacher,
        train_dataset=scenes(),
        eval_dataset=images if eval_dataset is None else eval_dataset,
        processing_class=PaintedLabels(images),
        teacher_processor=teacher_processor,
        class_map=class_map,
    )


def scores(run):
    entry = run.state.log_history[0]
    return entry["preflight_teacher_mean_iou"], entry["preflight_student_mean_iou"]


@pytest.fixture
def messages(monkeypatch):
    told = {"info": [], "warning": []}
    for level, texts in told.items():
        monkeypatch.setattr(logging.getLogger("hf_segkd.training.preflight"), level, texts.append)
    return told


def test_a_teacher_that_knows_the_labels_may_teach_and_both_scores_are_logged(tmp_path, messages):
    teacher = Knowing()
    run = run_with(tmp_path, teacher)
    run.train()
    taught, learnt = scores(run)
    assert taught == 1.0
    student = DistillationTrainer(
        network(), arguments(tmp_path), eval_dataset=scenes("val", 7).select([0, 2, 4, 6]),
        processing_class=run.processing_class,
    )  # fmt: skip
    assert learnt == student.evaluate()["eval_mean_iou"]  # evenly spread images
    assert len(teacher.seen) == 4 + 1
    assert messages["info"] == [f"Teacher 100.0 % mIoU, student {100 * learnt:.1f} % on 4 validation images."]


def test_a_teacher_that_is_not_better_stops_the_run_unless_it_is_allowed(tmp_path, messages):
    teacher = Knowing((1, 0, 3, 2))
    run = run_with(tmp_path, teacher)
    before = weights(run.student)
    with pytest.raises(ValueError, match=r"Teacher 0\.0 % mIoU, student .* on 4 .*normalisation.*allow_weak_teacher"):
        run.train()
    assert same(weights(run.student), before)
    assert len(teacher.seen) == 4
    run = run_with(tmp_path, Knowing((1, 0, 3, 2)), allow_weak_teacher=True)
    run.train()
    assert run.state.global_step == 1
    assert ["Teacher 0.0 % mIoU" in text for text in messages["warning"]] == [True]


def test_a_teacher_as_good_as_its_student_is_not_better(tmp_path):
    with pytest.raises(ValueError, match="is not better"):
        trainer(tmp_path, teacher=network(), method="kd", preflight_images=2).train()


def test_the_teacher_is_judged_with_its_own_normalisation_and_class_map(tmp_path):
    own = SegformerImageProcessor(image_mean=[3.0] * 3, image_std=[-1.0] * 3, do_rescale=False)
    labels = ["x", NAMES[3], NAMES[0], "y"]
    # It sees 3 - label: 0 where the student's class is 3, and 3 where it is 0.
    teacher = Knowing((50, 0, 3, 60), labels)
    run = run_with(tmp_path, teacher, teacher_processor=own)
    run.train()
    assert run.teacher.classes.common == (0, 3)
    assert scores(run)[0] == 1.0
    wrong = ClassMap([None, 0, 3, None], labels, NAMES)
    with pytest.raises(ValueError, match=r"Teacher 0\.0 %"):
        run_with(tmp_path, teacher, teacher_processor=own, class_map=wrong).train()
    with pytest.raises(ValueError, match="is not better"):
        run_with(tmp_path, teacher).train()


def test_the_student_is_judged_on_the_common_classes_alone(tmp_path):
    run = run_with(tmp_path, Knowing((0, 2, 70), [NAMES[0], NAMES[2], "x"]))
    with torch.no_grad():  # the student says class 1 where it can, else class 0
        run.student.classifier.weight.zero_()
        run.student.classifier.bias.copy_(torch.tensor([1.0, 9.0, 0.0, 0.0]))
    run.train()
    images = [run.eval_dataset[index]["labels"] for index in (0, 2, 4, 6)]
    count = [sum((image == label).sum().item() for image in images) for label in (0, 2)]
    assert scores(run) == (1.0, pytest.approx(count[0] / sum(count) / 2))


def test_logits_that_are_not_finite_are_an_error_of_their_own(tmp_path):
    teacher = network(width=12, seed=1)
    with torch.no_grad():
        teacher.classifier.bias[2] = torch.nan
    run = trainer(tmp_path, teacher=teacher, method="kd", preflight_images=3, allow_weak_teacher=True)
    with pytest.raises(ValueError, match="not finite for 3 of 3 validation images"):
        run.train()


class Modes(TrainerCallback):
    def on_train_begin(self, args, state, control, model, **kwargs):
        self.modes = [module.training for module in model.modules()]


@pytest.mark.parametrize("method", ["kd", "attnfd"])
def test_training_goes_the_same_way_bit_for_bit_with_it_and_without(method, tmp_path):
    results = []
    for images in (0, 4):
        torch.manual_seed(5)
        run = trainer(tmp_path, method=method, preflight_images=images, allow_weak_teacher=True)
        run.student.decoder.eval()  # a mode of its own
        run.add_callback(recorded := Modes())
        run.train()
        results.append((weights(run.model), torch.get_rng_state(), recorded.modes, run.state.log_history))
    (plain, state, modes, history), (tried, its_state, its_modes, its_history) = results
    assert len(its_history) == len(history) + 1
    assert same(plain, tried)
    assert torch.equal(state, its_state)
    assert modes == its_modes


def test_a_run_that_goes_on_is_not_tried_again(tmp_path):
    options = {"method": "kd", "save_strategy": "steps", "save_steps": 2, "allow_weak_teacher": True}
    trainer(tmp_path, **options, preflight_images=0).train()
    run = trainer(tmp_path, **options | {"allow_weak_teacher": False}, preflight_images=4)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 3


class Crops(Dataset):
    """A user's own data set, of which nobody knows the size of the crops."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixel_values": torch.zeros(3, SIDE, SIDE), "labels": torch.zeros(SIDE, SIDE, dtype=torch.long)}


@pytest.mark.usefixtures("no_scipy")
@pytest.mark.parametrize("data", ["ours", "own"])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_networks_of_one_size_are_tried_on_the_centres_of_images(side, data, tmp_path):
    make = {"teacher": foreign_models.eomt, "student": foreign_models.dpt}[side]
    networks = {"teacher": network(width=12, seed=1), "student": network(), side: build(make, **NAMED)}
    sizes = []
    run = DistillationTrainer(
        networks["student"],
        arguments(tmp_path, method="kd", preflight_images=2, max_steps=1, crop_size=[SIDE, SIDE],
                  allow_weak_teacher=True),
        teacher=networks["teacher"],
        train_dataset=scenes() if data == "ours" else Crops(),
        eval_dataset=scenes("val", 7),
        processing_class=processor(),
    )  # fmt: skip
    networks["teacher"].register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(inputs["pixel_values"]), with_kwargs=True
    )
    run.train()
    assert 0 <= scores(run)[0] <= 1
    image = run.eval_dataset[0]["pixel_values"]
    left = (image.shape[2] - SIDE) // 2
    tried = [pixels for pixels in sizes if pixels.shape[2:] == (SIDE, SIDE)]
    assert torch.equal(tried[0], image[None, :, :, left : left + SIDE])


@pytest.mark.usefixtures("no_scipy")
def test_networks_that_take_no_validation_image_are_not_tried(tmp_path, messages):
    class Choosy(Knowing):
        def forward(self, pixel_values, output_features=False):
            if not output_features:
                raise ValueError("The sizes are wrong.")
            return super().forward(pixel_values, output_features)

    run_with(tmp_path, Choosy()).train()
    (text,) = [text for text in messages["warning"] if "not tried" in text]
    assert "4 of 4 validation images neither whole nor as a crop. The sizes are wrong." in text


def test_the_centre_of_an_image_and_its_labels_fit():
    labels = torch.arange(12).view(3, 4)
    pixels = labels.float().expand(1, 3, 3, 4)
    for size in ((2, 2), (7, 2), (2, 9), (6, 6)):
        cut, cut_labels = _centre(pixels, labels, size, 255)
        assert cut.shape == (1, 3, *size)
        inside = cut_labels != 255
        assert torch.equal(cut[0, 0][inside], cut_labels[inside].float())
        assert inside.sum() == min(size[0], 3) * min(size[1], 4)
    large, fitting = _centre(pixels, labels.repeat_interleave(3, 0).repeat_interleave(3, 1), (2, 2), 255)
    assert torch.equal(large[0, 0], fitting.float())


def test_without_images_or_common_classes_there_is_nothing_to_compare(tmp_path, messages):
    strangers = network(width=12, seed=1, id2label=dict(enumerate("abcdefg")), label2id=None)
    trainer(tmp_path, teacher=strangers, method="at", preflight_images=4, max_steps=1).train()
    run = run_with(tmp_path, Knowing((1, 0, 3, 2)))
    run.eval_dataset = None
    run.train()
    assert [text.split(":")[0] for text in messages["info"]] == ["The teacher is not tried"] * 2
    for images in (Crops(), {"one": Crops()}):
        run_with(tmp_path, Knowing((1, 0, 3, 2)), eval_dataset=images).train()
    assert sum("The teacher is not tried" in text for text in messages["warning"]) == 2


def test_of_several_evaluation_sets_the_first_that_shows_images_is_taken(tmp_path):
    images = {"own": Crops(), "one": scenes("val", 7)}
    with pytest.raises(ValueError, match="is not better"):
        run_with(tmp_path, Knowing((1, 0, 3, 2)), eval_dataset=images).train()
