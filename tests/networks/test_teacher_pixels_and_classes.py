import json
import math

import foreign_models
import numpy as np
import pytest
import torch
from foreign_models import build, no_scipy  # noqa: F401
from tiny_commands import STUDENT, flags
from tiny_runs import SIZE, arguments, network, processor, scenes
from transformers import MobileViTImageProcessor, SegformerImageProcessor

from hf_segkd.commands import train
from hf_segkd.losses import LOSSES
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.inference import predict
from hf_segkd.networks.teacher import Renormalisation, Teacher
from hf_segkd.training.distiller import build_distiller
from hf_segkd.training.run_report import shown_networks
from hf_segkd.training.trainer import DistillationTrainer

pytestmark = pytest.mark.usefixtures("no_scipy")
NAMES = list(network().config.id2label.values())
ORDER = [2, 0, 3, 1]  # the classes of a teacher that learnt them in another order
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, len(NAMES), (2, *SIZE), generator=torch.Generator().manual_seed(1))
LABELS[:, :8] = 255
ON_FEATURES = ("hint", "at", "sp", "ickd", "ofd", "lad", "ifvd", "attnfd")  # by default
PROCESSORS = {
    "other mean and std": SegformerImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]),
    "not rescaled": SegformerImageProcessor(do_rescale=False, image_mean=[120, 110, 100], image_std=[60, 58, 56]),
    "neither": SegformerImageProcessor(do_rescale=False, do_normalize=False),
    "BGR": MobileViTImageProcessor(do_center_crop=False),
}


def named(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}


def with_head_of(teacher, rows, labels):
    """The same teacher with these rows of its classifier as its classes; None is a class it knew before."""
    other = network(width=12, seed=1, **named(*labels))
    state = teacher.state_dict()
    generator = torch.Generator().manual_seed(2)
    for name in ("classifier.weight", "classifier.bias"):
        fresh = torch.randn(len(rows), *state[name].shape[1:], generator=generator)
        state[name] = torch.stack([fresh[i] if row is None else state[name][row] for i, row in enumerate(rows)])
    other.load_state_dict(state)
    return other.eval()


