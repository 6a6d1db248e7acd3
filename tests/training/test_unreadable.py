import pytest
import torch
from accelerate import Accelerator
from several_processes import spawn
from tiny_runs import SIZE, StopAfter, arguments, network, processor, same, scenes, weights

from hf_segkd.commands import train
from hf_segkd.data import AugmentedDataset, TrainTransform, label_info, load_segmentation_dataset
from hf_segkd.training.inputs import unreadable_images
from hf_segkd.training.trainer import DistillationTrainer


@pytest.fixture
def folder(tmp_path):
    """Twelve scenes in files, of which the sixth and, for evaluation, the second are damaged."""
    for split, damaged in (("train", 5), ("val", 1)):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index, row in enumerate(scenes(split)):
            row["image"].save(tmp_path / split / "images" / f"{index:02d}.png")
            row["annotation"].save(tmp_path / split / "labels" / f"{index:02d}.png")
        file = tmp_path / split / "images" / f"{damaged:02d}.png"
        file.write_bytes(file.read_bytes()[:200])
    (tmp_path / "classes.txt").write_text("\n".join(label_info(scenes()).id2label.values()))
    return tmp_path


def trainer(folder, output, student=None, **overrides):
    def load(split):
        return load_segmentation_dataset("folder", folder, split, classes=folder / "classes.txt")

    return DistillationTrainer(
        model=network() if student is None else student,
        args=arguments(output, **overrides),
        train_dataset=load("train"),
        eval_dataset=load("val"),
        processing_class=processor(),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_stops_at_a_damaged_image_by_name(num_workers, folder, tmp_path):
    with pytest.raises(ValueError, match=r"05\.png: cannot be decoded.*bad_images='skip'"):
        trainer(folder, tmp_path / "out", dataloader_num_workers=num_workers).train()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_is_counted_and_named_and_a_resumed_run_ends_the_same(num_workers, folder, tmp_path, caplog):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "bad_images": "skip"}
    options["dataloader_num_workers"] = num_workers
    straight = trainer(folder, tmp_path / "straight", **options)
    straight.train()
    assert straight.unreadable_images == ["05"]
    assert "1 of 12 training images could not be read: 05." in caplog.text
    cut = trainer(folder, tmp_path / "cut", **options)
    cut.add_callback(StopAfter(2))
    cut.train()
    resumed = trainer(folder, tmp_path / "cut", student=network(seed=9), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert same(weights(resumed.model), weights(straight.model))


def test_an_evaluation_always_stops_for_a_score_over_fewer_images_is_another(folder, tmp_path):
    with pytest.raises(ValueError, match=r"01\.png: cannot be decoded"):
        trainer(folder, tmp_path / "out", bad_images="skip").evaluate()


class Tensors(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixel_values": torch.zeros(3, *SIZE), "labels": torch.zeros(SIZE, dtype=torch.int64)}


def test_what_the_policy_can_not_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bad_images is one of stop, skip; got 'ignore'"):
        arguments(tmp_path, bad_images="ignore")
    with pytest.raises(ValueError, match="has to leave bad files out by itself"):
        DistillationTrainer(network(), arguments(tmp_path, bad_images="skip"), train_dataset=Tensors())


def test_labels_out_of_range_in_a_data_set_of_ones_own_are_explained(tmp_path):
    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"pixel_values": torch.zeros(3, *SIZE), "labels": torch.full(SIZE, 3 + index // 3)}

    run = DistillationTrainer(network(), arguments(tmp_path), train_dataset=Own(), eval_dataset=Own())
    for step in (run.train, run.evaluate):
        with pytest.raises(ValueError, match="label out of range: 4; the network has 4 classes"):
            step()


def test_the_report_of_the_command_tells_how_many_images_were_left_out(folder, tmp_path):
    (folder / "val" / "images" / "01.png").unlink()
    (folder / "val" / "labels" / "01.png").unlink()
    flags = [
        *("--dataset", "folder", "--data_dir", str(folder), "--output_dir", str(tmp_path / "out")),
        *("--dataset_options", f'{{"classes": "{folder / "classes.txt"}"}}', "--image_size", *map(str, SIZE)),
        *("--student_config", '{"backbone": "mobilenet_v2", "depth_multiplier": 0.1}', "--max_steps", "3"),
        *("--per_device_train_batch_size", "4", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true"),
    ]
    report = train.main([*flags, "--bad_images", "skip"])
    assert (report.train_images, report.unreadable_images) == (12, 1)
    with pytest.raises(ValueError, match=r"05\.png: cannot be decoded"):
        train.main(flags)


def gather(rank, folder):
    images = AugmentedDataset(scenes(), TrainTransform(SIZE), bad_images="skip")
    images.unreadable[[3, 5 + rank]] = True
    (folder / str(rank)).write_text(" ".join(unreadable_images(images, Accelerator(cpu=True))))


@pytest.mark.slow
def test_two_processes_count_what_either_found(tmp_path):
    spawn(2, tmp_path, gather)
    names = scenes()["image_id"]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {f"{names[3]} {names[5]} {names[6]}"}
