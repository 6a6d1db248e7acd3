"""The arguments of `create_loss`: defaults, presets, and what the documentation gives for public code."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from loss_cases import STUDENT, TEACHER, make_features, make_labels

from hf_segkd.losses import LOSSES, create_loss

PRESETS = [(name, *pair) for name, loss in LOSSES.items() for pair in loss.presets.items()]


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("kd", {"weight": 1.0, "temperature": 1.0, "reduction": "pixel_mean", "drop_ignored": False}),
        ("at", {"weight": 1e4 / (64 * 128), "reduction": "sum", "taps": ("decoder",)}),
        ("sp", {"weight": 3000.0, "gather": True, "tap": "decoder"}),
        ("ickd", {"variant": "cifar", "weight": 2.5, "embed": True, "tap": "decoder"}),
        ("dist", {"weight": 1.0, "temperature": 1.0, "variant": "paper", "auxiliary_tap": None}),
        ("lad", {"weight": 1.0, "vector": "pixel", "tap": "decoder"}),
        ("cwd", {"weight": 3.0, "temperature": 4.0, "tap": "logits"}),
        ("fakd_pd", {"weight": 1.0, "temperature": 1.0, "lambda0": 1.0, "schedule": "cosine", "covariance": "auto"}),
        ("fakd_cwd", {"weight": 3.0, "temperature": 4.0, "lambda0": 1.0, "schedule": "cosine", "covariance": "auto"}),
    ],
)
def test_defaults_are_those_of_the_documentation(name, defaults):
    parameters = inspect.signature(LOSSES[name]).parameters
    assert {key: parameters[key].default for key in defaults} == defaults


def test_the_arguments_that_the_documentation_gives_for_public_code_are_taken():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| .* \| `(\w+)` \| `(\{.*\})` \|$", page, flags=re.MULTILINE)
    assert len(rows) > 10
    sides = [replace(spec, channels={**spec.channels, "auxiliary": 5}) for spec in (STUDENT, TEACHER)]
    features = [make_features(spec, seed) for seed, spec in enumerate(sides)]
    for name, arguments in rows:
        terms = create_loss(name, *sides, **json.loads(arguments))(*features, make_labels())
        assert all(value.isfinite() for value in terms.values()), (name, arguments)


@pytest.mark.parametrize(("name", "option"), [("kd", "drop_ignored"), ("sp", "gather"), ("ofd", "connectors")])
def test_a_word_for_true_or_false_is_refused(name, option):
    with pytest.raises(ValueError, match=f"{name}'s {option} is 'no'; it must be true or false"):
        create_loss(name, STUDENT, TEACHER, **{option: "no"})


@pytest.mark.parametrize(("name", "chooser", "presets"), PRESETS)
def test_a_preset_sets_arguments_of_the_constructor_and_one_of_them_is_the_default(name, chooser, presets):
    parameters = inspect.signature(LOSSES[name]).parameters
    for values in presets.values():
        assert values.keys() <= parameters.keys()
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert any(all(defaults[key] == value for key, value in values.items()) for values in presets.values())


@pytest.mark.parametrize(("name", "chooser", "presets"), PRESETS)
def test_a_given_argument_wins_over_the_preset(name, chooser, presets):
    for preset in presets:
        loss = create_loss(name, STUDENT, TEACHER, **{chooser: preset, "weight": 0.125})
        assert next(iter(loss.weights.values())) == 0.125


@pytest.mark.parametrize(("name", "chooser", "presets"), PRESETS)
def test_an_unknown_preset_names_the_nearest(name, chooser, presets):
    (*_, last) = presets
    with pytest.raises(
        ValueError, match=f"{chooser} is '{last}x'; it must be one of .*{last}'. Did you mean '{last}'?"
    ):
        create_loss(name, STUDENT, TEACHER, **{chooser: f"{last}x"})
    with pytest.raises(ValueError, match=rf"{chooser} is \['{last}'\]; it must be one of"):
        create_loss(name, STUDENT, TEACHER, **{chooser: [last]})


def test_an_argument_that_there_is_not_lists_those_there_are_with_the_preset():
    with pytest.raises(
        ValueError, match=r"cwd has no argument 'divide'.* It takes: preset, weight, temperature, tap\."
    ):
        create_loss("cwd", STUDENT, TEACHER, divide="student")
