"""The table of docs/networks.md: which network is taken in which role."""

from pathlib import Path

import foreign_models
import pytest
from foreign_models import build, no_scipy  # noqa: F401
from tiny_runs import network, trainer
from torch import nn

from hf_segkd import FeatureNetwork, LogitsNetwork
from hf_segkd.networks import with_taps

PAGE = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
TABLE = PAGE.split("## Which network in which role")[1].split("\n\n")[1].splitlines()
ROWS = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in TABLE[2:])}
NAMED = {"id2label": network().config.id2label}


def module():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1))


def function():
    inner = module()
    return lambda images: inner(images)


KINDS = {
    "of hf_segkd": [network],
    "of transformers, with logits for each pixel": [lambda: build(foreign_models.segformer, **NAMED)],
    "of transformers, with masks and their classes": [lambda: build(foreign_models.maskformer, **NAMED)],
    "of torchvision, segmentation_models_pytorch, timm; any module": [module],
    "a function that calls a network": [function],
    "any of the above with one class": [
        lambda: build(foreign_models.segformer, id2label={0: "crack"}),
        lambda: build(foreign_models.maskformer, id2label={0: "crack"}),
        lambda: nn.Conv2d(3, 1, 1),
        lambda: lambda images: images[:, :1],
    ],
}


def taken(**roles):
    try:
        return trainer(**roles)
    except ValueError:
        return None


def test_the_table_has_the_kinds_that_are_tried():
    assert list(ROWS) == list(KINDS)


@pytest.mark.usefixtures("no_scipy")
@pytest.mark.parametrize(("kind", "make"), [(kind, make) for kind, makes in KINDS.items() for make in makes])
def test_networks_are_taken_as_the_table_says(kind, make, tmp_path):
    teacher, student, features = ROWS[kind]
    folder = {"folder": tmp_path, "crop_size": [64, 64]}
    assert (taken(teacher=make(), method="kd", **folder) is not None) == (teacher == "yes")
    assert (taken(student=make(), **folder) is not None) == (student == "yes")
    if not features:
        return
    offered = with_taps(make())
    assert (len(offered.tap_channels) > 1) == features.startswith("its own")
    if "FeatureNetwork" in features:
        path = next(path for path, part in offered.model.named_modules() if isinstance(part, nn.Conv2d))
        assert "more" in FeatureNetwork(make(), taps={"more": path}).tap_channels
    elif "LogitsNetwork" in features:
        path = next(path for path, part in offered.model.named_modules() if isinstance(part, nn.Conv2d))
        named = LogitsNetwork(make(), taps={"decoder": path})
        assert named.tap_channels == {"logits": 4, "decoder": 8}
