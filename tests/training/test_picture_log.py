"""Pictures of validation images in TensorBoard, trackio and wandb."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import SIZE, StopAfter, arguments, network, processor, same, scenes, trainer, weights
from transformers.integrations import TensorBoardCallback

from hf_segkd.data import label_info
from hf_segkd.evaluation.pictures import colour
from hf_segkd.publishing.publication import CELL_WIDTH
from hf_segkd.training.picture_log import PictureLog
from hf_segkd.training.trainer import DistillationTrainer

OPTIONS = {"method": "cwd", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "log_pictures": 2}


class Writer:
    """What TensorBoard's SummaryWriter is asked for."""

    def __init__(self):
        self.images = []

    def add_image(self, name, image, step, dataformats):
        assert dataformats == "HWC"
        self.images.append((name, step, image))

    def add_scalar(self, *values):
        pass

    add_text = flush = close = add_scalar


class Tracker(TensorBoardCallback):
    """TensorBoard's callback without TensorBoard."""

    def __init__(self):
        self.logging_dir, self.tb_writer, self._SummaryWriter = None, Writer(), None
        self.images = self.tb_writer.images


def with_tracker(folder, eval_dataset=None, **options):
    tracker = Tracker()
    run = DistillationTrainer(
        network(),
        arguments(folder, **OPTIONS | options),
        teacher=network(width=12, seed=1),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 7) if eval_dataset is None else eval_dataset,
        processing_class=processor(),
        callbacks=[tracker],
    )
    return run, tracker.images


def cells(picture):
    height = round(CELL_WIDTH * SIZE[0] / SIZE[1])
    return [picture[22 : 22 + height, start : start + CELL_WIDTH] for start in range(0, 4 * CELL_WIDTH, CELL_WIDTH + 4)]


def test_each_evaluation_sends_image_truth_teacher_and_student_with_its_step(tmp_path):
    run, images = with_tracker(tmp_path)
    run.train()
    names = ["eval/picture_0", "eval/picture_1"]
    assert [(name, step) for name, step, _ in images] == [(name, step) for step in (2, 4) for name in names]
    first, last = images[0][2], images[2][2]
    for cell, later in zip(cells(first)[:3], cells(last)[:3], strict=True):
        assert (cell == later).all()  # of the same image and teacher
    row = scenes("val", 7)[0]
    truth = colour(np.array(row["annotation"]), label_info(scenes()).palette)
    shown = cells(first)[1]
    assert (np.asarray(Image.fromarray(truth).resize(shown.shape[1::-1], Image.Resampling.NEAREST)) == shown).all()
    assert not (cells(first)[3] == shown).all()


def test_of_several_sets_each_has_its_pictures(tmp_path):
    sets = {"day": scenes("val", 3), "night": scenes("val", 2)}
    run, images = with_tracker(tmp_path, sets, eval_steps=4, log_pictures=1)
    run.train()
    assert [name for name, *_ in images] == ["eval/day_picture_0", "eval/night_picture_0"]


def test_pictures_change_nothing_that_is_trained(tmp_path):
    students = []
    for number in (0, 2):
        run, _ = with_tracker(tmp_path, log_pictures=number, ema_decay=0.9)
        run.train()
        students.append(weights(run.distiller))
    assert same(*students)


def test_they_show_the_averaged_weights_that_are_scored(tmp_path):
    run, _ = with_tracker(tmp_path, ema_decay=0.9, log_pictures=1)
    run.add_callback(StopAfter(2))
    shown = []
    log = next(callback for callback in run.callback_handler.callbacks if isinstance(callback, PictureLog))
    show = log.networks

    @contextlib.contextmanager
    def watched():
        with show() as networks:
            student = networks["student"][0]
            assert not student.training
            shown.append((weights(student), {name: v.clone() for name, v in run._average._averages.items()}))
            yield networks

    log.networks = watched
    run.train()
    (averaged, own), *_ = shown
    saved = run._average._parameters
    assert all((averaged[name] == value).all() for name, value in saved.items())  # the run ended with the averages
    assert any((averaged[name] != value).any() for name, value in own.items())


def test_without_a_tracker_or_known_images_they_are_refused(tmp_path):
    with pytest.raises(ValueError, match="log_pictures has no tracker to send pictures to: set report_to"):
        trainer(tmp_path, log_pictures=1)
    with pytest.raises(ValueError, match="eval_dataset is a list"):
        with_tracker(tmp_path, [{"pixel_values": torch.zeros(3, 32, 48), "labels": torch.zeros(32, 48).long()}])


def test_tensorboard_has_them(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    run = trainer(tmp_path, **OPTIONS, report_to="tensorboard")
    run.train()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["eval/picture_0", "eval/picture_1"]
    assert [image.step for image in events.Images("eval/picture_1")] == [2, 4]
    picture = Image.open(io.BytesIO(events.Images("eval/picture_0")[0].encoded_image_string))
    assert picture.width == 4 * (CELL_WIDTH + 4) - 4


@pytest.mark.slow
def test_wandb_has_them_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = trainer(tmp_path / "run", **OPTIONS, report_to="wandb")
    run.train()
    wandb.finish()
    files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/eval/picture_*.png"))
    assert len(files) == 4
    assert Image.open(files[0]).width == 4 * (CELL_WIDTH + 4) - 4


@pytest.mark.slow
def test_trackio_has_them(tmp_path):
    pytest.importorskip("trackio")
    code = (
        "import sys; from test_picture_log import OPTIONS, trainer; "
        "trainer(sys.argv[1], **OPTIONS, report_to='trackio', project='pictures', run_name='one').train()"
    )
    paths = [*map(str, (Path(__file__).parent, Path(__file__).parents[1])), os.environ.get("PYTHONPATH", "")]
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, timeout=300)
    files = sorted((tmp_path / "trackio").rglob("*.png"))
    assert len(files) == 4
    assert Image.open(files[0]).width == 4 * (CELL_WIDTH + 4) - 4
