"""Data sets without length, in the form of streams: what they train on, how runs on them resume, what is refused."""

import io
import itertools
import tarfile

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from foreign_rows import TorchStream, file_of, hub_dataset, pairs, png, stream, tensors_of, yield_rows
from several_processes import GLOO, spawn
from tiny_runs import SIZE, StopAfter, arguments, network, processor, same, scenes, weights, without_batch_coupling

from hf_segkd.data import TrainingStream, train_collator, without_labels
from hf_segkd.training.trainer import DistillationTrainer


def trainer(folder, train=None, evaluate=None, student=None, unlabelled=None, **options):
    columns = {key: options.pop(key) for key in ("image_column", "mask_column") if key in options}
    return DistillationTrainer(
        network() if student is None else student,
        arguments(folder, **options),
        teacher=network(width=12, seed=1) if options.get("method") else None,
        train_dataset=train,
        unlabelled_dataset=unlabelled,
        eval_dataset=evaluate,
        processing_class=processor(),
        **columns,
    )


def batches(run, number):
    return list(itertools.islice(run.get_train_dataloader(), number))


def webdataset(num_images=8):
    """Rows as `load_dataset("webdataset", streaming=True)` gives them."""
    rows = [
        {"__key__": f"scene_{n}", "jpg": file_of(image), "mask.png": file_of(mask)}
        for n, (image, mask) in enumerate(pairs(num_images=num_images))
    ]
    features = {"__key__": datasets.Value("string"), "jpg": datasets.Image(), "mask.png": datasets.Image()}
    return datasets.IterableDataset.from_generator(
        yield_rows, gen_kwargs={"shards": [rows]}, features=datasets.Features(features)
    )


FORMS = {
    "with features": stream,
    "without features": lambda: stream(features=False),
    "decoded by a map": lambda: stream().map(lambda row: {"image": row["image"].convert("RGB"), "extra": 1}),
    "webdataset": webdataset,
    "from a data set": lambda: hub_dataset().to_iterable_dataset(),
    "PyTorch's": TorchStream,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_images_of_a_stream_are_augmented_and_scored_as_those_of_a_data_set(form, tmp_path):
    run = trainer(tmp_path, FORMS[form](), FORMS[form](), max_steps=2)
    expected = trainer(tmp_path, scenes(num_images=8), scenes(num_images=8), max_steps=2)
    rows = list(run.train_dataset)
    assert len(rows) == 8
    for row, loaded in zip(rows, expected.train_dataset, strict=True):  # keyed by seed, pass and place
        assert torch.equal(row["pixel_values"], loaded["pixel_values"])
        assert torch.equal(row["labels"], loaded["labels"])
    run.train()
    scores = run.evaluate()
    assert (
        scores["eval_mean_iou"]
        == trainer(tmp_path, None, scenes(num_images=8), run.student).evaluate()["eval_mean_iou"]
    )
    report = run.report()
    assert (report.num_images, report.split) == (8, "eval" if form in ("PyTorch's", "from a data set") else "train")


def write_webdataset(folder):
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, (image, mask) in enumerate(pairs()):
                if number // 4 == shard:
                    for name, picture in (("jpg", image), ("mask.png", mask)):
                        info = tarfile.TarInfo(f"scene_{number}.{name}")
                        info.size = len(png(picture))
                        tar.addfile(info, io.BytesIO(png(picture)))
    return datasets.load_dataset("webdataset", data_files=str(folder / "*.tar"), split="train", streaming=True)


def write_parquet(folder):
    for shard in range(2):
        hub_dataset().select(range(4 * shard, 4 * shard + 4)).to_parquet(folder / f"{shard}.parquet")
    return datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


@pytest.mark.parametrize("write", [write_webdataset, write_parquet])
def test_what_load_dataset_streams_from_files_is_trained_on_by_two_workers(write, tmp_path):
    run = trainer(tmp_path, write(tmp_path), write(tmp_path), max_steps=2, dataloader_num_workers=2)
    loaded = trainer(tmp_path, scenes(num_images=8), scenes(num_images=8), max_steps=2)
    rows = list(run.train_dataset)
    assert all(
        torch.equal(row["labels"], other["labels"]) for row, other in zip(rows, loaded.train_dataset, strict=True)
    )
    if write is write_webdataset:
        assert [row["image_ids"] for row in rows] == [f"scene_{number}" for number in range(8)]
    run.train()
    run.evaluate()
    assert run.report().num_images == 8


def test_a_folder_of_pictures_is_streamed_as_unlabelled_images(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, (image, _) in enumerate(pairs(num_images=4)):
        image.save(tmp_path / "photos" / f"{number}.png")
    images = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), split="train", streaming=True)
    run = trainer(tmp_path, scenes(num_images=4), unlabelled=images, method="kd", max_steps=2)
    assert [row["image_ids"] for row in run.train_dataset][1::2] == ["row 0", "row 1", "row 2", "row 3"]


