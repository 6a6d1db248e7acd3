import json
import tempfile
import threading
from concurrent.futures import Future

import pytest
import torch
from local_hub import asked_about_licences
from safetensors.torch import load
from several_processes import GLOO, spawn
from tiny_runs import arguments, network, processor, same, trainer, weights
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from hf_segkd.publishing import pushes
from hf_segkd.training import run_report
from hf_segkd.training.trainer import DistillationTrainer

NAME = "tester/student"
STUDENT = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
PICTURES = {"comparison.png"}
SCORES = {"evaluation.json", "per_class_iou.png"}

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where publications wait for their upload; with one row of pictures, which is faster."""
    monkeypatch.setattr("hf_segkd.publishing.publication.NUM_PICTURES", 1)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pushing(folder, **overrides):
    return trainer(folder, **{"push_to_hub": True, "hub_model_id": NAME, "hub_always_push": True, **overrides})


def saving(folder, strategy, **overrides):
    """Three steps, a checkpoint after each."""
    return pushing(folder, save_strategy="steps", save_steps=1, hub_strategy=strategy, **overrides)


def published(hub):
    return [commit for commit in hub.commits(NAME) if commit.message != "initial commit"]


def names(commit):
    return set(commit.files) - {".gitattributes"}


def test_a_push_is_the_student_with_card_scores_and_pictures_and_nothing_else(hub, tmp_path, scratch):
    run = pushing(tmp_path / "run", method="kd", hub_token=hub.token, hub_license="mit")
    run.train()
    scores = run.evaluate()
    url = run.push_to_hub(commit_message="Done")
    (commit,) = published(hub)
    assert url.endswith(commit.id)
    assert commit.message == "Done"
    assert names(commit) == STUDENT | PICTURES | SCORES
    assert same(load(commit.files["model.safetensors"]), weights(run.student))
    report = json.loads(commit.files["evaluation.json"])
    assert report["mean_iou"] == pytest.approx(scores["eval_mean_iou"])
    assert (report["method"], report["seed"], report["steps"], report["num_images"]) == ("kd", 42, 3, 7)
    assert report["class_map"] == list(range(4))
    assert "license: mit" in commit.files["README.md"].decode()
    assert not list(scratch.iterdir())


def test_no_token_is_published_or_shown(hub, tmp_path, caplog, capfd):
    run = saving(tmp_path / "run", "checkpoint", method="kd", hub_token=hub.token)
    run.train()
    run.push_to_hub()
    for commit in published(hub):
        assert not [path for path, content in commit.files.items() if hub.token.encode() in content]
        assert not [path for path in commit.files if path.endswith("training_args.bin")]
    assert hub.token not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("strategy", "places"),
    [
        ("every_save", [None, None, None]),
        ("checkpoint", ["last-checkpoint"] * 3),
        ("all_checkpoints", ["checkpoint-1", "checkpoint-2", "checkpoint-3"]),
        ("end", []),
    ],
)
def test_checkpoints_are_pushed_while_training_as_the_strategy_says_each_in_one_commit(strategy, places, hub, tmp_path):
    run = saving(tmp_path / "run", strategy, method="attnfd")
    run.train()
    commits = published(hub)
    assert [commit.message for commit in commits] == [f"Training in progress, step {n + 1}" for n in range(len(places))]
    for step, (commit, place) in enumerate(zip(commits, places, strict=True), start=1):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        beside = {f"{place}/{path.name}": path.read_bytes() for path in checkpoint.iterdir()} if place else {}
        rewritten = {f"{place}/{name}.json" for name in ("distillation", "training_args", "trainer_state")}
        assert names(commit) >= beside.keys()
        assert all(commit.files[name] == beside[name] for name in beside.keys() - rewritten)
        assert commit.files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
        assert {name for name in names(commit) if "/" not in name} == STUDENT | PICTURES


def test_checkpoints_name_no_folder_of_this_machine_and_training_goes_on_from_them(hub, tmp_path):
    options = {"method": "attnfd", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "mean_iou"}
    run = saving(tmp_path / "run", "all_checkpoints", **options, load_best_model_at_end=True, hub_token=hub.token)
    run.train()
    commits = published(hub)
    for commit in commits:
        assert not [name for name, content in commit.files.items() if str(tmp_path).encode() in content]
    prefix = "checkpoint-2/"
    files = {name.removeprefix(prefix): data for name, data in commits[1].files.items() if name.startswith(prefix)}
    state, arguments_ = json.loads(files["trainer_state.json"]), json.loads(files["training_args.json"])
    assert state["best_model_checkpoint"] in ("checkpoint-1", "checkpoint-2")
    assert arguments_["output_dir"] == "run"
    assert arguments_["hub_token"] is None
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name, content in files.items():
        (downloaded / name).write_bytes(content)
    resumed = trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(downloaded))
    last = load(commits[2].files["checkpoint-3/model.safetensors"])
    assert same(weights(resumed.student), last)


def test_published_scores_tell_no_folder_of_the_method(hub, tmp_path):
    run = pushing(tmp_path / "run", method="kd", method_kwargs={"weight": 2.0})
    run.args.method_kwargs["cache_dir"] = "/home/me/cache"
    run.evaluate()
    run.push_to_hub()
    assert json.loads(published(hub)[-1].files["evaluation.json"])["method_kwargs"] == {"weight": 2.0}


def test_save_model_publishes_as_users_of_trainer_know_it(hub, tmp_path):
    run = pushing(tmp_path / "run", hub_strategy="end")
    run.train()
    run.save_model()
    assert [commit.message for commit in published(hub)] == ["Model save"]
    run.save_model()
    assert len(published(hub)) == 1


def test_scores_are_told_only_of_the_student_that_was_evaluated_and_an_older_ones_are_taken_away(hub, tmp_path):
    run = saving(tmp_path / "run", "every_save", max_steps=4, eval_strategy="steps", eval_steps=2)
    run.train()
    for step, commit in enumerate(published(hub), start=1):
        evaluated = step in (2, 4)
        assert names(commit) == (STUDENT | PICTURES | SCORES if evaluated else STUDENT | PICTURES)
        assert ("mean_iou" in commit.files["README.md"].decode()) == evaluated
        if evaluated:
            assert json.loads(commit.files["evaluation.json"])["steps"] == step


def test_the_best_student_is_not_published_with_the_last_ones_scores(hub, tmp_path):
    run = saving(
        tmp_path / "run",
        "end",
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
    )
    run.train()
    run.push_to_hub()
    assert not SCORES & names(published(hub)[-1])


def test_the_best_student_has_the_budget_of_its_run_and_the_step_of_its_checkpoint(hub, tmp_path):
    class TheSecondIsBest(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_second_mean_iou"] = float(state.global_step == 2)

    run = saving(
        tmp_path / "run",
        "every_save",
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="second_mean_iou",
        greater_is_better=True,
    )
    run.add_callback(TheSecondIsBest())
    run.train()
    run.evaluate()
    run.push_to_hub()
    commits = published(hub)
    reports = [json.loads(commit.files["evaluation.json"]) for commit in commits]
    assert [(report["steps"], report.get("best_step")) for report in reports] == [
        (1, None),
        (2, None),
        (3, None),
        (3, 2),
    ]
    assert commits[3].files["model.safetensors"] == commits[1].files["model.safetensors"]


def test_an_interrupted_evaluation_is_no_score(hub, tmp_path):
    run = pushing(tmp_path / "run")
    run.evaluate()

    class Interrupt(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    run.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.evaluate()
    run.push_to_hub()
    assert not SCORES & names(published(hub)[-1])


def test_data_sets_of_ones_own_are_published_without_scores_and_pictures(hub, tmp_path):
    ours = trainer(tmp_path / "ours")
    run = DistillationTrainer(
        network(),
        arguments(tmp_path / "run", push_to_hub=True, hub_model_id=NAME),
        train_dataset=torch.utils.data.Subset(ours.train_dataset, range(12)),
        eval_dataset=torch.utils.data.Subset(ours.eval_dataset, range(7)),
        processing_class=processor(),
    )
    run.train()
    run.evaluate()
    run.push_to_hub()
    assert names(published(hub)[-1]) == STUDENT


def test_training_is_the_same_bit_for_bit_with_pushes(hub, tmp_path):
    quiet = trainer(tmp_path / "quiet", method="cwd")
    quiet.train()
    run = saving(tmp_path / "run", "every_save", method="cwd")
    run.train()
    assert len(published(hub)) == 3
    assert same(weights(run.student), weights(quiet.student))


def test_a_failed_push_is_told_and_training_goes_on(hub, tmp_path, monkeypatch, scratch):
    told = []
    monkeypatch.setattr(pushes.logger, "error", told.append)
    run = saving(tmp_path / "run", "every_save")

    class CutTheFirst(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if run.push_in_progress is not None:
                run.push_in_progress.wait_until_done()
            hub.cut_commits = "before" if state.global_step == 1 else None

    run.add_callback(CutTheFirst())
    run.train()
    assert run.state.global_step == 3
    assert [commit.message[-6:] for commit in published(hub)] == ["step 2", "step 3"]
    (message,) = told
    assert "push to the Hub failed; training goes on" in message
    assert "was interrupted" in message
    assert not list(scratch.iterdir())


def test_a_push_that_can_not_be_written_is_told_and_training_goes_on(hub, tmp_path, monkeypatch, scratch):
    told = []
    monkeypatch.setattr(pushes.logger, "error", told.append)
    write = run_report.write_publication

    def fill_the_disk(folder, **kwargs):
        write(folder, **kwargs)
        raise OSError("No space left on device")

    run = saving(tmp_path / "run", "every_save")
    monkeypatch.setattr(run_report, "write_publication", fill_the_disk)
    run.train()
    assert run.state.global_step == 3
    assert published(hub) == []
    assert not list(scratch.iterdir())
    *each, last = told
    assert ["No space left" in message for message in each] == [True] * 3
    assert "tester/student on the Hub does not hold the last student" in last
    monkeypatch.setattr(run_report, "write_publication", write)
    run.push_to_hub()
    assert same(load(published(hub)[-1].files["model.safetensors"]), weights(run.student))


def test_a_failed_last_push_is_an_error_and_the_student_is_saved(hub, tmp_path):
    run = pushing(tmp_path / "run")
    run.train()
    hub.cut_lfs_from = 1
    with pytest.raises(ConnectionError, match="Publish again"):
        run.save_model()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    hub.cut_lfs_from = None
    run.push_to_hub()
    assert len(published(hub)) == 1


@pytest.mark.parametrize(("always", "pushed"), [(False, [1]), (True, [1, 2, 3])])
def test_a_checkpoint_is_skipped_while_the_last_is_under_way_unless_all_are_wanted(
    always, pushed, hub, tmp_path, monkeypatch
):
    slow_line = threading.Event()
    send = pushes.upload

    def wait_and_send(*args, **kwargs):
        slow_line.wait()
        return send(*args, **kwargs)

    class TrainingIsOver(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            slow_line.set()

    monkeypatch.setattr(pushes, "upload", wait_and_send)
    # Only the newest checkpoint is kept, so that those that wait are deleted before they are sent.
    run = saving(tmp_path / "run", "all_checkpoints", hub_always_push=always, save_total_limit=1)
    run.add_callback(TrainingIsOver())
    run.train()
    assert [int(commit.message[-1]) for commit in published(hub)] == pushed
    for commit in published(hub):
        place = f"checkpoint-{commit.message[-1]}"
        assert commit.files[f"{place}/model.safetensors"] == commit.files["model.safetensors"]


def test_a_push_that_is_not_waited_for_is_a_future_and_the_next_comes_after_it(hub, tmp_path):
    run = pushing(tmp_path / "run")
    first = run.push_to_hub(commit_message="First", blocking=False)
    assert isinstance(first, Future)
    run.train()
    run.push_to_hub(commit_message="Second")
    assert first.result().endswith(published(hub)[0].id)
    assert [commit.message for commit in published(hub)] == ["First", "Second"]


def test_the_repository_is_made_at_the_start_and_named_after_the_output_folder(hub, tmp_path):
    run = pushing(tmp_path / "student", hub_model_id=None, hub_private_repo=True)
    assert run.hub_model_id == NAME
    assert hub.repositories["models", NAME].private


def test_what_would_fail_after_training_fails_before(hub, tmp_path):
    with pytest.raises(ValueError, match="does not know the token"):
        pushing(tmp_path, hub_token="hf_wrongTokenOfSomeone")
    hub.create("tester/open")
    with pytest.raises(ValueError, match="is a public repository"):
        pushing(tmp_path, hub_model_id="tester/open", hub_private_repo=True)
    with pytest.raises(ValueError, match="may not write to tester/open"):
        pushing(tmp_path, hub_model_id="tester/open", hub_token=hub.read_token)
    with pytest.raises(ValueError, match="Nothing can be uploaded to a/b/c: Repo id must"):
        pushing(tmp_path, hub_model_id="a/b/c")
    with pytest.raises(ValueError, match="push_to_hub needs processing_class"):
        DistillationTrainer(network(), arguments(tmp_path, push_to_hub=True, hub_model_id=NAME))


@asked_about_licences
def test_a_mistyped_licence_is_told_before_training(hub, tmp_path):
    with pytest.raises(ValueError, match=r"license.* must be one of"):
        pushing(tmp_path, hub_license="apache2")


def test_a_run_without_push_to_hub_can_be_pushed_by_hand(hub, tmp_path):
    run = trainer(tmp_path / "run", hub_model_id=NAME)
    assert hub.requests == []
    run.push_to_hub(private=True)
    assert hub.repositories["models", NAME].private
    assert names(published(hub)[-1]) == STUDENT | PICTURES
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_images_whose_terms_are_not_known_are_not_published(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_segkd.publishing.publication.data_terms", lambda name: None)
    run = pushing(tmp_path / "run")
    run.push_to_hub()
    assert names(published(hub)[-1]) == STUDENT
    assert "are not known to allow its images here" in published(hub)[-1].files["README.md"].decode()


def test_callbacks_are_told_of_every_push(hub, tmp_path):
    pushes = []

    class Count(TrainerCallback):
        def on_push_begin(self, args, state, control, **kwargs):
            pushes.append(state.global_step)

    run = saving(tmp_path / "run", "every_save")
    run.add_callback(Count())
    run.train()
    run.push_to_hub()
    assert pushes == [1, 2, 3, 3]


def test_a_private_repository_that_was_deleted_does_not_come_back_public(hub, tmp_path):
    run = pushing(tmp_path / "run", hub_private_repo=True)
    hub.repositories.clear()
    run.push_to_hub()
    assert hub.repositories["models", NAME].private


@pytest.mark.parametrize(("origin", "told"), [("nvidia/segformer", True), ("/home/me/teacher", False), ("", False)])
def test_the_teacher_is_linked_when_it_is_on_the_hub_and_its_folder_is_nobodys_business(origin, told, hub, tmp_path):
    run = pushing(tmp_path / "run", method="kd")
    run.teacher.network.name_or_path = origin
    run.push_to_hub()
    readme = published(hub)[-1].files["README.md"].decode()
    assert ("base_model: nvidia/segformer" in readme) == told
    assert "/home" not in readme


def test_a_branch_can_be_pushed_to(hub, tmp_path):
    branches = hub.create(NAME).branches
    branches["trial"] = [*branches["main"]]
    run = pushing(tmp_path / "run", hub_revision="trial")
    run.push_to_hub()
    assert len(branches["trial"]) == 2
    assert published(hub) == []


def test_a_branch_that_is_not_there_is_made_before_training(hub, tmp_path):
    run = pushing(tmp_path / "run", hub_revision="trial")
    branches = hub.repositories["models", NAME].branches
    assert len(branches["trial"]) == 1
    run.push_to_hub()
    assert len(branches["trial"]) == 2
    assert published(hub) == []


def push_as_one_of_two(rank, folder):
    saving(folder / "run", "every_save", method="kd", per_device_train_batch_size=2, **GLOO).train()


@pytest.mark.slow
def test_of_two_processes_one_pushes(hub, tmp_path, monkeypatch):
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    spawn(2, tmp_path, push_as_one_of_two)
    assert [path for method, path, _ in hub.requests].count("/api/models/tester/student/auth-check/write") == 4
    assert [commit.message[-6:] for commit in published(hub)] == ["step 1", "step 2", "step 3"]


def test_only_the_main_process_asks_anything_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(DistillationTrainer, "is_world_process_zero", lambda self: False)
    run = saving(tmp_path / "run", "every_save")
    run.train()
    run.create_model_card()
    assert run.push_to_hub() is None
    assert hub.requests == []
    assert not (tmp_path / "run" / "README.md").exists()


def test_code_goes_along_when_asked_and_stays_out_of_what_is_saved(hub, tmp_path):
    run = pushing(tmp_path / "run", hub_self_contained=True)
    run.push_to_hub()
    assert "modeling_deeplabv3plus.py" in names(published(hub)[-1])
    assert not list((tmp_path / "run").glob("*.py"))


class OfARepository(SegformerForSemanticSegmentation):
    """As `from_pretrained(..., trust_remote_code=True)` gives it: its file goes where it is saved."""

    _auto_class = "AutoModelForSemanticSegmentation"


@pytest.mark.parametrize(
    ("kind", "needs_package", "brings_code"),
    [(None, True, False), (SegformerForSemanticSegmentation, False, False), (OfARepository, False, True)],
)
def test_the_card_says_which_code_a_network_needs(kind, needs_package, brings_code, hub, tmp_path):
    config = SegformerConfig(
        hidden_sizes=[4, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=4
    )
    labels = network().config.id2label
    config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
    run = pushing(tmp_path / "run", student=None if kind is None else kind(config))
    run.push_to_hub()
    files = published(hub)[-1].files
    readme = files["README.md"].decode()
    assert ("Needs the package `hf_segkd`" in readme) == needs_package
    assert ("trust_remote_code=True" in readme) == brings_code
    assert any(name.endswith(".py") for name in files) == brings_code


def test_the_card_lies_beside_the_student_with_what_it_shows(tmp_path):
    run = trainer(tmp_path, method="kd")
    run.train()
    run.evaluate()
    run.create_model_card()
    assert {path.name for path in tmp_path.iterdir()} >= STUDENT | PICTURES | SCORES


def test_what_trainer_would_write_into_its_card_is_refused(tmp_path):
    run = trainer(tmp_path)
    for write in (run.create_model_card, run.push_to_hub):
        with pytest.raises(ValueError, match=r"no argument dataset, tags: .* hub_license"):
            write(dataset="voc", tags=["mine"])


def test_images_without_any_label_give_no_score(tmp_path):
    run = trainer(tmp_path)
    run.evaluate()
    run.confusion_matrix.zero_()
    run.create_model_card()
    assert "This network was not evaluated." in (tmp_path / "README.md").read_text()
    assert ".nan" not in (tmp_path / "README.md").read_text()
