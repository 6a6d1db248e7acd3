import json
import math

import foreign_models
import pytest
import torch
import torch.nn.functional as F
from foreign_models import DENSE, QUERY, SIDE, build, no_scipy  # noqa: F401
from safetensors.torch import load_file
from several_processes import spawn
from tiny_commands import OPTIONS, flags
from tiny_runs import NUM_CLASSES, network, same, scenes, trainer, weights
from transformers import AutoModelForSemanticSegmentation, TrainerCallback, UperNetForSemanticSegmentation

from hf_segkd.commands import evaluate, train
from hf_segkd.data import label_info, train_collator
from hf_segkd.losses import LOSSES
from hf_segkd.networks import FeatureNetwork
from hf_segkd.training.ema import AVERAGE_FILE

pytestmark = pytest.mark.usefixtures("no_scipy")
CROP = {"crop_size": [SIDE, SIDE], "max_steps": 1}  # DPT takes squares only
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
SEGFORMER = {
    "model_type": "segformer", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 12,
}  # fmt: skip
# Nothing behind them reaches the logits.
UNUSED = {
    "beit": "beit.layers.3.",
    "dpt": ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1."),
    "mobilenet_v2": "mobilenet_v2.conv_1x1.",
}


def student(make=foreign_models.segformer, seed=0):
    return build(make, seed, id2label=label_info(scenes(num_images=1)).id2label)


def config_keys(folder):
    return json.loads((folder / "config.json").read_text()).keys()


def ids(models):
    return [model.__name__ for model in models]


@pytest.mark.parametrize("make", DENSE, ids=ids(DENSE))
def test_every_dense_model_learns_with_all_that_is_not_frozen_and_is_saved_as_it_is(make, tmp_path, caplog):
    run = trainer(tmp_path, student=student(make), method="cwd", **CROP)
    before, gradients = weights(run.student), {}
    frozen = [name for name, value in run.student.named_parameters() if not value.requires_grad]
    assert all(name.startswith(UNUSED[make.__name__]) for name in frozen)
    assert bool(frozen) == (make.__name__ in UNUSED) == (", ".join(frozen) + "." in caplog.text)

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients.update({name: value.grad for name, value in run.student.named_parameters()})

    run.add_callback(Record())
    run.train()
    after = weights(run.student)
    assert [name for name, gradient in gradients.items() if gradient is None] == frozen
    for name, gradient in gradients.items():
        moves = name not in frozen and bool(((gradient != 0) | (before[name] != 0)).any())  # the latter decays
        assert torch.equal(before[name], after[name]) != moves, name
    run.processing_class.size = {"height": SIDE, "width": SIDE}
    scores = run.evaluate(scenes("val", 4))
    assert 0 <= scores["eval_mean_iou"] <= 1
    assert math.isfinite(scores["eval_loss"])
    run.save_model()
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(saved) is type(student(make))
    assert same(weights(saved), after)
    with torch.no_grad():
        torch.testing.assert_close(saved.eval()(IMAGES).logits, run.student.eval()(IMAGES).logits)
    student(make).save_pretrained(tmp_path / "plain")
    assert config_keys(tmp_path) == config_keys(tmp_path / "plain")


def test_what_only_a_distilled_tap_depends_on_is_trained(tmp_path):
    taps = {"unread": "mobilenet_v2.conv_1x1"}
    for read in (["decoder"], ["unread"]):
        model = FeatureNetwork(student(foreign_models.mobilenet_v2), taps=taps)
        teacher = FeatureNetwork(student(foreign_models.mobilenet_v2, seed=1), taps=taps)
        run = trainer(tmp_path, student=model, teacher=teacher, method="at", method_kwargs={"taps": read}, **CROP)
        unread = run.student.mobilenet_v2.conv_1x1.convolution.weight
        assert unread.requires_grad == (read == ["unread"])


def test_the_averages_in_a_checkpoint_have_the_models_own_names(tmp_path):
    trainer(tmp_path, student=student(), ema_decay=0.5, max_steps=1, save_strategy="steps", save_steps=1).train()
    averages = load_file(tmp_path / "checkpoint-1" / AVERAGE_FILE)
    assert averages.keys() == dict(student().named_parameters()).keys()


