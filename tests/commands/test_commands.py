import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_commands import OPTIONS, STUDENT, flags
from tiny_runs import SIZE, network, processor, scenes
from transformers import AutoModelForSemanticSegmentation, pipeline

from hf_segkd.commands import evaluate, predict, publish, train
from hf_segkd.commands.command_line import DataFlags
from hf_segkd.data import cityscapes
from hf_segkd.networks.loading import load_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    network(width=12).save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    train.main(flags(folder, student_config=STUDENT, teacher=teacher, method="attnfd"))
    return folder


def test_distilling_leaves_a_student_its_processor_and_its_score(student):
    report = json.loads((student / "evaluation.json").read_text())
    assert (report["dataset"], report["split"], report["num_images"]) == ("demo", "val", 8)
    assert (report["method"], report["seed"], report["steps"]) == ("attnfd", 42, 2)
    assert set(report["classes"]) == set(AutoModelForSemanticSegmentation.from_pretrained(student).config.label2id)
    assert (student / "preprocessor_config.json").is_file()


def test_a_report_names_folders_by_their_whole_path_and_what_it_was_made_with(student, teacher, tmp_path, monkeypatch):
    report = json.loads((student / "evaluation.json").read_text())
    assert report["versions"]["torch"] == version("torch")
    monkeypatch.chdir(Path(teacher).parent)
    recipe = flags(tmp_path, student_config=STUDENT, teacher=Path(teacher).name, method="kd", max_steps=1)
    assert train.main(recipe).teacher == teacher
    assert DataFlags(dataset="camvid", data_dir="data").source("val")["data_dir"] == str(Path("data").absolute())


@pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client
def test_a_push_that_fails_leaves_student_scores_and_state(hub, tmp_path):
    hub.refuse_commits = 418
    recipe = flags(tmp_path / "run", student_config=STUDENT, push_to_hub=True, hub_model_id="tester/student")
    told = rf"Not now(.|\n)*hf-segkd publish --model {tmp_path / 'run'} --repo_id tester/student"
    with pytest.raises(ValueError, match=told):
        train.main(recipe)
    for name in ("model.safetensors", "preprocessor_config.json", "evaluation.json", "trainer_state.json"):
        assert (tmp_path / "run" / name).is_file()
    hub.refuse_commits = None
    hub.cut_commits = "before"
    with pytest.raises(ConnectionError, match="hf-segkd publish --model"):
        train.main(recipe)
    hub.cut_commits = None
    publish.main(["--model", str(tmp_path / "run"), "--repo_id", "tester/student"])
    assert "evaluation.json" in hub.files("tester/student")


def test_evaluating_a_saved_student_gives_the_score_it_was_trained_to(student, tmp_path, capsys):
    path = tmp_path / "scores.json"
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--output", str(path), "--use_cpu"]
    evaluate.main(["--model", str(student), *data])
    assert "mIoU" in capsys.readouterr().out
    expected = json.loads((student / "evaluation.json").read_text())
    assert json.loads(path.read_text())["confusion_matrix"] == expected["confusion_matrix"]


