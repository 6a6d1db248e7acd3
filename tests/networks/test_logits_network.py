"""Networks of other libraries as teachers."""

import functools
import json
import math
import re
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_models import build, segformer
from tiny_runs import NUM_CLASSES, SIZE, network, processor, same, scenes, trainer, weights
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from transformers import PreTrainedConfig, SegformerImageProcessor

from hf_segkd import FeatureNetwork, LogitsNetwork
from hf_segkd.data import evenly_spread
from hf_segkd.evaluation.metrics import MeanIoU
from hf_segkd.networks.inference import logits_at, predict
from hf_segkd.networks.teacher import Teacher
from hf_segkd.publishing.publication import cost
from hf_segkd.training.checkpoints import RECORD_FILE
from hf_segkd.training.run_settings import digest, run_settings

IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
NAMES = list(network().config.id2label.values())


class Plain(nn.Module):
    """Convolutions with a batch norm, and a ReLU that writes into its map."""

    def __init__(self, give=lambda logits: logits, num_labels=NUM_CLASSES, width=8):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.BatchNorm2d(width))
        self.encoder[1].running_mean.uniform_(-1, 1)
        self.activation = nn.ReLU(inplace=True)
        self.decoder = nn.Conv2d(width, width, 1)
        self.classifier = nn.Conv2d(width, num_labels, 1)
        self.give = give

    def logits(self, images):
        return self.classifier(self.decoder(self.activation(self.encoder(images))))

    def forward(self, images):
        return self.give(self.logits(images))


def torchvision_network():
    torch.manual_seed(1)
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)


def expected_of(plain):
    with torch.no_grad():
        return plain.eval().logits(IMAGES)


GIVES = {
    "tensor": lambda logits: logits,
    "out": lambda logits: OrderedDict(out=logits, aux=logits + 1),
    "logits": lambda logits: {"loss": None, "logits": logits},
    "object": lambda logits: SimpleNamespace(logits=logits, hidden_states=None),
    "tuple with classes": lambda logits: (logits, logits.mean((2, 3))),
    "dict with one map": lambda logits: {"seg": logits},
}


@pytest.mark.parametrize("give", GIVES.values(), ids=GIVES)
def test_the_logits_are_the_networks_own_in_whichever_form_it_gives_them(give):
    plain = Plain(give).train()
    before = weights(plain)
    teacher = LogitsNetwork(plain)
    assert teacher.model is plain
    assert torch.equal(teacher(pixel_values=IMAGES).logits, expected_of(plain))
    assert teacher.tap_channels == {"logits": NUM_CLASSES}
    assert teacher.config.num_labels == NUM_CLASSES
    assert same(weights(plain), before)
    assert (teacher.num_parameters(), teacher.get_memory_footprint()) == (
        sum(p.numel() for p in plain.parameters()),
        sum(value.nbytes for value in plain.state_dict().values()),
    )


class Predictor:
    def __init__(self, plain, other):
        self.plain, self.other = plain, other

    def method(self, images):
        return self.plain(images)["head"]["masks"][0]

    def __call__(self, images):
        return self.plain(images)["head"]["masks"][0]


def picked(plain, images):
    return plain(images)["head"]["masks"][0]


FUNCTIONS = {
    "lambda": lambda plain, other: lambda images: plain(images)["head"]["masks"][0],
    "partial": lambda plain, other: functools.partial(picked, plain),
    "method": lambda plain, other: Predictor(plain, other).method,
    "callable object": Predictor,
    "method of the module": lambda plain, other: plain.logits,
}


