"""Constructor arguments of Trainer: each works, or is refused with what serves instead."""

import inspect
import re

import pytest
import torch
from tiny_runs import arguments, network, processor, same, scenes, trainer, weights
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer

from hf_segkd.models import DeepLabV3PlusConfig
from hf_segkd.training.search import apply_trial
from hf_segkd.training.trainer import DistillationTrainer
from hf_segkd.training.trainer_options import NOT_TAKEN


def with_init(folder, model_init, **options):
    return DistillationTrainer(
        model_init=model_init,
        args=arguments(folder, **options),
        teacher=network(width=12, seed=1) if options.get("method", "none") != "none" else None,
        train_dataset=scenes(),
        eval_dataset=scenes("val", 7),
        processing_class=processor(),
    )


def new_network(trial=None):
    return network(seed=int(torch.randint(1000, ())))  # drawn from the run's seed


def test_each_argument_of_trainer_is_taken_or_refused_by_name(tmp_path):
    theirs = set(inspect.signature(Trainer.__init__).parameters)
    ours = set(inspect.signature(DistillationTrainer.__init__).parameters)
    assert theirs - ours == NOT_TAKEN.keys()
    for name in NOT_TAKEN:
        with pytest.raises(ValueError, match=f"^{name} is not taken: "):
            DistillationTrainer(network(), arguments(tmp_path), **{name: lambda *values: 0})
        DistillationTrainer(network(), arguments(tmp_path), **{name: None})


def test_an_argument_that_does_not_exist_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match=r"no argument 'train_datset'\. Did you mean 'train_dataset'"):
        DistillationTrainer(network(), arguments(tmp_path), train_datset=scenes())


def test_the_order_of_trainers_arguments_is_told_not_to_be_that_here(tmp_path):
    with pytest.raises(TypeError, match="takes model and args by position, and 2 more were given"):
        DistillationTrainer(network(), arguments(tmp_path), None, scenes())


def test_one_of_model_and_model_init_is_needed(tmp_path):
    with pytest.raises(ValueError, match="neither came"):
        DistillationTrainer(args=arguments(tmp_path))
    with pytest.raises(ValueError, match="both came"):
        DistillationTrainer(network(), arguments(tmp_path), model_init=network)


def test_each_run_begins_with_a_new_student(tmp_path):
    run = with_init(tmp_path, new_network, method="attnfd", ema_decay=0.9)
    students = []
    for _ in range(2):
        before = run.student
        run.train()
        assert run.student is not before
        students.append(weights(run.distiller))
    assert same(*students)
    fixed = trainer(tmp_path, student=None, method="attnfd", ema_decay=0.9)
    assert students[0].keys() == weights(fixed.distiller).keys()


def test_it_trains_as_a_trainer_with_that_model_does(tmp_path):
    def init():
        with torch.random.fork_rng(devices=[]):  # so that what is drawn afterwards is the same
            return network()

    run = with_init(tmp_path, init, method="attnfd", class_weights="inverse")
    run.train()
    other = trainer(tmp_path, method="attnfd", class_weights="inverse")
    other.train()
    assert same(weights(run.distiller), weights(other.distiller))
    assert run.evaluate()["eval_mean_iou"] == other.evaluate()["eval_mean_iou"]


def test_model_init_may_give_a_config_and_takes_no_optimizer(tmp_path):
    config = DeepLabV3PlusConfig(backbone="mobilenet_v2", depth_multiplier=0.1, aspp_channels=8)
    run = with_init(tmp_path, lambda: config, max_steps=1)
    run.train()
    assert run.student.config.id2label[0] == "background"
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers hold the parameters of one student"):
        DistillationTrainer(model_init=network, args=arguments(tmp_path), optimizers=(optimizer, None))


def test_a_new_student_of_other_classes_is_refused(tmp_path):
    sizes = iter((4, 4, 5))
    run = with_init(tmp_path, lambda: network(id2label=None, label2id=None, num_labels=next(sizes)))
    run.train()
    with pytest.raises(ValueError, match="gave a student of 5 classes"):
        run.train()


def test_an_optimizer_class_gets_the_rates_of_the_arguments(tmp_path):
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, weight_decay=0.1, head_lr_multiplier=3.0),
        train_dataset=scenes(),
        processing_class=processor(),
        optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"alpha": 0.7}),
    )
    optimizer = run.create_optimizer()
    assert type(optimizer) is torch.optim.RMSprop
    found = [(group["lr"], group["alpha"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(0.01, 0.7, 0.1), (0.03, 0.7, 0.1)]
    with pytest.raises(ValueError, match="holds lr and weight_decay, and backbone, head and connectors have rates"):
        DistillationTrainer(
            network(),
            arguments(tmp_path),
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1, "weight_decay": 0}),
        )


