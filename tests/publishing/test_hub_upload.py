import os
import shutil

import pytest
from local_hub import asked_about_licences

from hf_segkd.publishing.hub import planned_upload, prepare_repository, upload

NAME = "tester/student"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "publication"
    (folder / "onnx").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100) + os.urandom(2900))
    (folder / "onnx" / "model.onnx").write_bytes(bytes(100) + os.urandom(1900))
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(folder, name=NAME, **options):
    return upload(folder, name, **{"commit_message": "A student", **options})


def sent_objects(hub):
    return [path for method, path, _ in hub.requests if method == "PUT"]


def test_a_folder_arrives_whole_in_one_commit_of_a_new_public_repository(hub, folder):
    url = publish(folder)
    initial, commit = hub.commits(NAME)
    assert url == f"{hub.url}/{NAME}/commit/{commit.id}"
    assert commit.message == "A student"
    assert commit.files == {**initial.files, **contents(folder)}
    assert [path for path, blob in commit.blobs.items() if blob.lfs] == ["model.safetensors", "onnx/model.onnx"]
    assert not hub.repositories["models", NAME].private


def test_a_bare_name_is_published_under_the_name_of_the_tokens_user(hub, folder):
    assert f"/{NAME}/commit/" in publish(folder, "student")


def test_an_unchanged_folder_makes_no_commit_and_a_changed_one_sends_what_changed(hub, folder):
    first = publish(folder)
    assert publish(folder) == first
    assert len(hub.commits(NAME)) == 2
    (folder / "model.safetensors").write_bytes(os.urandom(3000))
    before = len(sent_objects(hub))
    assert publish(folder) != first
    assert hub.files(NAME)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(sent_objects(hub)) == before + 1