def distiller_terms(student, teacher, tmp_path, method, labels=LABELS, **options):
    """Each term of the loss on one batch, and the gradient of all for the classifier of the student."""
    distiller = build_distiller(student, teacher, arguments(tmp_path, method=method, **options))
    torch.manual_seed(0)  # dropout
    outputs = distiller(pixel_values=IMAGES, labels=labels, teacher_features=teacher.features(IMAGES))
    student.zero_grad()
    outputs["loss"].backward()
    return outputs["terms"], student.classifier.weight.grad


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, None) for kind in PROCESSORS),
        ("BGR", foreign_models.segformer),
        ("not rescaled", foreign_models.mask2former),
    ],
)
def test_in_training_the_teacher_sees_what_its_own_processor_makes_of_the_crop(kind, make, tmp_path, monkeypatch):
    teacher = network(width=12, seed=1) if make is None else build(make, id2label=network().config.id2label)
    own = PROCESSORS[kind]
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, method="kd", max_steps=1, scale_range=[0.6, 1.2]),  # some crops are padded
        teacher=teacher,
        train_dataset=scenes(),
        processing_class=processor(),
        teacher_processor=own,
    )
    seen, given = [], []
    run.model.student.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    unweighted = run.model.loss.unweighted
    monkeypatch.setattr(run.model.loss, "unweighted", lambda *args: given.append(args[1]) or unweighted(*args))
    run.train()
    pixels, labels = seen[0]["pixel_values"].double(), seen[0]["labels"]
    mean, std = (
        torch.tensor(values).view(3, 1, 1).double() for values in (processor().image_mean, processor().image_std)
    )
    crops = 255 * (pixels * std + mean)
    content = (labels != 255)[:, None].expand_as(crops)
    assert not content.all()
    torch.testing.assert_close(crops[content], crops[content].round(), rtol=0, atol=1e-3)
    own_pixels = own(images=list(crops.float()), do_resize=False, return_tensors="pt")["pixel_values"]
    network_alone = run.teacher.network
    with torch.no_grad():
        expected = network_alone(pixel_values=own_pixels, output_features=True).features["logits"]
    assert run.teacher.renormalisation is not None
    torch.testing.assert_close(given[0]["logits"], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_processors_that_prepare_pixels_alike_and_classes_that_agree_leave_the_teacher_as_it_is():
    teacher, student = network(width=12, seed=1), network()
    alike = SegformerImageProcessor(size={"height": 8, "width": 8})
    alone = Teacher(teacher, alike, student=student, student_processor=processor())
    with torch.no_grad():
        expected = teacher(pixel_values=IMAGES, output_features=True)
        assert torch.equal(alone(IMAGES).logits, expected.logits)
    actual = alone.features(IMAGES)
    assert actual.keys() == expected.features.keys()
    assert all(torch.equal(actual[tap], feature) for tap, feature in expected.features.items())
    assert alone.renormalisation is None
    assert alone.classes.is_identity
    assert Renormalisation(PROCESSORS["BGR"], PROCESSORS["BGR"]).is_identity
    assert not any(Renormalisation(processor(), other).is_identity for other in PROCESSORS.values())


def test_pixels_are_normalised_before_they_are_rounded_to_the_teachers_number_format(tmp_path):
    teacher = network(width=12, seed=1)
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, method="kd", max_steps=1, teacher_dtype="bfloat16"),
        teacher=teacher,
        train_dataset=scenes(),
        processing_class=processor(),
        teacher_processor=PROCESSORS["not rescaled"],
    )
    seen = []
    run.student.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True)
    run.teacher.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run.train()
    of_the_teacher, of_the_student = seen
    assert torch.equal(of_the_teacher, run.teacher.renormalisation(of_the_student).bfloat16())


def test_a_teachers_processor_without_the_students_is_refused():
    with pytest.raises(ValueError, match="but not processing_class"):
        Teacher(network(seed=1), processor(), student=network())