def test_training_goes_on_with_the_next_pass_and_other_augmentations(tmp_path):
    run = trainer(tmp_path, stream(num_images=6), max_steps=3, seed=5)
    loaded = trainer(tmp_path, scenes(num_images=6), max_steps=3, seed=5).train_dataset
    rows = list(loaded)
    loaded.set_epoch(1)
    rows += list(loaded)
    for number, batch in enumerate(batches(run, 3)):
        expected = train_collator(rows[4 * number : 4 * number + 4])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["labels"], expected["labels"])


def stream_of_numbers():
    rows = [tensors_of(*pair) for pair in pairs()]
    rows = [{"pixel_values": row["pixel_values"].numpy(), "label": row["labels"].numpy()} for row in rows]
    features = {"pixel_values": datasets.Array3D((3, *SIZE), "float32"), "label": datasets.Array2D(SIZE, "int64")}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_iterable_dataset()


@pytest.mark.parametrize("make", [lambda: TorchStream(tensors=True), stream_of_numbers])
def test_tensors_of_a_stream_are_used_as_they_are(make, tmp_path):
    options = {"method": "kd", "preflight_images": 3, "allow_weak_teacher": True}
    run = trainer(tmp_path, make(), make(), max_steps=2, **options)
    (batch,) = batches(run, 1)
    assert set(batch) == {"pixel_values", "labels"}
    assert torch.equal(batch["pixel_values"], torch.stack([tensors_of(*pair)["pixel_values"] for pair in pairs()[:4]]))
    run.train()
    run.evaluate()
    assert run.confusion_matrix.sum() == sum((np.asarray(mask) != 255).sum() for _, mask in pairs())


def test_a_stream_of_tensors_needs_no_image_processor_and_one_of_images_says_that_it_does(tmp_path):
    def start(train, evaluate=None):
        return DistillationTrainer(
            network(), arguments(tmp_path, max_steps=1), train_dataset=train, eval_dataset=evaluate
        )

    run = start(TorchStream(tensors=True), TorchStream(tensors=True))
    run.train()
    assert 0 <= run.evaluate()["eval_mean_iou"] <= 1
    with pytest.raises(ValueError, match="processing_class is missing"):
        start(stream())
    with pytest.raises(ValueError, match="processing_class is missing"):
        start(None, stream())
    with pytest.raises(ValueError, match="train_dataset gives images, and how they become pixel_values is not known"):
        start(TorchStream()).train()
    with pytest.raises(ValueError, match="eval_dataset gives images, and how"):
        start(None, TorchStream()).evaluate()


STREAMS = {
    "in order": lambda: stream(num_images=6, num_shards=2),
    "shuffled": lambda: stream(num_images=6, num_shards=2).shuffle(seed=3, buffer_size=4),
    "PyTorch's": lambda: TorchStream(num_images=6),
}


