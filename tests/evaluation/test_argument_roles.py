import dataclasses

import pytest

from hf_segkd.evaluation.argument_roles import ROLES, TABLE, OnCard, OnResume, role_of
from hf_segkd.training.arguments import DistillationArguments

ARGUMENTS = {argument.name for argument in dataclasses.fields(DistillationArguments)}
# Those that not every version of transformers from 5.11 on has.
OF_SOME_VERSIONS = {"activation_checkpointing", "activation_checkpointing_kwargs", "logging_dir", "warmup_ratio"} | {
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
}


def test_every_argument_of_the_installed_transformers_and_of_ours_has_one_role():
    assert ARGUMENTS - ROLES.keys() == set()
    assert sum(map(len, TABLE.values())) == len(ROLES)


def test_the_table_names_no_argument_that_does_not_exist():
    assert ROLES.keys() - ARGUMENTS <= OF_SOME_VERSIONS


def test_an_argument_that_nobody_classified_is_warned_about_and_compared():
    assert role_of("logit_noise") == (OnResume.FOLLOWED, OnCard.COMPARED)  # no beginning of a name decides


@pytest.mark.parametrize("name", sorted(name for name in ROLES if ROLES[name].on_card is OnCard.PRIVATE))
def test_what_is_private_has_no_bearing_on_a_resumed_run(name):
    """A checkpoint's record goes to the Hub, and so must not name it."""
    assert ROLES[name].on_resume is OnResume.IRRELEVANT
