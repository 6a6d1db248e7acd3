import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tiny_commands import OPTIONS, STUDENT, flags
from tiny_runs import SIZE, network, processor, scenes
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_segkd.commands import evaluate as evaluate_command
from hf_segkd.commands import publish as publish_command
from hf_segkd.commands import publish_facts, train
from hf_segkd.data import label_info
from hf_segkd.publishing import publication
from hf_segkd.publishing.hub import upload
from hf_segkd.publishing.publication import samples_to_show, weights_sha256
from hf_segkd.training.arguments import default_settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, one distilled student and two trained alone, as the training command leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    network(width=12).save_pretrained(folder / "teacher")
    processor().save_pretrained(folder / "teacher")
    for name, seed, values in (
        ("distilled", 0, {"method": "cwd", "teacher": str(folder / "teacher")}),
        ("alone-0", 0, {}),
        ("alone-1", 1, {}),
    ):
        train.main(flags(folder / name, student_config=STUDENT, seed=seed, learning_rate=0.01, **values))
    return folder


PROCESSOR = "preprocessor_config.json"


def copy(run, folder):
    return shutil.copytree(run, folder)


def evaluate(run, output):
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu"]
    evaluate_command.main(["--model", str(run), *data, "--output", str(output)])


def publish(runs, folder, *more, model="distilled"):
    command = ["--model", str(runs / model), "--repo_id", "ann/student", "--dry_run", "--output", str(folder), *more]
    return publish_command.main(command)


@pytest.fixture(scope="module")
def published(runs, tmp_path_factory):
    baseline = ["--baseline", str(runs / "alone-0"), str(runs / "alone-1")]
    folder = tmp_path_factory.mktemp("published") / "folder"
    return publish(runs, folder, "--self_contained", "--license", "mit", "--pictures", "2", *baseline)


def test_a_static_space_needs_an_onnx_file_that_javascript_runs(runs, tmp_path):
    with pytest.raises(ValueError, match=r"run hf-segkd export --model .* --format onnx"):
        publish(runs, tmp_path / "out", "--space", "ann/page", "--space_sdk", "static")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_leaves_the_whole_folder(published):
    names = {path.name for path in published.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "evaluation.json"} < names
    assert {"comparison.png", "per_class_iou.png", "modeling_deeplabv3plus.py"} < names
    assert Image.open(published / "comparison.png").size[0] == 4 * 260 - 4  # image, truth, teacher, student


def test_the_card_holds_scores_of_student_teacher_and_baseline(published, runs):
    card = ModelCard.load(published / "README.md")
    report = json.loads((runs / "distilled" / "evaluation.json").read_text())
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["mean_iou"] == pytest.approx(100 * report["mean_iou"], abs=0.01)
    assert card.data.license == "mit"
    assert "comparison.png" in card.text
    assert "per_class_iou.png" in card.text


def test_a_space_goes_beside_it(runs, tmp_path, capsys):
    publish(runs, tmp_path / "out", "--space", "ann/page", "--pictures", "1")
    space = tmp_path / "out-space"
    settings = json.loads((space / "models.json").read_text())
    assert (settings["student"], settings["teacher"]) == ("ann/student", None)  # the teacher is not published
    assert (space / settings["examples"][0]).is_file()
    assert "spaces/ann/page, in one commit" in capsys.readouterr().out
    assert "spaces/ann/page" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_published_names_the_machine_or_its_files(published, runs):
    for path in published.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".py"):
            text = path.read_text()
            assert str(runs) not in text, path
            assert "HUB_TOKEN" not in text, path
    assert not (published / "training_args.json").exists()
    assert not list(published.rglob("*.bin"))


def test_code_goes_along_only_when_asked(published, runs, tmp_path):
    plain = publish(runs, tmp_path / "plain", "--pictures", "0")
    assert not list(plain.glob("*.py"))
    assert "auto_map" not in json.loads((plain / "config.json").read_text())
    assert not (plain / "comparison.png").exists()