def test_other_files_of_the_repository_stay(hub, folder, tmp_path):
    publish(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.md").write_text("mine")
    publish(other)
    assert hub.files(NAME).keys() == {".gitattributes", "notes.md", *contents(folder)}


def test_outdated_files_go_with_the_commit_that_no_longer_has_them(hub, folder):
    publish(folder)
    shutil.rmtree(folder / "onnx")
    publish(folder, outdated=["onnx/model.onnx", "config.json", "never.there"])
    assert hub.files(NAME).keys() == {".gitattributes", *contents(folder)}
    publish(folder, outdated=["onnx/model.onnx", "config.json", "never.there"])
    assert len(hub.commits(NAME)) == 3


def test_an_outdated_folder_goes_whole_but_for_what_is_there_again(hub, folder):
    (folder / "onnx" / "int8").mkdir()
    (folder / "onnx" / "int8" / "model.onnx").write_text("int8")
    (folder / "onnx.md").write_text("mine")
    publish(folder)
    shutil.rmtree(folder / "onnx" / "int8")
    (folder / "onnx.md").unlink()
    publish(folder, outdated=["onnx/"])
    assert hub.files(NAME).keys() == {".gitattributes", "onnx.md", *contents(folder)}


@pytest.mark.parametrize(("repo_type", "sdk"), [("dataset", None), ("space", "gradio")])
def test_data_sets_and_spaces_are_published_too(repo_type, sdk, hub, folder):
    publish(folder, repo_type=repo_type, space_sdk=sdk)
    assert hub.files(NAME, f"{repo_type}s").keys() >= contents(folder).keys()
    assert hub.repositories[f"{repo_type}s", NAME].sdk == sdk


def test_a_branch_is_committed_to_when_it_is_named_and_made_if_it_is_not_there(hub, folder):
    for commits in (2, 2):
        publish(folder, revision="trial")
        assert len(hub.commits(NAME)) == 1
        assert len(hub.repositories["models", NAME].branches["trial"]) == commits


def test_what_is_meant_private_never_becomes_public(hub, folder):
    publish(folder, private=True)
    publish(folder, private=True)
    assert hub.repositories["models", NAME].private
    hub.visibility = "private"
    publish(folder, "tester/of-an-organisation")
    assert hub.repositories["models", "tester/of-an-organisation"].private
    hub.create("tester/open")
    with pytest.raises(ValueError, match="is a public repository, and a private one was asked for"):
        publish(folder, "tester/open", private=True)
    assert hub.files("tester/open").keys() == {".gitattributes"}
    assert not [path for _, path, _ in hub.requests if "tester/open" in path and ("preupload" in path or "lfs" in path)]


@pytest.mark.parametrize("token", ["hf_wrongTokenOfSomeone", "hf_broken\nheader"])
def test_a_wrong_token_is_refused_with_the_way_out_and_never_shown(token, hub, folder, caplog):
    with pytest.raises(ValueError, match="token") as refusal:
        publish(folder, token=token)
    assert token not in f"{refusal.value} {refusal.value.__cause__} {caplog.text}"
    assert hub.repositories == {}


def test_a_wrong_token_says_how_to_log_in(hub, folder):
    with pytest.raises(ValueError, match=r"does not know the token.*hf auth login.*HF_TOKEN"):
        publish(folder, token="hf_wrongTokenOfSomeone")


def test_without_a_token_nothing_is_asked_of_the_hub(hub, folder, monkeypatch):
    hub.serve_this_process(monkeypatch, token=None)
    with pytest.raises(ValueError, match="Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN"):
        publish(folder)
    assert hub.requests == []


def test_offline_mode_is_named_and_nothing_is_asked_of_the_hub(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"tester/student can't be reached: HF_HUB_OFFLINE is set"):
        publish(folder)
    assert hub.requests == []


def test_missing_rights_are_told_apart_from_a_wrong_token(hub, folder):
    with pytest.raises(ValueError, match=r"may not write to somebody/student.*role write"):
        publish(folder, "somebody/student")
    hub.create(NAME)
    with pytest.raises(ValueError, match=r"may not write to tester/student(.|\n)*must use a write token"):
        publish(folder, token=hub.read_token)


def test_a_repository_that_is_gone_is_told_with_its_name(hub, folder, monkeypatch):
    monkeypatch.setattr(hub, "create", lambda *_: None)  # made, and deleted by somebody at once
    with pytest.raises(ValueError, match=r"tester/student or its branch is not there(.|\n)*404"):
        publish(folder)
    assert sent_objects(hub) == []


@pytest.mark.parametrize("name", ["a/b/c", "my student", "-student"])
def test_an_impossible_name_is_an_error_before_anything_is_sent(name, hub, folder):
    for action in (publish, planned_upload):
        with pytest.raises(ValueError, match="Repo id must"):
            action(folder, name)
    assert hub.requests == []


def test_a_folder_without_files_is_an_error(hub, tmp_path):
    for action in (publish, planned_upload):
        with pytest.raises(ValueError, match="holds no files"):
            action(tmp_path / "nothing", NAME)


def test_a_card_the_hub_can_not_read_is_an_error_before_anything_is_uploaded(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        publish(folder)
    assert sent_objects(hub) == []


@asked_about_licences
def test_a_licence_the_hub_does_not_know_is_an_error_before_the_repository_is_made(hub):
    with pytest.raises(ValueError, match=r"Nothing can be uploaded to tester/student.*license.*apache-2\.0"):
        prepare_repository(NAME, license="apache2")
    assert hub.repositories == {}
    prepare_repository(NAME, license="apache-2.0")


def test_what_stops_the_hubs_newer_way_of_uploading_is_told_as_well(hub, folder, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)  # which this Hub does not have
    with pytest.raises(ConnectionError, match=r"xet-write-token(.|\n)*Publish again"):
        publish(folder)
    assert len(hub.commits(NAME)) == 1


def test_a_cut_upload_publishes_nothing_and_the_next_run_sends_only_what_is_missing(hub, folder):
    hub.cut_lfs_from = 2
    with pytest.raises(ConnectionError, match=r"interrupted(.|\n)*Publish again: what was uploaded is kept"):
        publish(folder)
    assert len(hub.commits(NAME)) == 1
    kept = dict(hub.lfs_objects)
    assert len(kept) == 1
    hub.cut_lfs_from, already_sent = None, len(sent_objects(hub))
    publish(folder)
    assert len(sent_objects(hub)) == already_sent + 1
    assert sent_objects(hub)[-1].removeprefix("/lfs/") not in kept
    assert hub.files(NAME).items() >= contents(folder).items()
    assert len(hub.commits(NAME)) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_cut_commit_is_there_whole_or_not_at_all_and_is_not_made_twice(moment, hub, folder):
    hub.cut_commits = moment
    with pytest.raises(ConnectionError, match="All files appear in one commit"):
        publish(folder)
    assert len(hub.commits(NAME)) == (1 if moment == "before" else 2)
    hub.cut_commits, already_sent = None, len(sent_objects(hub))
    publish(folder)
    assert len(hub.commits(NAME)) == 2
    assert len(sent_objects(hub)) == already_sent
    assert hub.files(NAME).items() >= contents(folder).items()


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_asked_again_later(status, hub, folder):
    hub.refuse_commits = status
    with pytest.raises(ConnectionError, match=f"{status}(.|\n)*Publish again"):
        publish(folder)


def test_another_refusal_is_told_in_the_hubs_words(hub, folder):
    hub.refuse_commits = 418
    with pytest.raises(ValueError, match=r"refused what was sent for tester/student(.|\n)*Not now"):
        publish(folder)


def test_a_hub_that_can_not_be_reached_is_a_connection_error(hub, folder):
    hub.__exit__()
    with pytest.raises(ConnectionError, match="upload to tester/student was interrupted"):
        publish(folder)


def test_a_dry_run_lists_every_file_with_its_size_and_asks_nothing_of_the_hub(hub, folder, monkeypatch):
    table = planned_upload(folder, NAME).splitlines()
    assert table[0] == f"To {hub.url}/{NAME}, in one commit:"
    assert [line.split(maxsplit=2) for line in table[2:]] == [
        ["README.md", str((folder / "README.md").stat().st_size), "plain file"],
        ["config.json", "2", "plain file"],
        ["model.safetensors", "3,000", "LFS object"],
        ["onnx/model.onnx", "2,000", "LFS object"],
    ]
    monkeypatch.setattr("hf_segkd.publishing.hub.LARGEST_PLAIN_FILE", 10)
    assert planned_upload(folder, NAME).splitlines()[2].endswith("LFS object")  # the card, of more than 10 bytes
    assert hub.requests == []
