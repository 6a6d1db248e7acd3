"""The examples in docstrings are run, and every public name has one."""

import doctest
import importlib

import pytest

import hf_segkd


@pytest.mark.parametrize("name", hf_segkd.__all__)
def test_every_public_name_has_an_example_that_runs(name):
    public = getattr(hf_segkd, name)
    module = importlib.import_module(public.__module__)
    (test,) = [test for test in doctest.DocTestFinder(recurse=False).find(public, name, module=module)]
    assert test.examples
    failures = []
    doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert failures == []
