"""Losses on the labels in a run: beside every method, apart in the log, over all pixels of a step."""

import math

import foreign_models
import pytest
import torch
from network_cases import tiny_network
from test_global_batch import assert_same_training, train
from tiny_runs import network, trainer, weights

from hf_segkd.losses import LOSSES
from hf_segkd.losses.labels import LABEL_LOSSES, LabelLosses, create_label_losses
from hf_segkd.networks import FeatureNetwork
from hf_segkd.training.distiller import Distiller

ALL = ",".join(LABEL_LOSSES)


@pytest.mark.usefixtures("_small_discriminator")
@pytest.mark.parametrize("method", ["none", *LOSSES])
def test_every_method_goes_with_every_loss_on_the_labels_and_the_terms_add_up(method, tmp_path):
    options = {"label_loss": ALL, "label_loss_kwargs": '{"dice": {"weight": 0.5}}', "ce_weight": 2}
    run = trainer(tmp_path, method=method, max_steps=2, class_weights=[1, 2, 3, 4], **options)
    run.train()
    for entry in run.state.log_history[:-1]:
        terms = [name for name in entry if name.startswith("loss_")]
        assert {f"loss_{name}" for name in LABEL_LOSSES} <= set(terms)
        assert all(math.isfinite(entry[name]) for name in terms)
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in terms), rel=1e-4)
        assert entry["loss_dice"] == pytest.approx(entry["raw_dice"] / 2, rel=1e-5)
        assert entry["loss_ce"] == pytest.approx(2 * entry["raw_ce"], rel=1e-5)


def test_equal_class_weights_train_the_student_that_none_train(tmp_path):
    students = []
    for given in (None, [1, 1, 1, 1]):
        run = trainer(tmp_path, class_weights=given)
        run.train()
        students.append(weights(run.student))
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=1e-4, atol=1e-6)


def test_weights_of_a_word_and_of_the_command_line_are_read(tmp_path):
    assert trainer(tmp_path, class_weights=["1", "2", "0.5", "1e-1"]).args.class_weights == [1, 2, 0.5, 0.1]
    assert trainer(tmp_path, class_weights=torch.tensor([1.0, 2, 4, 8])).args.class_weights == [1, 2, 4, 8]
    assert trainer(tmp_path, class_weights=["sqrt"]).args.class_weights == "sqrt"
    with pytest.raises(ValueError, match="class_weights has 2 numbers, and the student has 4 classes"):
        trainer(tmp_path, class_weights=[1, 2])


UPERNET = {"id2label": dict(enumerate("abcd"))}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_network("pspnet", classifier_dropout=0.0, auxiliary_loss_weight=0.3),
        lambda: FeatureNetwork(foreign_models.build(foreign_models.upernet, **UPERNET)),
    ],
    ids=["ours", "transformers'"],
)
def test_an_auxiliary_head_learns_with_the_same_losses(make):
    student = make()
    num_labels, weight = student.config.num_labels, student.config.auxiliary_loss_weight
    labels = torch.randint(0, num_labels, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    losses = LabelLosses(create_label_losses("ce,dice", {}), torch.linspace(1, 2, num_labels))
    distiller = Distiller(student, label_losses=losses).train()
    for module in distiller.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    seen = []
    losses.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    output = distiller(images, labels)
    main, auxiliary = seen
    assert list(output.terms) == ["ce", "dice"]
    torch.testing.assert_close(torch.stack(list(output.terms.values())), (main + weight * auxiliary).detach())
    output.loss.backward()
    head = distiller.student.auxiliary_head
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": [1, 5, 0.2, 3]},
        {"class_weights": [1, 5, 0.2, 3], "label_smoothing_factor": 0.1},
        {"label_loss": "focal", "class_weights": [1, 5, 0.2, 3]},
        {"class_weights": "inverse"},
    ],
    ids=["weights", "smoothing", "focal", "counted"],
)
def test_accumulating_two_batches_is_one_batch_of_twice_the_size(options, tmp_path):
    whole, halves = (train(tmp_path, "kd", *sizes, **options) for sizes in ((6, 1), (3, 2)))
    assert_same_training(whole, halves)


def test_dice_is_a_mean_over_batches(tmp_path):
    whole, halves = (train(tmp_path, "none", *sizes, label_loss="dice")["log"] for sizes in ((6, 1), (3, 2)))
    assert whole[0]["raw_dice"] != pytest.approx(halves[0]["raw_dice"], rel=1e-4)


def test_terms_are_divided_by_the_batch_where_a_method_wants_that(tmp_path):
    logs = []
    for divide in (False, True):
        options = {"method": "ofd", "method_kwargs": {"divide_by_batch": divide}, "label_loss": "ce,dice"}
        run = trainer(tmp_path, max_steps=1, **options)
        run.train()
        logs.append(run.state.log_history[0])
    for name in ("raw_ce", "raw_dice"):
        assert logs[1][name] == pytest.approx(logs[0][name] / 4, rel=1e-5)


def test_a_method_whose_term_has_the_name_of_a_loss_on_the_labels_is_refused():
    loss = torch.nn.Module()
    loss.name, loss.weights = "mine", {"dice": 1.0}
    with pytest.raises(ValueError, match="mine has the term dice, which is the name of a loss on the labels"):
        Distiller(network(), loss, label_losses=LabelLosses(create_label_losses("ce,dice", {})))