@pytest.mark.parametrize(("form", "workers"), [*((form, 0) for form in STREAMS), ("shuffled", 2)])
def test_a_run_that_is_resumed_ends_bit_for_bit_the_same(form, workers, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": workers}
    dropout = {"aspp_dropout": 0.3}
    straight = trainer(tmp_path / "straight", STREAMS[form](), student=network(**dropout), **options)
    straight.train()
    cut = trainer(tmp_path / "cut", STREAMS[form](), student=network(**dropout), **options)
    cut.add_callback(StopAfter(2))
    cut.train()
    resumed = trainer(tmp_path / "cut", STREAMS[form](), student=network(seed=9, **dropout), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert same(weights(resumed.model), weights(straight.model))


def test_another_order_or_number_of_workers_is_not_resumed(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    shuffled = {"seed": 3, "buffer_size": 4}
    trainer(tmp_path, stream(num_shards=2).shuffle(**shuffled), **options).train()
    for other in (stream(num_shards=2).shuffle(seed=4, buffer_size=4), stream(num_shards=2)):
        with pytest.raises(ValueError, match="a run whose stream has shuffled"):
            trainer(tmp_path, other, **options).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"a run whose stream has workers 1 \(this run: 2\)"):
        trainer(tmp_path, stream(num_shards=2).shuffle(**shuffled), dataloader_num_workers=2, **options).train(
            resume_from_checkpoint=True
        )
    unseeded = tmp_path / "unseeded"
    trainer(unseeded, stream().shuffle(buffer_size=4), **options).train()
    with pytest.raises(ValueError, match="a run whose stream has shuffled"):
        trainer(unseeded, stream().shuffle(buffer_size=4), **options).train(resume_from_checkpoint=True)


def ids(batches):
    return [name for batch in batches for name in batch["image_ids"]]


def named(num_images, num_shards):
    ((image, mask),) = pairs(num_images=1)
    rows = [{"image": image, "label": mask, "image_id": str(number)} for number in range(num_images)]
    return datasets.IterableDataset.from_generator(
        yield_rows, gen_kwargs={"shards": [rows[shard::num_shards] for shard in range(num_shards)]}
    )


@pytest.mark.parametrize("num_shards", [2, 4])
def test_workers_share_the_shards_and_each_image_comes_once_in_a_pass(num_shards, tmp_path, caplog):
    run = trainer(tmp_path, named(12, num_shards), max_steps=3, dataloader_num_workers=2,
                  per_device_train_batch_size=2)  # fmt: skip
    assert sorted(ids(batches(run, 6)), key=int) == [str(n) for n in range(12)]
    assert "shards" not in caplog.text


def test_fewer_shards_than_workers_are_told_and_evaluated_once(tmp_path, caplog):
    run = trainer(tmp_path, named(4, 1), named(7, 1), max_steps=2, dataloader_num_workers=2)
    assert (
        "train_dataset has 1 shards, fewer than the 2 dataloader_num_workers: 1 of them have nothing to do"
        in caplog.text
    )
    run.train()
    run.evaluate()
    assert run.report().num_images == 7
    assert run.confusion_matrix.sum() == 7 * (np.asarray(pairs(num_images=1)[0][1]) != 255).sum()


@pytest.mark.parametrize("labelled", ["a data set", "a stream"])
@pytest.mark.parametrize("ratio", [0.5, 2])
def test_unlabelled_images_of_a_stream_are_mixed_in_by_their_ratio(labelled, ratio, tmp_path):
    train = scenes(num_images=8) if labelled == "a data set" else stream()
    others = stream("val", 6, masks=False)
    run = trainer(tmp_path, train, unlabelled=others, method="cwd", unlabelled_ratio=ratio, max_steps=3)
    rows = list(run.train_dataset)
    blank = [bool((row["labels"] == 255).all()) for row in rows]
    pattern = [False, False, True] if ratio == 0.5 else [False, True, True]
    assert blank == list(itertools.islice(itertools.cycle(pattern), 8 + round(8 * ratio)))
    if labelled == "a data set":
        names = [row["image_ids"] for row, without in zip(rows, blank, strict=True) if not without]
        assert sorted(names) == sorted(row["image_id"] for row in scenes(num_images=8))
        assert names != sorted(names)
    run.train()
    assert run.state.global_step == 3


def test_report_and_card_of_a_run_on_streams_tell_what_is_known(tmp_path):
    run = trainer(tmp_path, stream(), stream("val", 6), unlabelled=stream("val", 6, masks=False), method="cwd",
                  unlabelled_ratio=0.5, max_steps=2)  # fmt: skip
    run.train()
    run.evaluate()
    report = run.report()
    assert (report.dataset, report.split, report.num_images) == ("generator", "train", 6)
    assert (report.train_images, report.unlabelled_images, report.unlabelled_ratio) == (None, None, 0.5)
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "also learnt from a stream of images without labels, 0.5 for each labelled one." in card
    assert f"{100 * report.mean_iou:.1f}" in card


def test_a_stream_without_labels_trains_by_the_teacher_alone(tmp_path):
    for images in (stream(masks=False), stream(masks=False, features=False)):
        run = trainer(tmp_path, images, method="cwd", max_steps=2)
        run.train()
        assert [step["raw_ce"] for step in run.state.log_history[:-1]] == [0, 0]
    with pytest.raises(ValueError, match=r"images of train_dataset \(image\) have no labels"):
        trainer(tmp_path, stream(masks=False))
    with pytest.raises(ValueError, match="the training batch has no labels"):
        trainer(tmp_path, stream(masks=False, features=False)).train()
    with pytest.raises(ValueError, match=r"eval_dataset gives none for row 0\. Name the column"):
        trainer(tmp_path, evaluate=stream(masks=False)).evaluate()


def test_a_teacher_is_tried_on_the_first_images_of_a_stream(tmp_path):
    def scores(images):
        run = trainer(tmp_path, scenes(), images, method="kd", max_steps=1, preflight_images=3, allow_weak_teacher=True)
        run.train()
        return {name: value for name, value in run.state.log_history[0].items() if name.startswith("preflight")}

    assert scores(stream()) == scores(scenes(num_images=8).select(range(3)))


def test_what_streams_can_not_do_is_refused(tmp_path):
    for train, unlabelled in ((stream(), None), (scenes(), stream())):
        with pytest.raises(
            ValueError, match=r"is a stream \(IterableDataset\), whose length is not known: set max_steps"
        ):
            trainer(tmp_path, train, unlabelled=unlabelled, method="kd", max_steps=-1)
    with pytest.raises(ValueError, match="train_dataset holds the splits train"):
        trainer(tmp_path, datasets.IterableDatasetDict({"train": stream()}))
    with pytest.raises(ValueError, match="train_dataset is split by split_dataset_by_node"):
        trainer(tmp_path, split_dataset_by_node(stream(), 0, 2))
    with pytest.raises(ValueError, match="unlabelled_dataset has 1 shards, fewer than the 2"):
        trainer(tmp_path, stream(num_shards=2), unlabelled=stream(), method="kd", dataloader_num_workers=2)
    with pytest.raises(ValueError, match=r"train_dataset gives tensors .* and images are mixed before"):
        trainer(tmp_path, TorchStream(tensors=True), unlabelled=stream(), method="kd").train()
    with pytest.raises(ValueError, match=r"repeat_threshold 0\.5 is made of the labels .* is a TrainingStream"):
        trainer(tmp_path, stream(), repeat_threshold=0.5).train()


def test_a_stream_that_can_be_read_once_ends_the_run_with_the_reason(tmp_path):
    class Once(torch.utils.data.IterableDataset):
        def __init__(self):
            self.rows = iter(TorchStream())

        def __iter__(self):
            return self.rows

    with pytest.raises(ValueError, match="train_dataset gave 8 images and can't be read again"):
        trainer(tmp_path, Once(), max_steps=3).train()


def test_wrong_labels_of_a_stream_are_errors_and_likely_mistakes_are_told(tmp_path, caplog):
    few = network(id2label=dict(enumerate("ab")), label2id=None)
    with pytest.raises(ValueError, match=r"label of row \d: label out of range: .*has 2 classes"):
        trainer(tmp_path, stream(), student=few).train()
    one = [{"image": image, "label": mask.point(lambda _: 2)} for image, mask in pairs()]
    rows = datasets.IterableDataset.from_generator(yield_rows, gen_kwargs={"shards": [one]})
    trainer(tmp_path, rows, max_steps=3).train()
    assert "the first 8 masks: All labelled pixels are 'striped ellipse'" in caplog.text


def test_a_file_that_can_not_be_read_stops_or_is_left_out(tmp_path, caplog):
    rows = [{"image": file_of(image), "label": mask} for image, mask in pairs(num_images=5)]
    rows[1]["image"] = {"bytes": b"no picture", "path": "broken.jpg"}
    images = datasets.IterableDataset.from_generator(yield_rows, gen_kwargs={"shards": [rows]})
    with pytest.raises(ValueError, match=r"broken.jpg: cannot be decoded.*bad_images='skip' trains without"):
        list(trainer(tmp_path, images).train_dataset)
    run = trainer(tmp_path, images, bad_images="skip")
    assert [row["image_ids"] for row in run.train_dataset] == ["row 0", "row 2", "row 3", "row 4"]
    assert "Left out of training: broken.jpg" in caplog.text
    for row in rows:
        row["image"] = rows[1]["image"]
    broken = datasets.IterableDataset.from_generator(yield_rows, gen_kwargs={"shards": [rows]})
    with pytest.raises(ValueError, match="None of 5 images can be read"):
        trainer(tmp_path, broken, bad_images="skip").train()


def test_an_endless_share_is_a_copy_and_the_streams_own_epoch_stays(tmp_path):
    images = stream(num_images=4).shuffle(seed=1, buffer_size=2)
    run = trainer(tmp_path, images, max_steps=3)
    assert isinstance(run.train_dataset, TrainingStream)
    run.train()
    assert images.epoch == 0
    assert len(list(run.train_dataset)) == 4


def train_uncoupled(folder, batch_size, **options):
    student = without_batch_coupling(network())
    options |= {"per_device_train_batch_size": batch_size, "max_steps": 5, "method": "kd", "unlabelled_ratio": 0.5}
    run = trainer(folder, named(9, 3), named(7, 2), student, stream("val", 5, masks=False), **options)
    run.train()
    scores = run.evaluate()
    return weights(run.student), run.confusion_matrix, scores["eval_loss"], run.report().num_images


def job(rank, folder):
    torch.save(train_uncoupled(folder, 3, **GLOO), folder / f"{rank}.pt")
    run = trainer(folder, named(12, 2), per_device_train_batch_size=3, max_steps=2, **GLOO)
    torch.save(ids(batches(run, 2)), folder / f"ids-{rank}.pt")
    run = trainer(folder, named(12, 2).shuffle(buffer_size=5), named(3, 1).shuffle(buffer_size=5), **GLOO)
    for begin in (run.train, run.evaluate):
        with pytest.raises(ValueError, match="shuffled without a seed"):
            begin()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_stream_and_train_and_score_as_one(processes, tmp_path):
    one, matrix, loss, num_images = train_uncoupled(tmp_path, 3 * processes)
    spawn(processes, tmp_path, job)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for found, counts, its_loss, number in results:
        assert same(found, results[0][0])
        for name, value in one.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert counts.sum() == matrix.sum()
        assert its_loss == pytest.approx(loss, rel=1e-3)
        assert number == num_images == 7
    seen = [name for rank in range(processes) for name in torch.load(tmp_path / f"ids-{rank}.pt")]
    if processes == 2:
        assert sorted(seen, key=int) == [str(n) for n in range(12)]


def test_unlabelled_parts_of_the_loaders_are_mixed_into_a_stream(tmp_path):
    run = trainer(tmp_path, stream(), unlabelled=without_labels(scenes("val", 4)), method="kd", max_steps=2)
    rows = list(run.train_dataset)
    assert sorted({row["image_ids"] for row in rows[1:9:2]}) == sorted(row["image_id"] for row in scenes("val", 4))