def test_a_student_of_bgr_images_is_trained_on_them(tmp_path):
    own = MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    options = {"crop_size": list(SIZE), "scale_range": [1.0, 1.0], "flip_probability": 0.0}
    run = DistillationTrainer(network(), arguments(tmp_path, **options), train_dataset=scenes(), processing_class=own)
    expected = own(images=scenes()[0]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(run.train_dataset[0]["pixel_values"], expected)


@pytest.mark.parametrize("method", LOSSES)
def test_a_teacher_of_permuted_classes_gives_the_loss_of_the_unpermuted_one(method, tmp_path):
    teacher = network(width=12, seed=1).eval()
    permuted = with_head_of(teacher, ORDER, [NAMES[row] for row in ORDER])
    expected, gradient = distiller_terms(network(), Teacher(teacher), tmp_path, method)
    student = network()
    actual, its_gradient = distiller_terms(student, Teacher(permuted, student=student), tmp_path, method)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-7, msg=name)
    torch.testing.assert_close(its_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert expected["ce"] > 0


def test_paired_by_index_permuted_classes_give_another_loss(tmp_path):
    student, teacher = network(), network(width=12, seed=1).eval()
    permuted = with_head_of(teacher, ORDER, [NAMES[row] for row in ORDER])
    right, _ = distiller_terms(student, Teacher(permuted, student=student), tmp_path, "kd")
    wrong, _ = distiller_terms(student, Teacher(permuted, class_map="index", student=student), tmp_path, "kd")
    assert abs(right["kd"] - wrong["kd"]) > 1e-3


@pytest.mark.parametrize("method", LOSSES)
def test_classes_of_one_side_alone_are_out_of_the_distillation_terms(method, tmp_path):
    teacher = network(width=12, seed=1).eval()
    rows, labels = [None, 3, None, 0, 2, None, None], ["x", NAMES[3], "y", NAMES[0], NAMES[2], "z", "u"]
    larger = with_head_of(teacher, rows, labels)
    student = network()
    terms, gradient = distiller_terms(student, Teacher(larger, student=student), tmp_path, method, ce_weight=0.0)
    assert all(torch.isfinite(value) for value in terms.values())
    assert (gradient[1] == 0).all()
    if method in ON_FEATURES:
        assert (gradient == 0).all()
        return
    assert (gradient[[0, 2, 3]] != 0).any()
    # A student and a teacher of the three classes alone.
    common = [0, 2, 3]
    small = network(**named(*(NAMES[row] for row in common)))
    state = student.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][common]
    small.load_state_dict(state)
    small_teacher = Teacher(with_head_of(teacher, common, [NAMES[row] for row in common]))
    labels = torch.full_like(LABELS, 255)
    for index, row in enumerate(common):
        labels.masked_fill_(LABELS.eq(row), index)
    expected, _ = distiller_terms(small, small_teacher, tmp_path, method, labels=labels, ce_weight=0.0)
    for name in expected.keys() - {"ce"}:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_methods_on_features_need_no_common_class_and_those_on_logits_say_what_to_do(tmp_path):
    student = network()
    stranger = Teacher(network(width=12, seed=1, **named(*"abcdefg")), student=student)
    assert stranger.classes is None
    assert "logits" not in stranger.spec.channels
    assert stranger.features(IMAGES).keys() == stranger.spec.channels.keys()
    terms, _ = distiller_terms(student, stranger, tmp_path, "attnfd")
    same_classes, _ = distiller_terms(network(), Teacher(network(width=12, seed=1)), tmp_path, "attnfd")
    assert terms.keys() == same_classes.keys()
    terms, _ = distiller_terms(network(), stranger, tmp_path, "ifvd")  # the labels are the student's
    alone = Teacher(network(width=12, seed=1, **named(*"abcdefg")))
    expected, _ = distiller_terms(network(), alone, tmp_path, "ifvd")
    assert terms["ifvd"] == expected["ifvd"] > 0
    with pytest.raises(ValueError, match=r"teacher's 7 classes are which of the student's 4.*--class_map FILE\.yaml"):
        distiller_terms(student, stranger, tmp_path, "kd")


def test_adding_up_classes_works_with_query_models(tmp_path):
    student = network()
    labels = [NAMES[0], "part of 1", "other part of 1", NAMES[2], NAMES[3]]
    model = build(foreign_models.maskformer, **named(*labels))
    class_map = ClassMap([0, 1, 1, 2, 3], labels, NAMES)
    teacher = Teacher(model, class_map=class_map, student=student)
    merged = teacher.features(IMAGES)["logits"].exp()
    with torch.no_grad():
        own = teacher.network(pixel_values=IMAGES).logits.exp()
    torch.testing.assert_close(merged, torch.stack([own[:, 0], own[:, 1] + own[:, 2], own[:, 3], own[:, 4]], 1))
    terms, _ = distiller_terms(student, teacher, tmp_path, "kd")
    assert 0 < terms["kd"] < math.inf


def test_the_command_distils_a_student_of_four_classes_from_a_teacher_of_seven_with_other_pixels(tmp_path):
    folder = tmp_path / "teacher"
    network(width=12, seed=1, **named(*"abcdefg")).save_pretrained(folder)
    PROCESSORS["other mean and std"].save_pretrained(folder)
    recipe = {"student_config": STUDENT, "teacher": str(folder), "method": "kd,at", "logging_steps": 1}
    with pytest.raises(ValueError, match="class_map"):
        train.main(flags(tmp_path / "run", **recipe))
    (tmp_path / "map.yaml").write_text(json.dumps({"a": NAMES[0], "b": 0, "g": NAMES[3], "c": None}))
    report = train.main(flags(tmp_path / "run", **recipe, class_map=str(tmp_path / "map.yaml")))
    assert report.steps == 2
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert 0 < history[0]["raw_kd"] < math.inf