@pytest.mark.parametrize("make", DENSE, ids=ids(DENSE))
def test_the_loss_is_the_mean_over_labelled_pixels_and_a_zero_with_graph_where_there_are_none(make):
    network = FeatureNetwork(student(make))
    labels = torch.randint(0, NUM_CLASSES, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    labels[:, :, ::3] = 255
    expected = network.model(pixel_values=IMAGES, labels=labels).loss  # in evaluation mode, with its auxiliary head
    network.model.training = True  # itself alone: no dropout, the norms as they are
    loss = network(IMAGES, labels=labels).loss
    torch.testing.assert_close(loss, expected)
    network.model.training = False
    plain = F.interpolate(network(IMAGES).logits, size=labels.shape[1:], mode="bilinear")
    torch.testing.assert_close(network(IMAGES, labels=labels).loss, F.cross_entropy(plain, labels, ignore_index=255))
    network.model.train()
    nothing = network(IMAGES, labels=torch.full_like(labels, 255)).loss
    assert nothing.item() == 0
    nothing.backward()
    gradients = [value.grad for value in network.model.parameters() if value.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("method", [*LOSSES, "none"])
def test_every_method_trains_a_segformer_with_its_default_taps(method, tmp_path):
    run = trainer(tmp_path, student=student(), method=method, **CROP)
    before = weights(run.student)
    run.train()
    assert not same(before, weights(run.student))
    assert all(math.isfinite(value) for value in run.state.log_history[0].values())


@pytest.mark.parametrize("make", DENSE, ids=ids(DENSE))
def test_fakd_gets_the_classifier_and_the_map_that_enters_it(make, tmp_path):
    network = FeatureNetwork(student(make))
    features = network(IMAGES, output_features=True).features
    torch.testing.assert_close(network.reader.classifier(features["decoder"]), features["logits"])
    assert network.reader.classifier.weight.shape[:2] == (NUM_CLASSES, features["decoder"].shape[1])
    run = trainer(tmp_path, student=network, method="fakd_pd", **CROP)
    run.train()
    assert run.state.log_history[0]["raw_fakd_pd"] > 0


def test_fakd_without_such_a_classifier_is_refused(tmp_path):
    model = student()
    head = model.decode_head
    head.classifier = torch.nn.Sequential(head.classifier, torch.nn.Conv2d(NUM_CLASSES, NUM_CLASSES, 3, padding=1))
    with pytest.raises(ValueError, match="no 1x1 convolution whose output is the tap 'logits'"):
        trainer(tmp_path, student=model, method="fakd_pd", **CROP)


@pytest.mark.parametrize("make", QUERY, ids=ids(QUERY))
def test_models_with_queries_are_refused_as_students(make, tmp_path):
    inputs = foreign_models.ONEFORMER_INPUTS if make is foreign_models.oneformer else None
    network = FeatureNetwork(student(make), inputs=inputs)
    with pytest.raises(ValueError, match="can be a teacher, but not a student"):
        trainer(tmp_path, student=network, **CROP)


def test_backbone_and_head_have_their_learning_rates_in_every_model(tmp_path):
    for make in DENSE:
        run = trainer(tmp_path, student=student(make), head_lr_multiplier=10, **CROP)
        groups = {round(group["lr"] / 0.01): group["params"] for group in run.create_optimizer().param_groups}
        model = run.student
        encoder = model.backbone if isinstance(model, UperNetForSemanticSegmentation) else model.base_model
        backbone = {id(value) for value in encoder.parameters() if value.requires_grad}
        assert {id(value) for value in groups[1]} == backbone
        assert set(groups) == {1, 10}
        assert len(groups[10]) > 0


@pytest.mark.parametrize("options", [{"bf16": True}, {"channels_last": True}, {"gradient_accumulation_steps": 2}])
def test_precision_memory_format_and_accumulation_are_as_with_other_students(options, tmp_path):
    run = trainer(tmp_path, student=student(foreign_models.upernet), method="kd,cwd", **CROP, **options)
    run.train()
    assert all(math.isfinite(value) for value in run.state.log_history[0].values())
    run.save_model()


def test_a_run_goes_on_bit_for_bit_from_its_checkpoint(tmp_path):
    options = {"method": "cwd", "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    straight = trainer(tmp_path / "straight", student=student(), **options)
    straight.train()
    resumed = trainer(tmp_path / "resumed", student=student(seed=9), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    assert same(weights(resumed.model), weights(straight.model))
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "straight" / "checkpoint-5")
    assert same(weights(loaded), weights(straight.student))


def test_frozen_takes_the_models_own_names(tmp_path):
    run = trainer(tmp_path, student=student(), frozen=["segformer.stages.0"], **CROP)
    before = weights(run.student.segformer.stages[0])
    run.train()
    assert same(before, weights(run.student.segformer.stages[0]))


def test_networks_of_the_package_have_no_other_taps():
    with pytest.raises(ValueError, match="names its taps itself: backbone, "):
        FeatureNetwork(network())


def test_the_command_trains_a_new_segformer_and_the_others_take_it(tmp_path):
    run, taps = tmp_path / "run", {"decoder": r"decode_head\.linear_f.*"}
    options = {"student_config": SEGFORMER, "student_taps": taps, "teacher_taps": taps, "method": "at"}
    teacher = tmp_path / "teacher"
    train.main(flags(teacher, student_config=SEGFORMER, method="none"))
    report = train.main(flags(run, teacher=str(teacher), method_kwargs={"taps": ["decoder"]}, **options))
    assert report["steps"] == 2
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu"]
    scores = evaluate.main(["--model", str(run), "--output", str(tmp_path / "scores.json"), *data])
    assert scores["confusion_matrix"] == report["confusion_matrix"]


def test_a_config_that_no_student_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no student of model_type 'mask2former'"):
        train.main(flags(tmp_path, student_config={"model_type": "mask2former"}, method="none"))
    with pytest.raises(ValueError, match=r"segformer has no field 'hidden_size'\. Did you mean 'hidden_sizes'"):
        train.main(flags(tmp_path, student_config={**SEGFORMER, "hidden_size": [8]}, method="none"))


def test_a_dropout_that_writes_in_place_does_not_reach_the_tap_before_it():
    model = student()
    model.decode_head.dropout = torch.nn.Dropout(0.5, inplace=True)
    network = FeatureNetwork(model)
    model.train()
    features = network(IMAGES, output_features=True).features
    assert torch.equal(features["decoder"], features["decoder_pre"].relu())


def test_labels_out_of_range_are_refused():
    network = FeatureNetwork(student())
    batch = train_collator([{"pixel_values": IMAGES[0], "labels": torch.zeros(SIDE, SIDE, dtype=torch.int64)}])
    with pytest.raises(ValueError, match="labels must be 0 to 3"):
        network(batch["pixel_values"], labels=batch["labels"] + NUM_CLASSES)


def train_every_dense_model(rank, folder):
    for make in DENSE:
        options = {**CROP, "max_steps": 2, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
        run = trainer(folder / make.__name__, student=student(make), method="kd,cwd", **options)
        assert run.args.world_size == 2
        run.train()  # fails where a parameter gets no gradient
        torch.save(weights(run.student), folder / f"{make.__name__}-{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_every_dense_model_and_end_with_the_same_weights(tmp_path):
    spawn(2, tmp_path, train_every_dense_model)
    for make in DENSE:
        first, second = (torch.load(tmp_path / f"{make.__name__}-{rank}.pt") for rank in (0, 1))
        assert same(first, second)
        assert not same(first, weights(student(make)))


def test_what_an_earlier_trainer_froze_learns_where_another_reads_it(tmp_path):
    taps = {"unread": "mobilenet_v2.conv_1x1"}
    model = student(foreign_models.mobilenet_v2)
    unread = model.mobilenet_v2.conv_1x1.convolution.weight
    teacher = FeatureNetwork(student(foreign_models.mobilenet_v2, seed=1), taps)
    options = {"teacher": teacher, "method": "at", "method_kwargs": {"taps": ["unread"]}, **CROP}
    trainer(tmp_path, student=model, **CROP)
    assert not unread.requires_grad
    trainer(tmp_path, student=FeatureNetwork(model, taps), **options)
    assert unread.requires_grad
    trainer(tmp_path, student=model, **CROP)
    trainer(tmp_path, student=FeatureNetwork(model, taps), frozen=["mobilenet_v2.conv_1x1"], **options)
    assert not unread.requires_grad


def test_a_student_that_is_frozen_as_a_whole_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing would learn"):
        trainer(tmp_path, student=student(), frozen=["segformer", "decode_head"], **CROP)
