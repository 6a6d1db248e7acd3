import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import network, scenes
from transformers import SegformerImageProcessor

from hf_segkd.commands import predict
from hf_segkd.networks import inference
from hf_segkd.networks.loading import load_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    network().save_pretrained(folder)
    SegformerImageProcessor(do_resize=False, do_reduce_labels=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def images(tmp_path):
    """Pictures of one name in several folders."""
    for index, name in enumerate(("scene.png", "a/scene.png", "a/b/scene.jpg", "c/scene.webp", "c/other.png")):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        scenes("val", 5)[index]["image"].save(file)
    return tmp_path / "in"


def run(model, images, *flags):
    output = images.parent / "out"
    return predict.main(["--model", model, "--images", str(images), "--output", str(output), *flags])


def files_in(folder):
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def test_folders_in_folders_are_the_same_in_the_output(model, images):
    (images / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(images / ".hidden" / "x.png")
    written = run(model, images)
    output = images.parent / "out"
    names = ["scene", "a/scene", "a/b/scene", "c/other", "c/scene"]
    assert [file.relative_to(output).as_posix() for file in written] == [f"{name}.png" for name in names]
    expected = {"legend.png", *(f"{name}{end}" for name in names for end in (".png", "_mask.png"))}
    assert set(files_in(output)) == expected
    mask = np.asarray(Image.open(output / "a" / "b" / "scene_mask.png"))
    photo = Image.open(images / "a" / "b" / "scene.jpg")
    assert np.array_equal(mask, inference.predict(*load_network(model), photo).numpy())


def test_a_stopped_run_goes_on_with_what_is_missing_and_a_changed_one_begins_again(model, images, monkeypatch, capsys):
    seen, really = [], inference.predict
    monkeypatch.setattr(predict, "predict", lambda *args: seen.append(args[2].size) or really(*args))
    monkeypatch.setattr(predict, "digest", lambda model: "weights")
    output = images.parent / "out"
    whole = run(model, images)
    before = {name: file.read_bytes() for name, file in files_in(output).items()}
    assert len(seen) == 5
    (output / "c" / "other_mask.png").rename(output / "c" / ".other_mask.png.part")  # stopped while it was written
    (output / "scene.png").unlink()
    os.utime(images / "a" / "scene.png", (2e9, 2e9))  # another picture since
    (output / "a" / "b" / "scene_mask.png").write_bytes(b"")
    seen.clear()
    assert run(model, images) == whole
    assert len(seen) == 4
    assert "1 of them were there before" in capsys.readouterr().out
    assert {name: file.read_bytes() for name, file in files_in(output).items()} == before
    for flags in (["--opacity", "1"], ["--opacity", "1", "--tile", "64"]):
        seen.clear()
        run(model, images, *flags)
        assert len(seen) == 5
    seen.clear()
    monkeypatch.setattr(predict, "digest", lambda model: "other weights")
    run(model, images, "--opacity", "1", "--tile", "64")
    assert len(seen) == 5


def test_pictures_of_an_earlier_run_are_no_images(model, images):
    inside = ["--model", model, "--images", str(images), "--output", str(images / "seen")]
    assert len(predict.main(inside)) == len(predict.main(inside)) == 5
    assert len(run(model, images)) == 5


def test_masks_alone_are_half_of_the_work(model, images):
    output = images.parent / "out"
    written = run(model, images, "--masks_only")
    assert all(file.name.endswith("_mask.png") for file in written)
    assert sorted(files_in(output).values()) == sorted(written)


def test_tiles_are_those_of_the_function(model, tmp_path):
    image = scenes("val", 1)[0]["image"].resize((150, 100))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "large.png")
    run(model, tmp_path / "in", "--tile", "64", "96", "--overlap", "16")
    mask = np.asarray(Image.open(tmp_path / "out" / "large_mask.png"))
    expected = inference.predict(*load_network(model), image, tile=(64, 96), overlap=16)
    assert np.array_equal(mask, expected.numpy())
    with pytest.raises(ValueError, match="half the side of a tile, here 32; got 40"):
        run(model, tmp_path / "in", "--tile", "64", "--overlap", "40")
    with pytest.raises(ValueError, match="there is no tile"):
        run(model, tmp_path / "in", "--overlap", "40")


def test_each_process_takes_its_share_of_the_images(model, images, monkeypatch):
    shares = []
    for rank in (0, 1):
        state = SimpleNamespace(
            **{"process_index": rank, "num_processes": 2, "is_main_process": rank == 0, "device": torch.device("cpu")},
            **dict.fromkeys(("wait_for_everyone", "destroy_process_group"), lambda: None),
        )
        monkeypatch.setattr(predict, "PartialState", lambda state=state, **_: state)
        shares.append(run(model, images))
    assert [len(share) for share in shares] == [3, 2]
    assert len({*shares[0], *shares[1]}) == 5


@pytest.mark.slow
def test_accelerate_launch_shares_the_work_and_tells_once_what_could_not_be_read(model, images):
    (images / "a" / "broken.png").write_bytes(b"no picture")
    config = ROOT / "hf_segkd" / "accelerate_configs" / "cpu_two_processes.yaml"
    launch = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", config]
    flags = ["--model", model, "--images", images, "--output", images.parent / "out", "--use_cpu"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    done = subprocess.run(
        [*launch, ROOT / "scripts" / "predict.py", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: 1 of 6 images could not be read") == 1
    assert "Wrote 5 overlays" in done.stdout
    assert len(files_in(images.parent / "out")) == 11
