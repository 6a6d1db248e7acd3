"""The private methods of transformers' Trainer that DistillationTrainer overrides are there and called as expected."""

import inspect

import transformers
from transformers import Trainer

from hf_segkd.training.trainer import PRIVATE_OVERRIDES, DistillationTrainer


def changed_hooks(trainer_class):
    """A sentence for each method that is listed and that this Trainer does not have, or calls with other arguments."""
    for name in PRIVATE_OVERRIDES:
        ours = [*inspect.signature(vars(DistillationTrainer)[name]).parameters]
        method = getattr(trainer_class, name, None)
        theirs = None if method is None else [*inspect.signature(method).parameters]
        if theirs != ours:
            found = "there is no such method" if theirs is None else f"it takes {theirs}"
            yield f"Trainer.{name} is overridden with {ours}; in transformers {transformers.__version__} {found}."


def test_the_installed_trainer_has_every_private_method_that_is_overridden():
    assert list(changed_hooks(Trainer)) == []


def test_every_private_override_is_listed_with_its_reason():
    private = {name for name in vars(DistillationTrainer) if name.startswith("_") and not name.endswith("__")}
    assert private & set(dir(Trainer)) == PRIVATE_OVERRIDES.keys()
    assert all(PRIVATE_OVERRIDES.values())


def test_a_method_that_was_renamed_or_takes_something_else_is_named_with_the_version():
    class Renamed:
        _get_output_dir = Trainer._get_output_dir
        _save_checkpoint = Trainer._save_checkpoint
        _push_from_checkpoint = Trainer._push_from_checkpoint
        _load_best_model = Trainer._load_best_model

        def _load_from_checkpoint(self, checkpoint):
            pass

    (sentence,) = changed_hooks(Renamed)
    assert "Trainer._load_from_checkpoint" in sentence
    assert f"transformers {transformers.__version__} it takes ['self', 'checkpoint']" in sentence
    del Renamed._load_from_checkpoint, Renamed._save_checkpoint
    assert ["there is no such method" in text for text in changed_hooks(Renamed)] == [True, True]
