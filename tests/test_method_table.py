import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

from hf_segkd.losses import LOSSES, create_loss

ROOT = Path(__file__).parents[1]

spec = importlib.util.spec_from_file_location("method_table", ROOT / "scripts" / "method_table.py")
method_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(method_table)


@pytest.fixture(scope="module")
def networks():
    return method_table.spec("resnet18"), method_table.spec("resnet101")


def rows_of(page):
    table = page.read_text().split(method_table.START)[1].split(method_table.END)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    return [[" ".join(cell.split()) for cell in cells] for cells in rows if cells[0].startswith("`")]


@pytest.mark.parametrize("index", range(len(LOSSES)), ids=LOSSES)
def test_the_methods_page_says_of_each_method_what_the_code_does(index, networks):
    row = [" ".join(cell.split()) for cell in method_table.row(list(LOSSES)[index], *networks)]
    assert rows_of(method_table.METHODS_PAGE)[index] == row, "run scripts/method_table.py --write"


def test_the_readme_lists_each_method_once_and_no_other():
    assert rows_of(method_table.README) == [method_table.entry(name) for name in LOSSES]
    assert len(rows_of(method_table.METHODS_PAGE)) == len(LOSSES)


def test_the_page_of_the_arguments_is_made_from_the_losses():
    assert method_table.ARGUMENTS_PAGE.read_text() == method_table.arguments_page(), (
        "run scripts/method_table.py --write"
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_docstrings_describe_the_arguments_there_are_and_no_others(name):
    parameters = inspect.signature(LOSSES[name]).parameters
    assert method_table.descriptions(LOSSES[name]).keys() - {"weights", "student_taps", "teacher_taps"} == set(
        parameters
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_method_says_truly_whether_it_needs_labels(name, networks):
    student, teacher = (method_table.features(network, seed) for seed, network in enumerate(networks))
    stripes = torch.arange(method_table.CROP).expand(method_table.BATCH, method_table.CROP, -1) // 64
    values = []
    for labels in (stripes, stripes.mT.contiguous()):
        torch.manual_seed(0)
        loss = create_loss(name, *networks)
        loss.set_progress(0.5)
        values.append(sum(loss(student, teacher, labels).values()).item())
    assert (values[0] != values[1]) == loss.needs_labels