def test_adapters_of_peft_on_a_student_are_refused(tmp_path):
    class Adapter(nn.Linear):
        __module__ = "peft.tuners.lora.layer"

    student = network()
    student.decode_head_adapter = Adapter(2, 2)
    with pytest.raises(ValueError, match=re.escape("student.merge_and_unload() of a PeftModel")):
        DistillationTrainer(student, arguments(tmp_path))


def test_a_quantised_student_is_refused(tmp_path):
    student = network()
    student.other = nn.Module()
    student.other.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=re.escape("weights are quantised (other.weight is a Tensor of torch.int8)")):
        DistillationTrainer(student, arguments(tmp_path))


# --- search ---


def test_a_search_trains_a_new_student_and_loss_in_each_trial(tmp_path):
    optuna = pytest.importorskip("optuna")
    seen = []

    class Watched(DistillationTrainer):
        def create_optimizer(self, model=None):
            seen.append((self.distiller.loss.name, self.args.learning_rate, self.train_dataset.transform.crop_size))
            held = {id(value) for group in super().create_optimizer(model).param_groups for value in group["params"]}
            assert held == {id(value) for value in self.distiller.parameters() if value.requires_grad}
            return self.optimizer

    def space(trial):
        return {
            "method": trial.suggest_categorical("method", ["attnfd", "kd"]),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
            "crop_size": [16, 16] if trial.number else [16, 24],
        }

    run = Watched(
        model_init=new_network,
        args=arguments(tmp_path, method="attnfd", max_steps=1, ema_decay=0.9, save_strategy="steps", save_steps=1),
        teacher=network(width=12, seed=1),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 3),
        processing_class=processor(),
    )
    best = run.hyperparameter_search(space, n_trials=3, sampler=optuna.samplers.RandomSampler(seed=1))
    assert len({rate for _, rate, _ in seen}) == 3
    assert [size for *_, size in seen] == [(16, 24), (16, 16), (16, 16)]
    assert sorted(folder.name for folder in tmp_path.glob("run-*/*")) == ["checkpoint-1"] * 3
    assert (run.args.learning_rate, run.args.method, run.args.crop_size) == (0.01, "attnfd", None)
    for name, value in best.hyperparameters.items():
        setattr(run.args, name, value)
    run.args.crop_size = [16, 24] if best.run_id == "0" else [16, 16]
    run.train()
    assert run.evaluate()["eval_mean_iou"] == best.objective


def test_a_search_without_what_it_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="build DistillationTrainer with model_init"):
        trainer(tmp_path).hyperparameter_search(n_trials=1)
    run = with_init(tmp_path, lambda: network())
    with pytest.raises(ValueError, match="backend is 'ray', and hyperparameter_search was tried with optuna only"):
        run.hyperparameter_search(n_trials=1, backend="ray")
    with pytest.raises(ValueError, match="n_jobs must be 1"):
        run.hyperparameter_search(n_trials=1, n_jobs=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 0.1}, "is no training argument. Did you mean 'learning_rate'"),
        ({"output_dir": "x"}, "'output_dir', which trials can't vary"),
        ({"teacher_dtype": "bfloat16"}, "'teacher_dtype', which trials can't vary"),
        ({"ce_weight": -1.0}, "ce_weight must be a number from 0"),
        ({"distillation_weight": -1.0}, "distillation_weight must be a number from 0"),
    ],
)
def test_what_a_trial_can_not_vary_is_refused(values, message, tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match=message):
        apply_trial(args, dict(vars(args)), values)


def test_a_trial_keeps_nothing_of_the_trial_before(tmp_path):
    args = arguments(tmp_path)
    before = dict(vars(args))
    apply_trial(args, before, {"label_loss": "dice", "warmup_steps": 0.5, "lr_scheduler_type": "cosine"})
    assert (args.label_loss, args.warmup_steps, type(args.lr_scheduler_type).__name__) == ("dice", 0.5, "SchedulerType")
    apply_trial(args, before, {"learning_rate": 1})
    assert args.label_loss == "ce"
    assert vars(args) == {**before, "learning_rate": 1.0}


# --- other libraries' weights ---


def segformer():
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 8, "num_attention_heads": [1, 1, 2, 2]}
    labels = network().config.id2label
    return SegformerForSemanticSegmentation(SegformerConfig(depths=[1, 1, 1, 1], id2label=labels, **sizes))


def with_lora(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(target_modules=["fc1", "fc2"], init_lora_weights=False))
    return model


def quantised(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), [(with_lora, "adapters of PEFT"), (quantised, "weights are quantised")])
def test_adapters_and_quantised_weights_are_the_teachers_only(change, message, tmp_path):
    teacher = change(segformer()).eval()
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(teacher, arguments(tmp_path))
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        before = teacher(pixel_values=images).logits
    run = trainer(tmp_path, teacher=teacher, method="kd", save_strategy="steps", save_steps=3)
    assert torch.equal(run.teacher.features(images)["logits"], before)
    run.train()
    assert torch.equal(run.teacher.features(images)["logits"], before)
    run.evaluate()
    run.create_model_card()
    again = trainer(tmp_path, teacher=teacher, method="kd")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
