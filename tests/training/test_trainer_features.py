"""docs/trainer_features.md says of each field of the installed TrainingArguments whether it works."""

import dataclasses
import re
from pathlib import Path

import pytest
from tiny_runs import arguments, network, processor, scenes
from transformers import TrainingArguments

from hf_segkd.evaluation.argument_roles import ROLES
from hf_segkd.training.refused_arguments import REFUSED
from hf_segkd.training.trainer import DistillationTrainer

PAGE = Path(__file__).parents[2] / "docs" / "trainer_features.md"
FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
# A value that each refused field would be given.
WANTED = {
    "remove_unused_columns": True,
    "batch_eval_metrics": False,
    "include_for_metrics": ["inputs"],
    "eval_do_concat_batches": False,
    "eval_accumulation_steps": 4,
    "eval_use_gather_object": True,
    "label_names": ["masks"],
    "fp16_full_eval": True,
    "bf16_full_eval": True,
    "enable_jit_checkpoint": True,
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"swiglu": True},
    "use_cache": True,
    "include_num_input_tokens_seen": "all",
    "length_column_name": "size",
    "optim_target_modules": "all-linear",
    "fsdp": "full_shard",
    "fsdp_config": {"transformer_layer_cls_to_wrap": ["Block"]},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "parallelism_config": object(),
}
# Of fields that work, the values that do not.
IN_PART = {
    "train_sampling_strategy": "group_by_length",
    "optim": "galore_adamw",
    "debug": "tpu_metrics_debug",
}


def table():
    rows = {}
    text = PAGE.read_text().partition("## Fields of TrainingArguments")[2]
    for line in re.findall(r"^\| (`.*)$", text, re.MULTILINE):
        names, status, *_ = line.split(" | ")
        for name in re.findall("`([a-z0-9_]+)`", names):
            assert name not in rows, f"{name} is there twice"
            rows[name] = status
    return rows


def test_the_table_has_each_field_of_the_installed_class_and_no_other():
    rows = table()
    assert FIELDS - rows.keys() == set(), "say in docs/trainer_features.md whether they work"
    assert rows.keys() <= ROLES.keys()  # not every version of transformers has each
    assert set(rows.values()) == {"works", "differently", "refused"}


def test_what_the_table_calls_refused_is_what_is_tried_here():
    assert {name for name, status in table().items() if status == "refused"} == WANTED.keys()
    assert REFUSED.keys() <= WANTED.keys() | IN_PART.keys()


@pytest.mark.parametrize(("name", "value"), [*WANTED.items(), *IN_PART.items()])
def test_it_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        arguments(tmp_path, **{name: value})


def test_arguments_that_are_written_and_read_again_are_taken(tmp_path):
    values = arguments(tmp_path).to_dict()
    again = arguments(tmp_path, **{name: value for name, value in values.items() if name in FIELDS})
    assert again.to_dict() == values


def test_the_example_of_a_search_runs(tmp_path):
    pytest.importorskip("optuna")
    (example,) = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    run = DistillationTrainer(
        model_init=lambda: network(),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 2),
        processing_class=processor(),
    )
    exec(example.replace("n_trials=10", "n_trials=2"), {"trainer": run})
    assert 1e-3 <= run.args.learning_rate <= 1e-1
    assert run.args.learning_rate != 0.01  # that of before
    assert run.state.global_step == 1