@pytest.mark.parametrize("make", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_modules_that_a_function_calls_are_looked_after_as_a_network_is(make, tmp_path):
    plain, other = (Plain(lambda logits: {"head": {"masks": [logits, logits]}}).train() for _ in range(2))
    before = weights(plain)
    run = trainer(tmp_path, teacher=make(plain, other), method="kd")
    run.train()
    assert same(weights(plain), before)  # the running statistics too
    assert not any(module.training for module in plain.modules())
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert all(module.training for module in other.modules())
    assert list(run.teacher.network.model.networks) == [plain]
    assert torch.equal(run.teacher(IMAGES).logits, expected_of(plain))
    assert 0 < run.state.log_history[0]["raw_kd"] < math.inf


def test_a_function_without_modules_gets_float32_images():
    seen = []

    def function(images):
        seen.append(images.dtype)
        return torch.stack([images[:, 0], -images[:, 1], images[:, 2] / 2], 1)

    teacher = Teacher(function, dtype="bfloat16")
    assert torch.equal(teacher(IMAGES).logits, function(IMAGES))
    assert set(seen) == {torch.float32}
    assert teacher.network.config.network_class == f"{__name__}.{function.__qualname__}"


def test_a_function_of_a_network_can_not_be_cast():
    plain = Plain()
    with pytest.raises(ValueError, match=r"leave teacher_dtype at auto, or pass the network as a module"):
        Teacher(lambda images: plain(images), dtype="bfloat16")
    teacher = Teacher(plain, dtype="bfloat16")
    assert teacher(IMAGES).logits.dtype == torch.bfloat16
    assert plain.classifier.weight.dtype == torch.float32


def test_a_network_of_torchvision_teaches_and_stays_as_it_was(tmp_path):
    given = torchvision_network().train()
    before = weights(given)
    run = trainer(tmp_path, teacher=given, method="kd,cwd,dist", save_strategy="steps", save_steps=3)
    student = weights(run.student)
    run.train()
    assert not same(weights(run.student), student)
    assert same(weights(given), before)
    assert not any(module.training for module in given.modules())
    with torch.no_grad():
        expected = given(IMAGES)["out"]
    assert torch.equal(run.teacher.features(IMAGES)["logits"], expected)
    record = json.loads((tmp_path / "checkpoint-3" / RECORD_FILE).read_text())
    assert record["teacher's config"]["network_class"] == "torchvision.models.segmentation.lraspp.LRASPP"
    assert record["teacher"] == digest(LogitsNetwork(given))
    trainer(tmp_path, teacher=given, method="kd,cwd,dist", max_steps=4).train(resume_from_checkpoint=True)
    with torch.no_grad():
        given.classifier.cbr[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="a teacher whose weights have the SHA-256"):
        trainer(tmp_path, teacher=given, method="kd,cwd,dist", save_strategy="steps", save_steps=3).train(
            resume_from_checkpoint=True
        )
    files = [file for file in tmp_path.rglob("*.safetensors") if b"cbr" in file.read_bytes()]
    assert files == []


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("attnfd", {"places": ["decoder"]}),
        ("cwd", {"tap": "decoder"}),
        ("fakd_pd", {}),
        ("fakd_cwd", {}),
        ("at", {"taps": ["backbone"]}),
    ],
)
def test_methods_on_features_read_the_modules_that_are_named(method, options, tmp_path):
    taps = {"decoder": "decoder", "backbone": r"encoder\.1", "first": "encoder.0"}
    plain = Plain()
    teacher = LogitsNetwork(plain, taps=taps)
    assert teacher.tap_channels == {"logits": 4, "decoder": 8, "backbone": 8, "first": 8}
    with torch.no_grad():
        features = teacher(IMAGES, output_features=True).features
        encoded = plain.encoder(IMAGES)
        assert encoded.min() < 0
        assert torch.equal(features["backbone"], encoded)  # as it was before the ReLU wrote into it
        assert torch.equal(features["decoder"], plain.decoder(encoded.relu()))
    run = trainer(tmp_path, teacher=teacher, method=method, method_kwargs=options, max_steps=1)
    run.train()
    assert run.state.log_history[0][f"raw_{method}"] > 0
    record = run_settings(run.args, run.train_dataset, run.student, run.teacher, processor(), run.distiller.loss)
    assert record["teacher's taps"] == {"decoder": "decoder", "backbone": "encoder.1", "first": "encoder.0"}