def test_predicted_masks_are_those_of_the_pipeline(student, tmp_path):
    row = scenes("val", 1)[0]
    (tmp_path / "in").mkdir()
    row["image"].save(tmp_path / "in" / "scene.png")
    predict.main(["--model", str(student), "--images", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    mask = np.asarray(Image.open(tmp_path / "out" / "scene_mask.png"))
    config = AutoModelForSemanticSegmentation.from_pretrained(student).config
    for piece in pipeline("image-segmentation", model=str(student), device="cpu")(row["image"], subtask="semantic"):
        assert np.array_equal(np.asarray(piece["mask"]) > 0, mask == config.label2id[piece["label"]])
    assert Image.open(tmp_path / "out" / "scene.png").size == row["image"].size
    assert (tmp_path / "out" / "legend.png").is_file()


def test_a_score_of_tiles_says_so(student, tmp_path):
    command = ["--model", str(student), "--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu"]
    whole = evaluate.main([*command, "--output", str(tmp_path / "whole.json")])
    tiles = evaluate.main([*command, "--output", str(tmp_path / "tiles.json"), "--tile", "32", "--overlap", "8"])
    assert tiles.data == whole.data | {"tile": [32], "overlap": 8}
    labelled = [[sum(row) for row in report.confusion_matrix] for report in (whole, tiles)]
    assert labelled[0] == labelled[1]
    assert tiles.confusion_matrix != whole.confusion_matrix  # its image-wide pooling sees tiles alone
    with pytest.raises(ValueError, match="half the side of a tile, here 16; got 20"):
        evaluate.main([*command, "--tile", "32", "--overlap", "20"])


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path, teacher):
    options = {
        "student_config": STUDENT,
        "teacher": teacher,
        "method": "cwd",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    train.main(flags(tmp_path, **options))
    report = train.main([*flags(tmp_path, **options), "--max_steps", "3", "--resume_from_checkpoint", "last"])
    assert report.steps == 3
    assert report.resumed_from_step == 2  # since which its seconds are counted
    with pytest.raises(ValueError, match="no checkpoint in"):
        train.main([*flags(tmp_path / "new", **options), "--resume_from_checkpoint", "last"])


def test_the_saved_arguments_are_a_recipe_that_gives_the_same_student_bit_for_bit(tmp_path, student, teacher):
    flags_of_run = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--teacher", teacher]
    flags_of_run += ["--student_config", json.dumps(STUDENT), "--image_size", *map(str, SIZE)]
    train.main(["--config", str(student / "training_args.json"), "--output_dir", str(tmp_path), *flags_of_run])
    assert (tmp_path / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()


def test_a_trained_student_is_a_starting_point(tmp_path, student):
    start = {"student": str(student), "image_size": None}
    train.main(flags(tmp_path, **start, learning_rate=0.0, lr_scheduler_type="constant"))
    before = dict(AutoModelForSemanticSegmentation.from_pretrained(student).named_parameters())
    for name, value in AutoModelForSemanticSegmentation.from_pretrained(tmp_path).named_parameters():
        assert value.equal(before[name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either student"),
        ({"student_config": STUDENT, "dataset": "demmo"}, "demo"),
        ({"student_config": {**STUDENT, "output_strid": 8}}, "output_stride"),
        ({"student_config": {"model_type": "segkd-pspnt"}}, "no model_type 'segkd-pspnt'. Did you mean 'segkd-pspnet'"),
        ({"student_config": {**STUDENT, "id2label": {0: "a"}}}, "must not set id2label"),
        ({"student_config": {**STUDENT, "depth_multiplier": "x"}}, "student_config: "),
        ({"student_config": STUDENT, "image_size": [1, 1]}, "from 2"),
        ({"student_config": STUDENT, "max_train_samples": -3}, "--max_train_samples must be at least 1"),
        ({"student_config": STUDENT, "teacher_taps": {"decoder": "x"}}, "there is no --teacher"),
        ({"student_config": STUDENT, "eval_split": "nonsense"}, "nonsense"),
        ({"student_config": STUDENT, "image_size": [4]}, "height and width"),
        ({"student": "somewhere", "image_size": [32, 48]}, "image_size is for a new student"),
    ],
)
def test_a_wrong_recipe_is_refused_before_training(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        train.main(flags(tmp_path, **values))


def test_fewer_images_are_the_first_for_training_and_evenly_spread_ones_for_evaluation():
    options = {"max_train_samples": 2, "max_eval_samples": 3}
    command = train.TrainingCommand(dataset="demo", dataset_options={**OPTIONS, "num_images": 9}, **options)
    training, evaluation, _ = train.load_splits(command, "stop")
    assert training["image_id"] == command.load("train")["image_id"][:2]
    assert evaluation["image_id"] == command.load("val")["image_id"][::4]


def test_a_network_of_another_label_set_is_not_evaluated(student):
    other = json.dumps({**OPTIONS, "num_classes": 6})
    with pytest.raises(ValueError, match="made for another label set"):
        evaluate.main(["--model", str(student), "--dataset", "demo", "--dataset_options", other])


def test_classes_have_the_colours_of_their_data_set(tmp_path):
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    for classes, colour in ((cityscapes.INFO.id2label, (70, 130, 180)), ({0: "a", 10: "sky"}, (64, 128, 0))):
        id2label = {index: classes.get(index, f"class {index}") for index in range(19)}
        model = network(id2label=id2label, label2id={name: index for index, name in id2label.items()})
        model.classifier.bias.data[10] += 1000
        model.save_pretrained(tmp_path / "net")
        processor().save_pretrained(tmp_path / "net")
        command = ["--model", str(tmp_path / "net"), "--images", str(tmp_path / "a.png"), "--opacity", "1"]
        (written,) = predict.main([*command, "--output", str(tmp_path / "out")])
        assert Image.open(written).getcolors() == [(48 * 32, colour)]


def test_images_that_are_not_there_or_share_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        predict.image_files([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="No images"):
        predict.image_files([str(tmp_path)])
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    with pytest.raises(ValueError, match="overwrite each other"):
        predict.image_files([str(tmp_path)])


def test_pictures_of_absurd_size_are_refused_by_name(student, tmp_path, monkeypatch):
    Image.new("RGB", (60, 40)).save(tmp_path / "poster.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"poster\.png: 60 x 40 pixels, more than the limit of 2,000"):
        predict.main(["--model", str(student), "--images", str(tmp_path), "--output", str(tmp_path / "out")])


def test_pictures_never_overwrite_the_images_they_show(student, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (48, 32)).save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match="would be overwritten"):
        predict.main(["--model", str(student), "--images", str(tmp_path), "--output", str(tmp_path)])
    assert (tmp_path / "a.png").read_bytes() == before
    Image.new("RGB", (48, 32)).save(tmp_path / "a_mask.png")
    with pytest.raises(ValueError, match=r"Two pictures would be called 'a_mask\.png'"):
        predict.main(["--model", str(student), "--images", str(tmp_path), "--output", str(tmp_path / "out")])


def test_photos_are_turned_upright_and_damaged_ones_are_named_when_the_others_are_done(student, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (48, 32)).save(tmp_path / "phone.jpg", exif=exif)
    predict.main(["--model", str(student), "--images", str(tmp_path / "phone.jpg"), "--output", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "phone_mask.png").size == (32, 48)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:1500])
    Image.new("I;16", (48, 32)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"2 of 3 images could not be read\.(.|\n)*deep\.png: (.|\n)*half\.jpg: "):
        predict.main(["--model", str(student), "--images", str(tmp_path), "--output", str(tmp_path / "o")])
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"phone.png", "phone_mask.png", "legend.png"}


def test_a_teacher_that_would_go_unused_is_refused(tmp_path, teacher):
    with pytest.raises(ValueError, match="method is 'none'"):
        train.main(flags(tmp_path, student_config=STUDENT, teacher=teacher))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "can't be loaded: Unrecognized model"),
        ("config.json", "{oops", "not a valid JSON"),
        ("model.safetensors", "<html>404</html>", "header"),
    ],
)
def test_a_damaged_network_is_named(file, content, message, tmp_path):
    network().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        load_network(str(tmp_path))


