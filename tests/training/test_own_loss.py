"""A loss that is not of the package, given to the trainer as it is."""

import json
from functools import partial

import pytest
import torch
from resumed_runs import differing
from tiny_runs import arguments, network, processor, same, scenes, weights
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses import LOSSES, AbstractDistillationLoss, create_loss
from hf_segkd.losses.kd import KDLoss
from hf_segkd.training.run_settings import digest
from hf_segkd.training.trainer import DistillationTrainer
from hf_segkd.types import Paper


class Cosine(AbstractDistillationLoss):
    name = "cosine"

    def __init__(self, student, teacher, *, weight=1.0, power=1):
        super().__init__(
            student, teacher, student_taps=("decoder",), teacher_taps=("decoder",), weights={"cosine": weight}
        )
        self.power = power
        self.connector = nn.Conv2d(student.channels["decoder"], teacher.channels["decoder"], 1)

    def extra_repr(self):
        return f"power={self.power}"

    def terms(self, student, teacher, labels):
        similarity = F.cosine_similarity(self.connector(student["decoder"]), teacher["decoder"])
        return {"cosine": (1 - similarity).mean() ** self.power}


class Published(Cosine):
    name = "published"
    paper = Paper("A paper on cosines", "ABC 2030", "3001.00001", "@article{made_up}")


def run_of(folder, loss, teacher=None, **options):
    return DistillationTrainer(
        network(),
        arguments(folder, **options),
        teacher=network(width=12, seed=1) if teacher is None else teacher,
        loss=loss,
        train_dataset=scenes(),
        eval_dataset=scenes("val", 3),
        processing_class=processor(),
    )


@pytest.mark.parametrize(
    ("loss", "kwargs", "recorded"),
    [
        (Cosine, {"weight": 3.0}, {"weight": 3.0}),
        (partial(Cosine, weight=3.0), None, {"weight": 3.0}),
        (lambda student, teacher: Cosine(student, teacher, weight=3.0), None, {}),
    ],
    ids=["class", "partial", "function"],
)
def test_it_trains_as_one_of_the_package_does_and_the_report_names_it(loss, kwargs, recorded, tmp_path, monkeypatch):
    run = run_of(tmp_path, loss, method_kwargs=kwargs)
    run.train()
    run.evaluate()
    report = run.report()
    assert (report.method, report.method_kwargs) == ("cosine", recorded)
    monkeypatch.setitem(LOSSES, "cosine", Cosine)
    listed = run_of(tmp_path, None, method="cosine", method_kwargs={"weight": 3.0})
    listed.train()
    assert same(weights(run.model), weights(listed.model))
    log = run.state.log_history[0]
    assert log["loss_cosine"] == pytest.approx(3 * log["raw_cosine"], rel=1e-5)


def test_the_arguments_that_were_given_stay_as_they_are_and_the_saved_ones_name_the_loss(tmp_path):
    given = arguments(tmp_path)
    run = DistillationTrainer(network(), given, teacher=network(seed=1), loss=Cosine, processing_class=processor())
    assert given.method == "none"
    run.save_model()
    assert json.loads((tmp_path / "training_args.json").read_text())["method"] == "cosine"


def test_the_card_says_that_it_is_of_its_makers_own_or_cites_its_paper(tmp_path):
    for loss in (Cosine, Published):
        run = run_of(tmp_path, loss, max_steps=1)
        run.train()
        run.evaluate()
        run.create_model_card()
        card = (tmp_path / "README.md").read_text()
        assert f"`{loss.name}` (" in card
        own, cited = "`cosine` (a loss of its makers' own, without a publication)", "@article{made_up}"
        assert (own in card, cited in card) == ((True, False) if loss is Cosine else (False, True))
        assert "```bibtex\n\n```" not in card


def test_it_is_resumed_exactly_and_not_with_other_settings(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run_of(tmp_path / "straight", Cosine, **options).train()
    checkpoint = str(tmp_path / "straight" / "checkpoint-2")
    run_of(tmp_path / "resumed", Cosine, **options).train(resume_from_checkpoint=checkpoint)
    assert differing(tmp_path / "straight" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4") == []
    other = run_of(tmp_path / "resumed", lambda *specs: Cosine(*specs, power=2), **options)
    with pytest.raises(ValueError, match="whose loss has settings 'power=1' \\(this run: 'power=2'\\)"):
        other.train(resume_from_checkpoint=checkpoint)
    other = run_of(tmp_path / "resumed", partial(create_loss, "kd"), **options)
    with pytest.raises(ValueError, match="trained with method 'cosine', this run has 'kd'"):
        other.train(resume_from_checkpoint=checkpoint)


def test_the_teacher_is_left_alone(tmp_path):
    teacher = network(width=12, seed=1)
    before = digest(teacher)
    run_of(tmp_path, Cosine, teacher=teacher, max_steps=2).train()
    assert digest(teacher) == before


def test_several_losses_of_the_package_are_one(tmp_path):
    run = run_of(tmp_path, partial(create_loss, "cwd,kd"), method_kwargs={"kd": {"weight": 2}})
    assert run.args.method == "cwd,kd"
    assert run.distiller.loss.weights == {"cwd": 3.0, "kd": 2}


class Nameless(Cosine):
    name = None


class Kd(KDLoss):
    pass


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("cwd", {}, "loss is 'cwd'; it takes a subclass of AbstractDistillationLoss"),
        (nn.MSELoss(), {}, r"loss is MSELoss\(\); it takes a subclass"),
        (lambda student, teacher: nn.MSELoss(), {}, "loss gave a MSELoss; it must give an AbstractDistillationLoss"),
        (Nameless, {}, "Nameless has the name None: give it the class attribute name"),
        (Kd, {}, "Kd has the name 'kd', which is that of hf_segkd's KDLoss"),
        (Cosine, {"method": "kd"}, "method is 'kd' and loss gives 'cosine': only one of them can be"),
    ],
    ids=["word", "object", "no loss", "no name", "name of another", "two methods"],
)
def test_what_is_no_loss_or_another_is_refused(loss, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, loss, **options)


def test_without_a_teacher_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="The loss that was given needs a teacher, and none was given"):
        DistillationTrainer(network(), arguments(tmp_path), loss=Cosine, processing_class=processor())


def test_its_weights_do_not_depend_on_what_was_drawn_before(tmp_path):
    first = run_of(tmp_path, Cosine).distiller.loss.connector.weight
    torch.rand(7)
    assert torch.equal(run_of(tmp_path, Cosine).distiller.loss.connector.weight, first)
