from pathlib import Path

import foreign_models
import pytest
import torch
from foreign_models import DENSE, QUERY, build, no_scipy  # noqa: F401
from tiny_runs import NUM_CLASSES, network

from hf_segkd.commands import inspect_model
from hf_segkd.networks import FeatureNetwork
from hf_segkd.networks.feature_paths import DEFAULT_TAPS

pytestmark = pytest.mark.usefixtures("no_scipy")


def saved(make, folder):
    build(make).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("make", DENSE + QUERY, ids=lambda make: make.__name__)
def test_every_row_is_a_tap_that_gives_the_map_that_is_shown(make, tmp_path, capsys):
    rows = inspect_model.main([saved(make, tmp_path), "--config_only"])
    assert 1 < len(rows) <= 25
    assert len({row.path for row in rows}) == len(rows)
    shown = capsys.readouterr().out
    assert all(f"| {row.path} " in shown for row in rows)
    assert type(build(make)).__name__ in shown
    inputs = foreign_models.ONEFORMER_INPUTS if make is foreign_models.oneformer else None
    model = build(make)
    named = FeatureNetwork(model, {f"tap {number}": row.path for number, row in enumerate(rows)}, inputs)
    for number, row in enumerate(rows):
        assert named.tap_channels[f"tap {number}"] == row.shape[1]
    defaults = [tap for row in rows for tap in row.taps]
    assert sorted({*defaults, "logits"}) == sorted(FeatureNetwork(model, inputs=inputs).tap_channels)
    # Queries make their logits of two outputs.
    assert ("logits" in defaults) == (make in DENSE)


def test_sizes_and_strides_are_those_of_the_image(tmp_path, capsys):
    rows = inspect_model.main(["--model", saved(foreign_models.segformer, tmp_path), "--image_size", "64", "128"])
    by_path = {row.path: row for row in rows}
    assert by_path["decode_head.classifier"].shape == (1, NUM_CLASSES, 16, 32)
    assert by_path["decode_head.classifier"].taps == ("logits",)
    assert by_path["segformer.stages.3"].taps == ("stage4", "stage4_pre", "backbone", "backbone_post")
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "segformer.stages.2 " in line]
    assert [cell.strip() for cell in line.split("|")[3:5]] == ["1 x 16 x 4 x 8", "16"]
    assert lines[-1] == "logits of the output: 1 x 4 x 16 x 32, stride 4"


def test_repeated_blocks_are_one_row_and_everything_can_be_seen(tmp_path):
    folder = saved(foreign_models.mobilenet_v2, tmp_path)
    few, many = inspect_model.main([folder]), inspect_model.main([folder, "--all"])
    assert len(few) < 20 < 200 < len(many)
    (repeated,) = [row for row in few if row.path == "mobilenet_v2.layer.8"]
    assert repeated.kind == "MobileNetV2InvertedResidual (last of 4)"
    assert {row.path for row in few} <= {row.path for row in many}


def test_networks_of_the_package_show_the_taps_that_they_name(tmp_path):
    own = network()
    own.save_pretrained(tmp_path)
    rows = inspect_model.main([str(tmp_path)])
    assert {row.path: row.shape[1] for row in rows} == dict(own.tap_channels)
    assert rows[0].shape[2:] == torch.Size((64, 64)) or rows[0].shape[0] == 1


def test_what_is_no_network_is_said(tmp_path):
    with pytest.raises(ValueError, match="neither a folder with a saved network"):
        inspect_model.main([str(tmp_path / "nowhere"), "--config_only"])
    with pytest.raises(ValueError, match="takes height and width"):
        inspect_model.main(["x", "--image_size", "3"])


def test_the_documentation_lists_every_default():
    rows = (Path(__file__).parents[2] / "docs" / "foreign_models.md").read_text().splitlines()
    for model_type, taps in DEFAULT_TAPS.items():
        (row,) = [row for row in rows if f"`{model_type}`" in row.split("|")[:2][-1]]
        assert all(f"`{taps[tap]}`" in row for tap in ("stage1", "encoder", "decoder", "logits") if tap in taps)