def test_a_network_that_is_not_there_or_not_complete_is_named(tmp_path, teacher):
    with pytest.raises(ValueError, match="neither a folder with a saved network"):
        evaluate.main(
            ["--model", str(tmp_path / "nowhere"), "--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)]
        )
    weights = load_file(Path(teacher, "model.safetensors"))
    weights.pop("classifier.weight")
    network(width=12).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        evaluate.main(["--model", str(tmp_path), "--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)])


def test_a_mistyped_folder_is_told_before_the_hub_is_asked(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("runs", "teacher").mkdir(parents=True)
    with pytest.raises(ValueError, match="neither a folder"):
        load_network("runs/teahcer")
    assert "There is no folder runs/teahcer" in caplog.text
    assert "Did you mean 'runs/teacher'?" in caplog.text


def launch(*command):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["attnfd", "fakd_cwd"])
def test_two_processes_train_one_student_and_score_it_as_one_does(method, tmp_path, teacher):
    options = {
        "student_config": STUDENT,
        "teacher": teacher,
        "method": method,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    recipe = [*flags(tmp_path, **options), "--per_device_train_batch_size", "2"]
    launch("--multi_gpu", "--num_processes", "2", "scripts/distill.py", *recipe)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["num_processes"] == 2
    output = tmp_path / "one.json"
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu", "--output", output]
    launch("scripts/evaluate.py", "--model", tmp_path, *data)
    assert json.loads(output.read_text())["confusion_matrix"] == report["confusion_matrix"]
    states = [load_file(tmp_path / "checkpoint-2" / f) for f in ("model.safetensors", "distillation.safetensors")]
    assert all(value.isfinite().all() for state in states for value in state.values())


@pytest.mark.slow
def test_the_launched_scripts_distil_and_resume(tmp_path, teacher):
    recipe = flags(tmp_path, student_config=STUDENT, method="kd")
    output = launch("scripts/distill.py", *recipe, "--teacher", teacher)
    assert "mIoU" in output
    assert "mean class accuracy" in launch("scripts/train.py", *recipe, "--method", "none")


def test_the_help_of_a_training_run_lists_its_flags_by_subject(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    titles = re.findall(r"^(\w+):$", text, flags=re.M)
    assert titles == ["options", "data", "student", "teacher", "method", "training", "Hub"]
    sections = dict(zip(titles, re.split(r"^\w+:$", text, flags=re.M)[1:], strict=True))
    assert set(re.findall(r"--(\w+)", sections["options"])) == {"help", "config"}
    for flag, subject in {
        "class_map": "teacher",
        "crop_size": "data",
        "scale_lr": "training",
        "hub_token": "Hub",
    }.items():
        assert [title for title, part in sections.items() if f"  --{flag} " in part] == [subject]