def test_the_card_of_a_student_shows_the_masks_of_a_teacher_of_other_classes_in_the_students_colours(tmp_path):
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, method="kd"),
        teacher=(teacher := network(width=12, seed=1, **named(NAMES[3], "x", NAMES[0]))),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 2),
        processing_class=processor(),
        teacher_processor=PROCESSORS["not rescaled"],
    )
    assert run.teacher.network is teacher
    assert run._costs[0]["parameters"] == teacher.num_parameters()
    shown, its_processor = shown_networks(run._run)["teacher"]
    image = scenes("val", 1)[0]["image"]
    pixels = PROCESSORS["not rescaled"](images=image, size=dict(its_processor.size), return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        own = teacher(pixel_values=pixels).logits[:, [0, 2]].argmax(1)[0]
    assert np.array_equal(predict(shown, its_processor, image), torch.tensor([3, 0])[own])
    run._write_publication(tmp_path)
    assert (tmp_path / "comparison.png").is_file()
    stranger = DistillationTrainer(
        network(),
        arguments(tmp_path, method="at"),
        teacher=network(width=12, seed=1, **named(*"abcdefg")),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 2),
        processing_class=processor(),
    )
    assert list(shown_networks(stranger._run)) == ["student"]


@pytest.mark.parametrize("method", ["cirkd"])
def test_an_ignored_label_below_the_number_of_common_classes_changes_nothing(method, tmp_path):
    its_network = with_head_of(network(width=12, seed=1), [1, 3, 2], [NAMES[1], NAMES[3], NAMES[2]])
    teacher = Teacher(its_network, student=network())
    assert teacher.classes.common == (1, 2, 3)
    assert (teacher.spec.num_labels, teacher.spec.channels["logits"]) == (3, 3)
    results = []
    for ignored in (255, 0):
        labels = LABELS.masked_fill((LABELS == 0) | (LABELS == 255), ignored)
        student = network(semantic_loss_ignore_index=ignored)
        results.append(distiller_terms(student, teacher, tmp_path, method, labels))
    (terms, gradient), (its_terms, its_gradient) = results
    assert terms.keys() == its_terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(its_terms[name], value)
    torch.testing.assert_close(its_gradient, gradient)


def test_an_ignored_label_that_is_a_common_class_stays_ignored(tmp_path):
    rows = [0, 1, 3]
    its_network = with_head_of(network(width=12, seed=1), rows, [NAMES[row] for row in rows])
    teacher = Teacher(its_network, student=network())
    student = network(semantic_loss_ignore_index=0)
    distiller = build_distiller(student, teacher, arguments(tmp_path, method="cirkd"))
    labels = torch.tensor([[[0, 1, 2, 3]]])
    _, found = distiller._of_common_classes({"logits": torch.zeros(1, 4, 1, 4)}, labels)
    assert found.tolist() == [[[3, 1, 3, 2]]]  # 3: behind the three common classes, without a label


@pytest.mark.parametrize("given", [{"teacher_processor": PROCESSORS["BGR"]}, {"class_map": "names"}])
def test_what_says_how_a_teacher_is_read_is_refused_without_one(given, tmp_path):
    with pytest.raises(ValueError, match="there is no teacher"):
        DistillationTrainer(network(), arguments(tmp_path), processing_class=processor(), **given)


def test_one_mean_and_one_std_count_for_all_three_colours():
    alike = SegformerImageProcessor(image_mean=[0.5] * 3, image_std=[0.2] * 3)
    assert Renormalisation(SegformerImageProcessor(image_mean=0.5, image_std=0.2), alike).is_identity