def test_a_method_on_features_says_how_to_name_them(tmp_path):
    with pytest.raises(ValueError, match=r"offers \['logits'\].*LogitsNetwork\(teacher, taps=\{"):
        trainer(tmp_path, teacher=Plain(), method="attnfd")
    with pytest.raises(ValueError, match=r"no such module\. The nearest are \['decoder'"):
        LogitsNetwork(Plain(), taps={"decoder": "decoders"})
    plain = Plain()
    plain.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"output of unused \(Linear\), but this module does not run"):
        LogitsNetwork(plain, taps={"decoder": "unused"})


class OneSize(Plain):
    def forward(self, images):
        assert images.shape[-2:] == (32, 32), f"Input size {tuple(images.shape[-2:])} must be 32"
        return super().forward(images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": 4}, r"The teacher is a dict\. A teacher is a network that is called as network\(images\)"),
        (Plain, r"The teacher is the class Plain, not a network of it"),
        (7, r"The teacher is a int"),
        (Plain(lambda logits: None), r"Plain gave a NoneType for images \(1, 3, 64, 64\)\. A teacher is"),
        (Plain(lambda logits: logits[0]), r"Plain gave a tensor of shape \(4, 16, 16\) and torch\.float32"),
        (Plain(lambda logits: logits.argmax(1)), r"shape \(1, 16, 16\) and torch\.int64"),
        (Plain(lambda logits: logits.argmax(1, keepdim=True)), r"shape \(1, 1, 16, 16\) and torch\.int64"),
        (Plain(lambda logits: logits.mean((2, 3))), r"shape \(1, 4\) and torch\.float32"),
        (Plain(lambda logits: logits.repeat(3, 1, 1, 1)), r"shape \(3, 4, 16, 16\) and"),
        (
            Plain(lambda logits: [logits, logits]),
            r"a list with the maps \(1, 4, 16, 16\), \(1, 4, 16, 16\) .*function that picks the logits",
        ),
        (Plain(lambda logits: logits.softmax(1)), "gives probabilities, which add up to 1"),
        (Plain(num_labels=1), r"Plain gives the logit of one class.*functional\.pad\(network\(images\), "),
        (nn.Conv2d(5, 4, 1), r"Conv2d can't be called with one image: RuntimeError: .*num_channels="),
        (OneSize(), r"AssertionError: Input size \(64, 64\) must be 32[\s\S]*image_size=\(height, width\)"),
        (
            torch.export.export(nn.Conv2d(3, 4, 1).eval(), (torch.ones(1, 3, 8, 8),)).module(),
            "can't be put in evaluation mode.*pass the network that was exported",
        ),
        (lambda first, second: first, r"<lambda> can't be called .*missing 1 required positional argument"),
        (lraspp_mobilenet_v3_large, r"lraspp_mobilenet_v3_large can't be called with one image"),
    ],
)
def test_what_is_no_such_network_is_told_what_one_must_be(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, teacher=given, method="kd")


def test_a_foregrounds_logit_becomes_two_classes_as_the_message_says():
    plain = Plain(num_labels=1)
    teacher = LogitsNetwork(lambda images: F.pad(plain(images), (0, 0, 0, 0, 1, 0)), names=["background", "crack"])
    probabilities = teacher(IMAGES).logits.softmax(1)
    torch.testing.assert_close(probabilities[:, 1], expected_of(plain)[:, 0].sigmoid())


def test_a_size_of_224_need_not_be_given():
    class Usual(Plain):
        def forward(self, images):
            assert images.shape[-1] >= 100
            return super().forward(images)

    assert LogitsNetwork(Usual()).config.image_size == 224
    assert LogitsNetwork(Plain()).config.image_size is None


def test_a_network_of_one_size_is_scored_on_the_centres_and_teaches_on_crops(tmp_path):
    options = {"method": "kd", "max_steps": 1, "preflight_images": 4, "allow_weak_teacher": True, "crop_size": [32, 32]}
    run = trainer(tmp_path, teacher=LogitsNetwork(OneSize(), image_size=32), **options)
    run.train()
    assert 0 <= run.state.log_history[0]["preflight_teacher_mean_iou"] <= 1
    assert run.state.log_history[1]["raw_kd"] > 0


