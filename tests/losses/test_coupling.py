"""Which methods compare the images of a batch with each other."""

import re
from pathlib import Path

import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from tiny_runs import without_batch_coupling

from hf_segkd.losses import LOSSES, create_loss

MULTI_GPU = (Path(__file__).parents[2] / "docs" / "multi_gpu.md").read_text()


@pytest.mark.parametrize("method", LOSSES)
def test_a_method_says_truly_whether_it_couples_the_images_of_a_batch(method):
    sides = [make_features(spec, seed, dtype=torch.float64) for seed, spec in enumerate((STUDENT, TEACHER))]
    labels, values = make_labels(), []
    for images in (slice(0, 2), slice(0, 1), slice(1, 2)):
        torch.manual_seed(0)
        loss = without_batch_coupling(create_loss(method, STUDENT, TEACHER)).double()
        loss.set_progress(0.5)
        parts = ({tap: x if tap == "classifier_weight" else x[images] for tap, x in side.items()} for side in sides)
        values.append(sum(loss(*parts, labels[images]).values()).item())
    whole, *halves = values
    assert (whole != pytest.approx(sum(halves) / 2, rel=1e-9)) == LOSSES[method].couples_images


def test_the_page_on_several_processes_says_what_couples_the_images_of_which_methods():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*), ", MULTI_GPU, flags=re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert names == {name for name, loss in LOSSES.items() if loss.couples_images}
