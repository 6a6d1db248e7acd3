"""With auto_find_batch_size the report, the card and the checkpoints tell the batch that fitted."""

import json

import pytest
from tiny_runs import arguments, network, processor, same, scenes, weights

from hf_segkd.training.trainer import DistillationTrainer


class OfSmallMemory(DistillationTrainer):
    """A device on which three images fit."""

    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["pixel_values"]) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().training_step(model, inputs, *args, **kwargs)


def small(folder, batch=8, **options):
    return OfSmallMemory(
        network(),
        arguments(folder, auto_find_batch_size=True, per_device_train_batch_size=batch, max_steps=4, **options),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 3),
        processing_class=processor(),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = small(tmp_path_factory.mktemp("run"), save_strategy="steps", save_steps=2, recipe_batch_size=8)
    run.train()
    run.evaluate()
    return run


def test_the_report_and_the_card_tell_the_batch_that_fitted(trained, tmp_path):
    assert trained.state.train_batch_size <= 3
    assert trained.report().batch_size == trained.report()["batch_size"] == trained.state.train_batch_size
    trained.create_model_card()
    card = (trained._writer.folder / "README.md").read_text()
    assert f"| per\\_device\\_train\\_batch\\_size | {trained.state.train_batch_size} | 8 |" in " ".join(card.split())


def test_the_record_of_a_checkpoint_does_too(trained):
    folder = trained._writer.folder / "checkpoint-2"
    assert json.loads((folder / "distillation.json").read_text())["images per step"] == trained.state.train_batch_size
    saved = json.loads((folder / "training_args.json").read_text())
    assert saved["per_device_train_batch_size"] == trained.state.train_batch_size


def test_the_run_is_resumed_with_the_same_arguments(trained, tmp_path):
    run = small(tmp_path, recipe_batch_size=8)
    run.train(resume_from_checkpoint=str(trained._writer.folder / "checkpoint-2"))
    assert run.args.per_device_train_batch_size == trained.state.train_batch_size
    assert same(weights(run.student), weights(trained.student))