def test_networks_of_other_sizes_and_channels_are_told_of():
    teacher = LogitsNetwork(OneSize(), image_size=32)
    assert teacher(torch.ones(1, 3, 32, 32)).logits.shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"OneSize works on images of 32 x 32 and not of 32 x 48: Input size"):
        teacher(IMAGES)
    five = LogitsNetwork(nn.Conv2d(5, 4, 1), num_channels=5)
    with pytest.raises(ValueError, match=r"teacher \(logits-network\) takes images of 5 channels, and the student"):
        Teacher(five, student=network())


@pytest.mark.parametrize(
    "given",
    [
        torchvision_network(),
        Plain(),
        LogitsNetwork(Plain()),
        LogitsNetwork(network()),
        lambda images: images,
        Plain,
        {},
    ],
    ids=["torchvision", "plain", "LogitsNetwork", "LogitsNetwork of ours", "function", "class", "dict"],
)
def test_they_are_no_students_and_are_told_why(given, tmp_path):
    message = r"The student is (a \w+|the class Plain), and must be a .* loaded by from_pretrained.* can be the teacher"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, student=given)
    with pytest.raises(ValueError, match=r"FeatureNetwork takes a .* of transformers, .*LogitsNetwork\(network"):
        FeatureNetwork(Plain(), taps={"decoder": "decoder"})


def test_a_config_of_its_own_does_not_matter_but_one_of_transformers_names_the_classes():
    plain = Plain()
    plain.config = {"classes": NUM_CLASSES}
    assert LogitsNetwork(plain).config.id2label == {index: f"LABEL_{index}" for index in range(NUM_CLASSES)}
    plain.config = PreTrainedConfig(id2label=dict(enumerate("abcd")))
    assert list(LogitsNetwork(plain).config.id2label.values()) == ["a", "b", "c", "d"]
    plain.config = PreTrainedConfig(id2label=dict(enumerate("ab")))
    assert list(LogitsNetwork(plain, names="efgh").config.id2label.values()) == ["e", "f", "g", "h"]
    with pytest.raises(ValueError, match=r"logits of 4 classes, and 2 names were given: \['a', 'b'\]"):
        LogitsNetwork(plain, names=["a", "b"])


def test_classes_are_paired_by_their_names_where_they_have_some():
    student = network()
    by_index = Teacher(Plain(), student=student)
    assert by_index.classes.is_identity
    reversed_names = Teacher(LogitsNetwork(Plain(), names=NAMES[::-1]), student=student)
    assert torch.equal(reversed_names(IMAGES).logits, by_index(IMAGES).logits.flip(1))


@pytest.mark.parametrize("make", [lambda student: student.forward, LogitsNetwork, lambda student: lambda x: student(x)])
def test_the_student_in_another_cloak_is_no_teacher(make, tmp_path):
    student = network()
    with pytest.raises(ValueError, match="the same object"):
        trainer(tmp_path, student=student, teacher=make(student), method="kd")


def test_it_is_scored_before_the_first_step_with_its_own_pixels(tmp_path):
    plain, images = Plain(), scenes("val", 7)
    own = SegformerImageProcessor(
        size={"height": SIZE[0], "width": SIZE[1]}, do_reduce_labels=False, image_mean=[0.0] * 3, image_std=[0.5] * 3
    )
    run = trainer(tmp_path, teacher=plain, method="kd", preflight_images=4, allow_weak_teacher=True, max_steps=1)
    other = type(run)(
        model=network(), args=run.args, teacher=plain, teacher_processor=own, train_dataset=scenes(),
        eval_dataset=images, processing_class=processor(),
    )  # fmt: skip
    other.train()
    metric = MeanIoU(NUM_CLASSES)
    for row in evenly_spread(images, 4):
        pixels = own(images=row["image"], return_tensors="pt")["pixel_values"]
        labels = torch.from_numpy(np.array(row["annotation"]))[None].long()
        with torch.no_grad():
            metric.update(logits_at(plain(pixels), labels.shape[-2:]).argmax(1), labels)
    logged = other.state.log_history[0]["preflight_teacher_mean_iou"]
    assert logged == pytest.approx(metric.compute()["mean_iou"], abs=1e-4)


