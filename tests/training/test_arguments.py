import json
from dataclasses import dataclass, field

import pytest
from accelerate import PartialState

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.training.arguments import DistillationArguments, default_settings


@dataclass
class Extra:
    name: str = field(metadata={"help": "needed"})
    rate: float = 1.0
    sizes: list[int] | None = None
    options: dict | str | None = None
    flag: bool = True


def parse(tmp_path, yaml, *flags):
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    return parse_arguments(Extra, args=["--config", str(path), *flags])[0]


def test_yaml_gives_defaults_and_flags_win(tmp_path):
    extra = parse(tmp_path, "name: a\nrate: 1e-2\nsizes: [3, 4]\noptions: {x: 1}\nflag: no\n", "--rate", "0.5")
    assert (extra.name, extra.rate, extra.sizes, extra.options, extra.flag) == ("a", 0.5, [3, 4], '{"x": 1}', False)


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    extra = parse(tmp_path, "name: a\nrate: 1e-2\noptions: {x: 1e-2, y: [.5E+1, -1e-2], z: e1, v: 1.2e3.4}\n")
    assert extra.rate == 0.01
    assert json.loads(extra.options) == {"x": 0.01, "y": [5.0, -0.01], "z": "e1", "v": "1.2e3.4"}


def test_a_second_config_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, "name: a\n", "--config=other.yaml")
    assert "--config is given twice" in capsys.readouterr().err


def test_a_list_given_as_flag_replaces_the_one_of_the_file(tmp_path):
    assert parse(tmp_path, "name: a\nsizes: [3, 4, 5]\n", "--sizes", "7").sizes == [7]


def test_losses_on_the_labels_are_read_from_yaml_and_flags(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("label_loss: ce,dice\nlabel_loss_kwargs: {dice: {weight: 5e-1}}\nclass_weights: [1, 2.5, 4]\n")
    for flags, weights in (([], [1.0, 2.5, 4.0]), (["--class_weights", "sqrt"], "sqrt")):
        given = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", *flags]
        (args,) = parse_arguments(DistillationArguments, args=given)
        assert args.label_loss_kwargs == {"dice": {"weight": 0.5}}
        assert args.class_weights == weights


@pytest.mark.parametrize(
    ("yaml", "flags", "message"),
    [
        ("nmae: a\n", [], "unknown key 'nmae'. Did you mean 'name'?"),
        ("name: a\n", ["--raet", "2"], "unknown flag --raet. Did you mean 'rate'?"),
        ("name: a\nrate: fast\n", [], "invalid float value: 'fast'"),
        ("name: [a\n", [], "is not YAML"),
        ("- a\n", [], "must hold `key: value` lines"),
        ("rate: 1\n", [], "required: --name"),
        ("name: a\n", ["stray"], "unknown flag stray"),
    ],
)
def test_a_mistake_ends_with_a_message_that_names_it(tmp_path, capsys, yaml, flags, message):
    with pytest.raises(SystemExit):
        parse(tmp_path, yaml, *flags)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) < 12  # the message, not a page of flags


def test_a_missing_config_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Extra, args=["--config", "nowhere.yaml"])
    assert "there is no file nowhere.yaml" in capsys.readouterr().err


def test_defaults_are_those_of_the_literature(tmp_path):
    args = DistillationArguments(output_dir=str(tmp_path))
    assert (args.optim, args.optim_args, args.weight_decay, args.max_grad_norm) == ("sgd", "momentum=0.9", 5e-4, 0.0)
    assert args.lr_scheduler_type == "polynomial"
    assert args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0}
    assert DistillationArguments(output_dir=str(tmp_path), lr_scheduler_type="cosine").lr_scheduler_kwargs is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ce_weight": -1.0}, "ce_weight must be a number from 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 0, got nan"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a number from 1, got 0"),
        ({"seed": -1}, "seed must be a number from 0"),
        ({"max_steps": 0}, "Nothing to train in 0 steps"),
        ({"num_train_epochs": 0}, "Nothing to train in -1 steps or 0 epochs"),
        ({"optim_args": "momentum"}, "optim_args takes name=value"),
        ({"optim_args": "momentum=0.9,weight_decay=1"}, "got 'weight_decay=1'"),
        ({"log_pictures": -1}, "log_pictures must be a number from 0, got -1"),
        ({"fsdp_config": {"xla": True}}, "fsdp_config"),
        ({"neftune_noise_alpha": 1.0}, "embeddings of words"),
        ({"scale_lr": True}, "give recipe_batch_size"),
        ({"crop_size": [3]}, "height and width"),
        ({"scale_range": [1.0]}, "smallest and the largest scale"),
        ({"label_loss": "focl"}, "Unknown loss on the labels 'focl'. Did you mean 'focal'"),
        ({"label_loss_kwargs": "{oops"}, "--label_loss_kwargs takes a JSON object"),
        ({"label_loss": "dice", "label_smoothing_factor": 0.1}, "are of the cross-entropy, and label_loss is 'dice'"),
        ({"label_smoothing_factor": 1.0}, "it must be from 0 to below 1"),
        ({"class_weights": "invers"}, "class_weights is 'invers'. Did you mean 'inverse'"),
        ({"class_weights": ["1", "car"]}, "one word or a number for each class"),
        (
            {"class_weights": "sqrt", "label_loss": "dice,lovasz"},
            "class_weights weigh the pixels of ce, ohem and focal",
        ),
        ({"repeat_threshold": 1.5}, "repeat_threshold is a share of the images, from 0"),
        ({"remove_unused_columns": True}, "remove_unused_columns is True and must be False"),
        ({"method_kwargs": "{oops"}, "--method_kwargs takes a JSON object"),
        ({"lr_scheduler_kwargs": "power=2"}, "--lr_scheduler_kwargs takes a JSON object"),
        ({"torch_compile_backend": "fastest"}, "one of no, eager, .*; got 'fastest'"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(output_dir=str(tmp_path), **values)


def test_the_defaults_are_found_without_setting_up_the_devices_of_a_run_anew(tmp_path):
    DistillationArguments(output_dir=str(tmp_path), use_cpu=True)
    before = dict(PartialState._shared_state)
    assert default_settings()["optim_args"] == "momentum=0.9"
    assert before == PartialState._shared_state != {}
