"""Images of five bands of 16 bits through every command: a class that shows in the fifth band alone is learnt."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from hf_segkd.commands import count_statistics, distill, evaluate, export, inspect_model, predict, publish, train
from hf_segkd.data import check_dataset, load_segmentation_dataset, read_bands
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

tifffile = pytest.importorskip("tifffile", reason="needs tifffile (pip install hf-segkd[tiff])")

BANDS, SIDE = 5, 32
CLASSES = ["ground", "water", "crop"]


def write_scene(folder, name, rng):
    """Water darkens the first four bands; a crop shows in the fifth alone, as near infrared does."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for class_id in (1, 2):
        top, left = rng.integers(0, SIDE // 2, 2)
        mask[top : top + 14, left : left + 14] = class_id
    bands = rng.normal([3000, 2500, 2800, 3100, 900], 120, (SIDE, SIDE, BANDS))
    bands[mask == 1, :4] -= 1500
    bands[mask == 2, 4] += 2500
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    numbers = bands.clip(0).astype(np.uint16)
    tifffile.imwrite(folder / "images" / f"{name}.tif", numbers, photometric="minisblack", planarconfig="contig")
    Image.fromarray(mask).save(folder / "labels" / f"{name}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 5)):
        for index in range(number):
            write_scene(root / split, f"{split}{index}", rng)
    return root


def data_flags(scenes, num_channels=BANDS):
    options = {"classes": CLASSES} | ({} if num_channels is None else {"num_channels": num_channels})
    return ["--dataset", "folder", "--data_dir", str(scenes), "--dataset_options", json.dumps(options)]


STUDENT = {
    "backbone_config": {
        "model_type": "segkd-resnet",
        "num_channels": BANDS,
        "width": 8,
        "depths": [1, 1, 1, 1],
        "strides": [1, 2, 2, 1],
        "out_features": ["stage1", "stage4"],
    },
    "aspp_channels": 16,
    "decoder_channels": 16,
    "low_level_channels": 8,
    "aspp_dropout": 0.0,
    "decoder_dropout": 0.0,
}


def training_flags(scenes, folder, statistics, steps=2, student=None, num_channels=BANDS):
    return [
        *data_flags(scenes, num_channels),
        *(["--image_statistics", str(statistics)] if statistics else []),
        *("--student_config", json.dumps(student or STUDENT), "--output_dir", str(folder), "--max_steps", str(steps)),
        *("--crop_size", "32", "32", "--scale_range", "1", "1", "--per_device_train_batch_size", "6"),
        *("--learning_rate", "0.05", "--save_strategy", "no", "--disable_tqdm", "True", "--use_cpu", "True"),
        *("--preflight_images", "0", "--report_to", "none"),
    ]


@pytest.fixture(scope="module")
def statistics(scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("counted") / "statistics.json"
    count_statistics.main([*data_flags(scenes), "--output", str(path)])
    return path


@pytest.fixture(scope="module")
def trained(scenes, statistics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    return folder, train.main(training_flags(scenes, folder, statistics, steps=50))


def test_mean_and_std_are_those_of_all_training_pixels_and_of_no_others(scenes, statistics):
    pixels = np.concatenate([tifffile.imread(file).reshape(-1, BANDS) for file in (scenes / "train").glob("images/*")])
    counted = json.loads(statistics.read_text())
    assert counted["image_mean"] == pytest.approx(pixels.mean(0, dtype=np.float64), rel=1e-12)
    assert counted["image_std"] == pytest.approx(pixels.std(0, dtype=np.float64), rel=1e-12)
    assert (counted["num_images"], counted["num_pixels"], counted["num_channels"]) == (12, 12 * SIDE * SIDE, BANDS)


def test_a_class_that_only_the_fifth_band_shows_is_learnt_and_evaluation_gives_the_trainers_number(
    scenes, trained, tmp_path
):
    folder, report = trained
    assert report.classes["crop"]["iou"] > 0.7
    evaluated = evaluate.main(
        ["--model", str(folder), *data_flags(scenes), "--use_cpu", "True", "--output", str(tmp_path / "e.json")]
    )
    assert evaluated.confusion_matrix == report.confusion_matrix

    # Without the package's own evaluation: the processor and the network as a user of transformers has them.
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    matrix = np.zeros((3, 3), dtype=int)
    for file in sorted((scenes / "val" / "images").iterdir()):
        image, mask = tifffile.imread(file), np.asarray(Image.open(scenes / "val" / "labels" / f"{file.stem}.png"))
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"))
        found = processor.post_process_semantic_segmentation(outputs, target_sizes=[mask.shape])[0].numpy()
        np.add.at(matrix, (mask, found), 1)
    assert matrix.tolist() == report.confusion_matrix


def test_prediction_reads_all_bands_and_draws_the_first_three(scenes, trained, tmp_path):
    folder, report = trained
    images = scenes / "val" / "images"
    written = predict.main(
        ["--model", str(folder), "--images", str(images), "--output", str(tmp_path / "seen"), "--use_cpu", "True"]
    )
    assert [Image.open(file).mode for file in written] == ["RGB"] * 5
    found = np.stack([np.asarray(Image.open(tmp_path / "seen" / f"val{index}_mask.png")) for index in range(5)])
    truth = np.stack([np.asarray(Image.open(scenes / "val" / "labels" / f"val{index}.png")) for index in range(5)])
    assert (found == truth).mean() == pytest.approx(report.overall_accuracy)


def test_a_student_of_five_bands_learns_from_a_teacher_of_five_bands_and_none_of_three(
    scenes, trained, statistics, tmp_path
):
    flags = training_flags(scenes, tmp_path / "distilled", statistics)
    report = distill.main([*flags, "--method", "cwd", "--teacher", str(trained[0])])
    assert report.steps == 2
    backbone = {**STUDENT["backbone_config"], "num_channels": 3}
    rgb = DeepLabV3PlusConfig(**{**STUDENT, "backbone_config": backbone}, num_labels=3)
    DeepLabV3PlusForSemanticSegmentation(rgb).save_pretrained(tmp_path / "rgb")
    SegformerImageProcessor().save_pretrained(tmp_path / "rgb")
    with pytest.raises(
        ValueError, match=r"teacher \(segkd-deeplabv3plus\) takes images of 3 channels, and the stu.* 5"
    ):
        distill.main([*flags, "--method", "cwd", "--teacher", str(tmp_path / "rgb")])


def test_what_is_published_says_how_the_bands_are_read(scenes, trained, tmp_path):
    folder, _ = trained
    flags = ["--model", str(folder), "--repo_id", "me/fields", "--dry_run", "True", "--output", str(tmp_path / "out")]
    flags += ["--pictures", "2", "--self_contained", "True"]
    publish.main(flags)
    code = (tmp_path / "out" / "README.md").read_text().split("```python")[1].split("```")[0]
    assert (tmp_path / "out" / "image_processing_multiband.py").is_file()
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert saved["auto_map"]["AutoImageProcessor"] == "image_processing_multiband.MultiBandImageProcessor"
    image = next((scenes / "val" / "images").iterdir())
    names = {}
    exec(code.replace('"me/fields"', repr(str(folder))).replace('"image.tif"', repr(str(image))), names)
    assert names["class_ids"].shape == (SIDE, SIDE)
    with pytest.raises(ValueError, match="The page of a Space takes RGB pictures"):
        publish.main([*flags, "--space", "me/page", "--output", str(tmp_path / "other")])


def test_the_pipeline_which_makes_rgb_of_every_picture_ends_in_an_error(scenes, trained):
    segment = pipeline("image-segmentation", model=str(trained[0]))
    with pytest.raises(ValueError, match=r"The image is 8 x 8 x 3, and this network takes height x width x 5"):
        segment(Image.new("RGB", (8, 8)))


def test_a_composed_network_of_transformers_takes_the_bands_of_its_backbone(scenes, statistics, tmp_path):
    backbone = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [4, 8, 8, 8]}
    backbone |= {"num_channels": BANDS, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    upernet = {"model_type": "upernet", "backbone_config": backbone, "hidden_size": 8, "auxiliary_channels": 8}
    upernet |= {"auxiliary_in_channels": 8, "pool_scales": [1, 2]}
    train.main(training_flags(scenes, tmp_path, statistics, steps=1, student=upernet))
    evaluate.main(
        ["--model", str(tmp_path), *data_flags(scenes), "--use_cpu", "True", "--output", str(tmp_path / "e.json")]
    )


def test_an_export_takes_five_bands(scenes, trained, tmp_path):
    flags = ["--model", str(trained[0]), *data_flags(scenes), "--format", "torch_export", "--image_size", "32", "32"]
    report = export.main([*flags, "--latency_runs", "0", "--num_images", "3", "--output", str(tmp_path / "out")])
    assert report["exports"][0]["parity"]["argmax_agreement"] == 1


def test_the_maps_of_a_network_of_five_bands_are_listed(trained):
    assert inspect_model.main([str(trained[0])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": None}, r"Images of 5 channels as they are stored have no usual mean and std"),
        ({"num_channels": 4}, r"is of images read as 5 bands, and the data set reads 4 bands"),
        ({"num_channels": None}, r"is of images read as 5 bands, and the data set reads RGB"),
        (
            {"student": {**STUDENT, "backbone_config": {**STUDENT["backbone_config"], "num_channels": 3}}},
            r"The network \(segkd-deeplabv3plus\) takes images of 3 channels, .* gives 5\. Build the network with num",
        ),
        ({"student": {"model_type": "upernet"}}, r"student_config: upernet has no field 'num_channels'"),
    ],
)
def test_what_does_not_agree_is_refused_with_what_to_set(scenes, statistics, tmp_path, changes, message):
    values = {"statistics": statistics, "num_channels": BANDS, "student": STUDENT, **changes}
    with pytest.raises(ValueError, match=message):
        train.main([*training_flags(scenes, tmp_path, **values), "--check_data", "False"])


def test_images_of_other_bands_are_named_before_training_starts(scenes, statistics, tmp_path):
    four = tmp_path / "statistics.json"
    four.write_text(json.dumps({"num_channels": 4, "image_mean": [1, 1, 1, 1], "image_std": [1, 1, 1, 1]}))
    with pytest.raises(ValueError, match=r"train0\.tif: has 5 bands, and images are read with num_channels=4"):
        train.main(training_flags(scenes, tmp_path / "run", four, num_channels=4))
    with pytest.raises(ValueError, match=r"train0\.tif: has 5 channels \(bands\), and pictures are read as red, green"):
        train.main(training_flags(scenes, tmp_path / "run", None, num_channels=None))


def test_photometric_changes_of_rgb_pictures_are_refused_by_name(scenes, statistics, tmp_path):
    for name in ("jitter", "blur"):
        with pytest.raises(ValueError, match=f"photometric '{name}' changes RGB pictures"):
            train.main([*training_flags(scenes, tmp_path, statistics), "--photometric", name])


def test_a_network_of_transformers_that_takes_bands_learns_too(scenes, statistics, tmp_path):
    segformer = {
        "model_type": "segformer",
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    }
    train.main(training_flags(scenes, tmp_path, statistics, student=segformer))
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.num_channels == BANDS
    assert AutoImageProcessor.from_pretrained(tmp_path).num_bands == BANDS


def test_bands_stay_what_they_are_in_the_data_set(scenes):
    dataset = load_segmentation_dataset("folder", scenes, classes=CLASSES, num_channels=BANDS)
    check_dataset(dataset)
    stored = tifffile.imread(scenes / "train" / "images" / "train0.tif")
    assert (np.asarray(dataset[0]["image"]) == stored).all()
    assert np.asarray(dataset[0]["image"]).dtype == np.uint16
    assert (np.asarray(read_bands(str(scenes / "train" / "images" / "train0.tif"), "x", BANDS)) == stored).all()