def test_masks_costs_and_cards_are_made_with_it(tmp_path):
    plain = Plain()
    image = scenes(num_images=1)[0]["image"]
    mask = predict(LogitsNetwork(plain), processor(), image)
    with torch.no_grad():
        logits = plain(processor()(images=image, return_tensors="pt")["pixel_values"])
    assert torch.equal(mask, logits_at(logits, (image.height, image.width)).argmax(1)[0])
    macs = 8 * 12 * (27 * 8 + 8 * 8 + 8 * 4)
    assert cost("teacher", LogitsNetwork(plain), SIZE)["macs"] == macs
    assert cost("teacher", LogitsNetwork(lambda images: images), SIZE)["macs"] == 0
    run = trainer(tmp_path, teacher=plain, method="kd", max_steps=1)
    run.train()
    run.evaluate()
    run.create_model_card()
    assert "Plain" in (tmp_path / "README.md").read_text()


def test_a_card_is_written_without_what_a_teacher_of_one_size_can_not_show(tmp_path, caplog):
    run = trainer(
        tmp_path, teacher=LogitsNetwork(OneSize(), image_size=32), method="kd", max_steps=1, crop_size=[32, 32]
    )
    run.train()
    run.evaluate()
    run.create_model_card()
    assert re.search(r"^\| teacher +\| 0\.000 M +\| - +\|", (tmp_path / "README.md").read_text(), re.MULTILINE)
    assert "multiply-adds of the teacher are not counted" in caplog.text
    assert "without the teacher, which does not take these images whole" in caplog.text
    assert (tmp_path / "comparison.png").is_file()


@pytest.mark.parametrize("make", [segformer, torchvision_network], ids=["transformers", "torchvision"])
def test_a_wrapper_of_a_network_is_a_network(make, tmp_path):
    inner = build(make, id2label=dict(enumerate(NAMES))) if make is segformer else make()

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner
            self.config = getattr(inner, "config", None)

        def forward(self, x):
            logits = next(iter(self.inner(x).values()))
            return F.interpolate(logits, size=x.shape[-2:])

    before = weights(inner)
    run = trainer(tmp_path, teacher=Wrapper(), method="kd", max_steps=1)
    run.train()
    assert same(weights(inner), before)
    assert run.teacher(IMAGES).logits.shape == (2, NUM_CLASSES, *SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"aux_params": {"classes": 2}}], ids=["masks", "masks and classes"])
def test_networks_of_segmentation_models_pytorch_teach(head, tmp_path):
    library = pytest.importorskip("segmentation_models_pytorch")
    given = library.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES, **head)
    before = weights(given)
    teacher = LogitsNetwork(given, taps={"decoder": "decoder.blocks.4", "stage1": "encoder.layer1"})
    assert teacher.tap_channels == {"logits": 4, "decoder": 16, "stage1": 64}
    options = {"crop_size": [32, 32], "method": "at", "method_kwargs": {"taps": ["decoder"]}, "max_steps": 1}
    run = trainer(tmp_path, teacher=teacher, **options, preflight_images=4, allow_weak_teacher=True)
    run.train()
    assert same(weights(given), before)
    assert run.state.log_history[1]["raw_at"] > 0
    assert "preflight_teacher_mean_iou" in run.state.log_history[0]


@pytest.mark.slow
def test_backbones_of_timm_with_a_head_teach(tmp_path):
    timm = pytest.importorskip("timm")

    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("resnet18", pretrained=False, features_only=True)
            self.head = nn.Conv2d(512, NUM_CLASSES, 1)

        def forward(self, images):
            return self.head(self.backbone(images)[-1])

    given = Segmenter()
    before = weights(given)
    teacher = LogitsNetwork(given, taps={"decoder": "backbone.layer4", "stage1": "backbone:1"})
    assert teacher.tap_channels == {"logits": 4, "decoder": 512, "stage1": 64}
    options = {"method": "attnfd", "method_kwargs": {"places": ["decoder"]}, "max_steps": 1}
    run = trainer(tmp_path, teacher=teacher, **options)
    run.train()
    assert same(weights(given), before)
    assert run.state.log_history[0]["raw_attnfd"] > 0