def test_a_network_that_was_never_evaluated_claims_no_score(runs, tmp_path, capsys):
    run = copy(runs / "distilled", tmp_path / "run")
    (run / "evaluation.json").unlink()
    card = ModelCard.load(publish(tmp_path, tmp_path / "out", "--dataset_name", "demo", model="run") / "README.md")
    assert "is not known: its scores (hf-segkd evaluate), its licence (--license)." in capsys.readouterr().out
    assert not card.data.eval_results
    assert "cwd" in card.data.tags
    assert "labels alone" not in card.text
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_distilled_network_stays_one_when_it_was_evaluated_again(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    evaluate(run, run / "evaluation.json")
    assert "method" not in json.loads((run / "evaluation.json").read_text())
    card = ModelCard.load(publish(tmp_path, tmp_path / "out", model="run") / "README.md")
    assert "cwd" in card.data.tags
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["method"] == "cwd"
    with pytest.raises(ValueError, match="baseline learns from labels alone"):
        publish(runs, tmp_path / "again", "--baseline", str(run))


def test_scores_of_another_evaluation_keep_what_training_says(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    evaluate(run, run / "val.json")
    report = json.loads(
        (publish(tmp_path, tmp_path / "out", "--evaluation", "val.json", model="run") / "evaluation.json").read_text()
    )
    assert (report["method"], report["steps"]) == ("cwd", 2)


def test_the_users_name_of_the_data_set_stands_wherever_the_trainings_is_meant(runs, tmp_path):
    baseline = ["--baseline", str(runs / "alone-0")]
    card = ModelCard.load(publish(runs, tmp_path / "out", "--dataset_name", "My scenes", *baseline) / "README.md")
    assert {result.dataset_name for result in card.data.eval_results} == {"My scenes"}
    assert "trained on My scenes, from the labels" in card.text
    assert "images of My scenes, split" in card.text
    run = copy(runs / "distilled", tmp_path / "run")
    change(run, dataset="elsewhere", trained_on="demo")
    card = ModelCard.load(
        publish(tmp_path, tmp_path / "other", "--dataset_name", "My scenes", model="run") / "README.md"
    )
    assert "trained on My scenes, from the labels" in card.text
    assert "images of elsewhere, split" in card.text


def test_what_runs_do_not_share_is_refused_or_named(runs, tmp_path):
    def rewrite(name, **values):
        file = run / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    run = copy(runs / "alone-0", tmp_path / "run")
    assert json.loads((run / "evaluation.json").read_text())["initial_weights"] == "random"
    rewrite("training_args.json", learning_rate=0.5, logging_steps=7)
    card = ModelCard.load(publish(runs, tmp_path / "named", "--baseline", str(run)) / "README.md")
    assert "so may their scores: `learning_rate` `0.01`, labels alone `0.5`." in card.text
    rewrite("evaluation.json", initial_weights="/home/alice/resnet.pth")
    with pytest.raises(ValueError, match=r"A baseline run has initial_weights = /home/alice/resnet\.pth"):
        publish(runs, tmp_path / "refused", "--baseline", str(run))
    rewrite("evaluation.json", initial_weights="random")
    rewrite("config.json", aspp_channels=7, transformers_version="9.9")
    with pytest.raises(ValueError, match="A baseline run has aspp_channels of the network = 7"):
        publish(runs, tmp_path / "refused", "--baseline", str(run))


def test_the_card_tells_the_teachers_architecture(published):
    assert "a teacher network:\nDeepLabV3+ (" in ModelCard.load(published / "README.md").text


def test_a_network_saved_by_save_pretrained_is_published_with_what_is_not_known(runs, tmp_path, capsys):
    folder = publish(runs, tmp_path / "out", "--license", "mit", model="teacher")
    told = capsys.readouterr().out
    assert "not known: how it was trained" in told
    assert "--dataset_name" in told
    assert "--license" not in told
    text = (folder / "README.md").read_text()
    assert "How, and on what, it was trained is not recorded." in text
    assert "labels alone" not in text
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", PROCESSOR}
    teacher = copy(runs / "teacher", tmp_path / "teacher")
    evaluate(teacher, teacher / "evaluation.json")
    publish(tmp_path, tmp_path / "scored", model="teacher")
    card = ModelCard.load(tmp_path / "scored" / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {
        "mean_iou",
        "mean_accuracy",
        "overall_accuracy",
    }
    assert "is not recorded" in card.text


def test_a_checkpoint_is_published_without_its_state_and_says_whose_weights_it_has(runs, tmp_path, capsys):
    run = copy(runs / "distilled", tmp_path / "checkpoint-2")
    (run / "evaluation.json").unlink()
    for name in ("ema.safetensors", "optimizer.pt", "rng_state.pth", "my-data.bin"):
        (run / name).write_bytes(b"0")
    folder = publish(tmp_path, tmp_path / "out", model="checkpoint-2")
    assert "not the averages of --ema_decay" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", PROCESSOR}


def test_nothing_is_compared_with_a_network_of_unknown_training(runs, tmp_path):
    run = copy(runs / "alone-0", tmp_path / "run")
    (run / "training_args.json").unlink()
    evaluate(run, run / "evaluation.json")
    for flag in ("--runs", "--baseline"):
        with pytest.raises(ValueError, match=r"says how the network was trained.*as training leaves it"):
            publish(runs, tmp_path / "out", flag, str(run))
        with pytest.raises(ValueError, match="does not tell how the network was trained"):
            publish(tmp_path, tmp_path / "out", flag, str(runs / "alone-0"), model="run")


def test_a_baseline_of_another_budget_is_refused(runs, tmp_path):
    shutil.copytree(runs / "alone-0", tmp_path / "longer")
    report = json.loads((tmp_path / "longer" / "evaluation.json").read_text())
    (tmp_path / "longer" / "evaluation.json").write_text(json.dumps({**report, "steps": 4000}))
    with pytest.raises(ValueError, match="steps"):
        publish(runs, tmp_path / "out", "--baseline", str(tmp_path / "longer"))


def add_export(run):
    """An ONNX export as the command leaves it, with a user's files beside it."""
    (run / "onnx").mkdir()
    for name in ("model.onnx", "run_onnx.py", "model-old.onnx", "notes.txt"):
        (run / "onnx" / name).write_bytes(b"onnx")
    parity = {"images": 4, "max_logit_difference": 1e-6, "argmax_agreement": 1.0, "miou": 0.5, "miou_exported": 0.5}
    entry = {"format": "onnx", "file": "model.onnx", "file_mb": 1.5, "argmax": False, "dynamic": False, "opset": 20}
    weights = sha256((run / "model.safetensors").read_bytes()).hexdigest()
    report = {"exports": [{**entry, "parity": parity}], "latency": None, "versions": {}, "weights_sha256": weights}
    (run / "onnx" / "export.json").write_text(json.dumps(report))
    return report


def test_exports_go_along_and_nothing_that_lies_beside_them(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    add_export(run)
    os.utime(run / "model.safetensors", (2**32, 2**32))  # as copying may do
    published = publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run")
    assert {path.name for path in (published / "onnx").iterdir()} == {"model.onnx", "run_onnx.py", "export.json"}
    assert "| onnx/model.onnx " in (published / "README.md").read_text()


def test_an_export_of_several_files_goes_along_whole(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    report = add_export(run)
    inner = "model.mlpackage/Data/weight.bin"
    (run / "coreml" / inner).parent.mkdir(parents=True)
    for name in (inner, "metadata.json", "notes.txt"):
        (run / "coreml" / name).write_bytes(b"x")
    (entry,) = report["exports"]
    entry = {**entry, "format": "coreml", "file": "model.mlpackage", "files": ["metadata.json", inner], "parity": None}
    (run / "coreml" / "export.json").write_text(json.dumps({**report, "exports": [entry]}))
    published = publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run")
    files = {path.relative_to(published).as_posix() for path in (published / "coreml").rglob("*") if path.is_file()}
    assert files == {f"coreml/{name}" for name in (inner, "metadata.json", "export.json")}
    (run / "coreml" / "export.json").write_text(json.dumps({**report, "exports": [{**entry, "files": ["a/../../b"]}]}))
    with pytest.raises(ValueError, match="which is not beside it"):
        publish(tmp_path, tmp_path / "again", "--pictures", "0", model="run")


def test_weights_in_several_files_are_known_as_well(tmp_path):
    assert weights_sha256(tmp_path) is None
    network().save_pretrained(tmp_path, max_shard_size="20KB")
    *_, last = sorted(tmp_path.glob("model-*.safetensors"))
    known_as = weights_sha256(tmp_path)
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    assert weights_sha256(tmp_path) not in (None, known_as)


def test_exports_of_other_weights_are_refused(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    report = add_export(run)
    shutil.copy(runs / "alone-0" / "model.safetensors", run / "model.safetensors")
    with pytest.raises(ValueError, match=r"exported from other weights.*Export again"):
        publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run")
    report.pop("weights_sha256")
    (run / "onnx" / "export.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"does not say which weights.*Export again"):
        publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run")


@pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client
def test_a_publication_without_code_and_exports_leaves_none_of_the_last_one(runs, tmp_path, hub):
    run = copy(runs / "distilled", tmp_path / "run")
    add_export(run)
    command = ["--model", str(run), "--repo_id", "tester/student"]
    publish_command.main([*command, "--self_contained"])
    assert {"onnx/model.onnx", "modeling_deeplabv3plus.py"} < hub.files("tester/student").keys()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "modeling_mine.py").write_text("# mine")
    upload(mine, "tester/student", commit_message="Mine")
    shutil.rmtree(run / "onnx")
    publish_command.main(command)
    names = hub.files("tester/student").keys()
    assert [name for name in names if name.startswith("onnx") or name.endswith(".py")] == ["modeling_mine.py"]
    assert len(hub.commits("tester/student")) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--evaluation", "test.json"], r"no test\.json in .*--output .*test\.json.*--evaluation test\.json"),
        (["--evaluation", "evaluation.jsn"], r"no evaluation\.jsn in"),
        (["--baseline", "nowhere"], "no evaluation.json in nowhere"),
        (["--teacher", "no/such/folder"], "no/such/folder"),
        (["--model", "nowhere"], "no folder with a saved network"),
        (["--model", "RUNS"], r"no folder with a saved network.* in its subfolders: .*alone-0, .*alone-1, .*distilled"),
    ],
)
def test_what_is_missing_is_named(runs, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        publish(runs, tmp_path / "out", *(str(runs) if value == "RUNS" else value for value in more))


def test_a_folder_with_something_in_it_is_not_written_over(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match="not empty"):
        publish(runs, tmp_path / "mine", "--pictures", "0")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"


def test_publishing_leaves_later_saves_without_code(published, runs, tmp_path):
    for folder in (runs / "distilled", published):
        AutoModelForSemanticSegmentation.from_pretrained(folder).save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.py"))
        assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_images_are_shown_only_where_their_terms_allow_it(monkeypatch):
    shown, why_not = samples_to_show(scenes("val", 6))
    assert len(shown) == 4
    assert why_not is None
    monkeypatch.setattr(publication, "label_info", lambda _: replace(label_info(scenes("val", 6)), name="mine"))
    assert samples_to_show(scenes("val", 6))[0] is None
    assert "'mine'" in samples_to_show(scenes("val", 6))[1]
    assert len(samples_to_show(scenes("val", 6), 2)[0]) == 2
    assert samples_to_show(scenes("val", 6), 0) == (None, None)


def test_pictures_name_the_colours_they_show_and_no_others(monkeypatch):
    sample, labels = scenes("val", 1)[0], label_info(scenes("val", 1))
    mask = Image.new("L", SIZE[::-1], 2)
    mask.paste(255, (0, 0, 9, 9))
    shown = {}
    monkeypatch.setattr(publication, "comparison", lambda rows, titles, *legend: shown.update(enumerate(legend)))
    monkeypatch.setattr(publication, "label_info", lambda _: labels)
    publication.compare([sample | {"annotation": mask}], {})
    assert shown == {0: [labels.id2label[2], "not labelled"], 1: [list(labels.palette[2]), [255, 255, 255]]}


def test_the_cost_is_counted_at_the_size_the_processor_gives():
    assert publication.image_size(processor(), None) == SIZE
    keeps_size = SegformerImageProcessor(do_resize=False)
    assert publication.image_size(keeps_size, None) is None
    assert publication.image_size(keeps_size, scenes("val", 1)) == SIZE
    halves = BeitImageProcessor(size={"shortest_edge": SIZE[0] // 2}, do_center_crop=False)
    assert publication.image_size(halves, scenes("val", 1)) == (SIZE[0] // 2, SIZE[1] // 2)


def test_the_chart_names_classes_by_their_ids(published, runs, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        publication, "per_class_chart", lambda names, series: drawn.append(names) or Image.new("L", (1, 1))
    )
    shuffled = tmp_path / "run"
    shutil.copytree(runs / "distilled", shuffled)
    config = json.loads((shuffled / "config.json").read_text())
    names = [config["id2label"][str(index)] for index in range(4)]
    config["id2label"] = dict(reversed(config["id2label"].items()))
    (shuffled / "config.json").write_text(json.dumps(config))
    publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run")
    assert drawn == [names]


def test_settings_that_nobody_changed_are_not_called_changed(runs):
    saved = json.loads((runs / "alone-0" / "training_args.json").read_text())
    defaults = default_settings()
    changed = {name for name in saved if saved[name] != defaults[name]}
    given = {"max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "save_strategy", "seed"}
    given |= {"disable_tqdm", "use_cpu", "dataloader_pin_memory", "learning_rate", "output_dir", "preflight_images"}
    assert changed <= given | {"hub_token"}


def change(run, **values):
    report = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(report | values))


@pytest.mark.parametrize("gone", ["/home/alice/teacher", "./alice/teacher", "~/alice/teacher", "runs/alice/teacher"])
def test_a_teacher_whose_folder_is_gone_is_no_name_on_the_hub(runs, tmp_path, monkeypatch, capsys, gone):
    run = copy(runs / "distilled", tmp_path / "run")
    change(run, teacher=gone)
    load = publish_command.load_network
    asked = []
    for module in (publish_command, publish_facts):
        monkeypatch.setattr(module, "load_network", lambda name: asked.append(name) or load(name))
    folder = publish(tmp_path, tmp_path / "out", "--space", "ann/page", model="run")
    assert asked == [str(run)]
    assert f"The teacher {gone} could not be loaded" in capsys.readouterr().out
    assert "base_model" not in ModelCard.load(folder / "README.md").data.to_dict()
    for path in [*tmp_path.glob("out/*"), *tmp_path.glob("out-space/*")]:
        if path.suffix in (".json", ".md"):
            assert "alice" not in path.read_text(), path
    with pytest.raises(ValueError, match="there is no folder"):
        publish(tmp_path, tmp_path / "again", "--teacher", gone, model="run")
    assert asked == [str(run)] * 2


def test_a_teacher_is_linked_when_it_came_from_the_hub(runs, tmp_path, monkeypatch):
    run = copy(runs / "distilled", tmp_path / "run")
    change(run, teacher="ann/teacher")
    load, places = publish_facts.load_network, {"ann/teacher": str(runs / "teacher")}
    monkeypatch.setattr(publish_facts, "load_network", lambda name: load(places.get(name, name)))
    card = ModelCard.load(publish(tmp_path, tmp_path / "out", model="run") / "README.md")
    assert card.data.base_model == "ann/teacher"
    places["ann/teacher"] = str(tmp_path / "nowhere")
    card = ModelCard.load(publish(tmp_path, tmp_path / "gone", model="run") / "README.md")
    assert card.data.base_model is None
    folder = publish(tmp_path, tmp_path / "named", "--teacher_id", "ann/teacher", model="run")
    assert ModelCard.load(folder / "README.md").data.base_model == "ann/teacher"


def test_the_card_tells_the_versions_of_the_training(runs, tmp_path):
    run = copy(runs / "distilled", tmp_path / "run")
    change(run, versions={"torch": "1.2.3-of-the-cluster"})
    assert "torch 1.2.3-of-the-cluster" in (publish(tmp_path, tmp_path / "out", model="run") / "README.md").read_text()
    evaluate(run, run / "evaluation.json")
    card = (publish(tmp_path, tmp_path / "none", model="run") / "README.md").read_text()
    assert f"torch {version('torch')}" not in card


def test_images_that_are_gone_are_missed_only_where_pictures_are_asked_for(runs, tmp_path, capsys):
    run = copy(runs / "distilled", tmp_path / "run")
    data = json.loads((run / "evaluation.json").read_text())["data"]
    gone = {"dataset": "folder", "data_dir": str(tmp_path / "gone"), "dataset_options": {"classes": ["a"]}}
    change(run, data=data | gone)
    with pytest.raises(ValueError, match="gone"):
        publish(tmp_path, tmp_path / "out", "--pictures", "2", model="run")
    folder = publish(tmp_path, tmp_path / "out", model="run")
    assert "images of the evaluation could not be loaded" in capsys.readouterr().out
    assert not (folder / "comparison.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repo_id", "student"], "--repo_id takes user/name.*user or organisation is missing"),
        (["--repo_id", "a/b/c"], "--repo_id takes user/name"),
        (["--space", "page"], "--space takes user/name"),
        (["--space_sdk", "static"], "name one with --space user/name"),
        (["--space", "a/b/c"], "--space takes user/name"),
        (["--teacher_id", "/home/alice/teacher"], "--teacher_id takes user/name"),
        (["--pictures", "-1"], "--pictures takes a number of images, 0 for none, got -1"),
        (["--output", __file__], "is a file"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(runs, tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(publish_command, "load_network", None)
    with pytest.raises(ValueError, match=message):
        publish(runs, tmp_path / "out", *more)


def test_folders_are_found_however_their_names_are_written(runs, tmp_path, monkeypatch):
    run = copy(runs / "alone-0", tmp_path / "run")
    publish(tmp_path, f"{tmp_path}/out/", "--space", "ann/page", model="run")
    assert (tmp_path / "out-space" / "app.py").is_file()
    monkeypatch.chdir(run)
    folder = publish_command.main(["--model", ".", "--repo_id", "ann/student", "--dry_run"])
    assert folder == tmp_path / "run-publication"
    assert (folder / "README.md").is_file()


def test_a_spaces_folder_with_something_in_it_stops_before_anything_is_written(runs, tmp_path):
    (tmp_path / "out-space").mkdir()
    (tmp_path / "out-space" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out-space exists and is not empty"):
        publish(runs, tmp_path / "out", "--space", "ann/page")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Use 'content")
def test_a_space_that_may_not_be_written_leaves_nothing_half_published(runs, hub):
    command = ["--model", str(runs / "alone-0"), "--repo_id", "tester/student"]
    with pytest.raises(ValueError, match="may not write to somebody/page"):
        publish_command.main([*command, "--space", "somebody/page"])
    assert hub.files("tester/student").keys() == {".gitattributes"}
    publish_command.main([*command, "--space", "tester/page"])
    assert "app.py" in hub.files("tester/page", kind="spaces")


def test_a_network_of_transformers_itself_brings_no_code_and_says_so(runs, tmp_path, capsys):
    run = copy(runs / "alone-0", tmp_path / "run")
    labels = label_info(scenes("val", 1))
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    names = {"id2label": labels.id2label, "label2id": {name: index for index, name in labels.id2label.items()}}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, **names)).save_pretrained(run)
    folder = publish(tmp_path, tmp_path / "out", "--self_contained", model="run")
    assert "--self_contained has no effect" in capsys.readouterr().out
    assert not list(folder.glob("*.py"))
    publish(runs, tmp_path / "ours", "--self_contained", model="alone-0")
    assert "--self_contained" not in capsys.readouterr().out


def test_multiply_adds_are_counted_without_pictures_too(runs, tmp_path):
    run = copy(runs / "alone-0", tmp_path / "run")
    SegformerImageProcessor(do_resize=False).save_pretrained(run)
    card = publish(tmp_path, tmp_path / "out", "--pictures", "0", model="run") / "README.md"
    assert f"{SIZE[0]} x {SIZE[1]} pixels" in card.read_text()


def test_runs_beside_a_network_without_scores_are_refused(runs, tmp_path):
    run = copy(runs / "alone-0", tmp_path / "run")
    (run / "evaluation.json").unlink()
    for flag in ("--runs", "--baseline"):
        with pytest.raises(ValueError, match="holds no scores"):
            publish(tmp_path, tmp_path / "out", "--dataset_name", "demo", flag, str(runs / "alone-1"), model="run")


def test_pictures_of_images_that_are_not_known_are_refused(runs, tmp_path):
    run = copy(runs / "alone-0", tmp_path / "run")
    (run / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="does not say which images"):
        publish(tmp_path, tmp_path / "out", "--dataset_name", "demo", "--pictures", "1", model="run")


def test_a_teacher_of_other_classes_is_shown_in_the_students_colours(runs, tmp_path, capsys):
    folder = tmp_path / "teacher"
    teacher = network(width=12, id2label=dict(enumerate("abcde")), label2id=None)
    state = network(width=12).state_dict()
    for name in ("classifier.weight", "classifier.bias"):  # the same network, with its classes in another order
        rows = state[name]
        state[name] = torch.stack([rows[2], rows[0], rows[3], rows[1], torch.full_like(rows[0], -50)])
    teacher.load_state_dict(state)
    teacher.save_pretrained(folder)
    processor().save_pretrained(folder)
    shutil.copy(runs / "distilled" / "evaluation.json", folder / "evaluation.json")
    plain = publish(runs, tmp_path / "plain", "--pictures", "2")
    run = copy(runs / "distilled", tmp_path / "run")
    report = json.loads((run / "evaluation.json").read_text())
    assert report["class_map"] == [0, 1, 2, 3]
    report |= {"teacher": str(folder), "class_map": [2, 0, 3, 1, None]}
    (run / "evaluation.json").write_text(json.dumps(report))
    mapped = publish(tmp_path, tmp_path / "mapped", "--pictures", "2", model="run")
    assert (mapped / "comparison.png").read_bytes() == (plain / "comparison.png").read_bytes()
    assert "leaves its scores out" in capsys.readouterr().out
    (run / "evaluation.json").write_text(json.dumps(report | {"class_map": None}))
    publish(tmp_path, tmp_path / "strangers", "--pictures", "2", model="run")
    assert "does not show what it sees" in capsys.readouterr().out
    assert Image.open(tmp_path / "strangers" / "comparison.png").size[0] == 3 * 260 - 4
