"""The examples in the docstrings of the losses run and give what they show."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from hf_segkd import losses

MODULES = ["hf_segkd.losses", *(f"hf_segkd.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__))]

# What a user has no reason to call.
HELPERS = {"split_patches", "class_sums", "pearson_correlation"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_method_and_its_formulas_have_an_example(name):
    loss = losses.LOSSES[name]
    module = inspect.getmodule(loss)
    formulas = [
        function
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not function.__name__.startswith("_")
    ]
    assert "Example:" in loss.__doc__
    assert all("Example:" in formula.__doc__ for formula in formulas if formula.__name__ not in HELPERS)
