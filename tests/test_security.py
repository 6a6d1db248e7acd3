"""Nothing that comes with a checkpoint or from the Hub runs, and no token gets into what a run leaves behind."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub
from tiny_commands import OPTIONS, STUDENT, flags
from tiny_runs import arguments, network, processor, same, scenes, weights

import hf_segkd
from hf_segkd.commands import convert_checkpoint, evaluate, predict, publish, run_folder, train
from hf_segkd.models import load_pretrained_backbone
from hf_segkd.networks.loading import load_network

DATA = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)]
PICKLES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "scaler.pt")


class MakesFolder:
    """Unpickling it makes a folder, as it could do anything else."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def marker(tmp_path):
    """What a pickle that is loaded leaves behind."""
    marker = tmp_path / "code-was-run"
    yield marker
    assert not marker.exists()


@pytest.fixture
def saved(tmp_path):
    network(width=12).save_pretrained(tmp_path / "saved")
    processor().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_trap_snaps_when_it_is_stepped_on(tmp_path):
    torch.save({"weight": MakesFolder(tmp_path / "trap")}, tmp_path / "file.bin")
    torch.load(tmp_path / "file.bin", weights_only=False)
    assert (tmp_path / "trap").is_dir()


def test_no_command_opens_the_pickles_beside_a_network_and_none_is_published(saved, marker, tmp_path):
    (tmp_path / "run").mkdir()
    for name in PICKLES:
        for folder in (saved, tmp_path / "run"):
            torch.save({"weight": MakesFolder(marker)}, folder / name)
    scenes("val", 1)[0]["image"].save(tmp_path / "scene.png")
    pictures = ["--images", str(tmp_path / "scene.png"), "--output", str(tmp_path / "out")]
    evaluate.main(["--model", str(saved), *DATA, "--use_cpu", "--output", str(tmp_path / "scores.json")])
    predict.main(["--model", str(saved), *pictures])
    options = {"student": str(saved), "image_size": None, "teacher": str(saved), "method": "kd", "max_steps": 1}
    train.main(flags(tmp_path / "run", **options))
    sent = publish.main(
        ["--model", str(tmp_path / "run"), "--repo_id", "me/net", "--license", "mit", "--dry_run", "--pictures", "0"]
    )
    assert not [file.name for file in sent.rglob("*") if file.suffix in (".bin", ".pt", ".pth")]


def test_a_network_whose_weights_are_a_pickle_is_refused_with_the_way_out(saved, marker):
    (saved / "model.safetensors").unlink()
    torch.save({"weight": MakesFolder(marker)}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"Pickles .* are not loaded.* convert_checkpoint --source transformers"):
        load_network(str(saved))


def test_converting_a_pickle_is_asked_for_by_name_and_lets_only_tensors_through(saved, marker, tmp_path):
    expected = load_network(str(saved))[0]
    (saved / "model.safetensors").unlink()
    torch.save(expected.state_dict(), saved / "pytorch_model.bin")
    command = ["--source", "transformers", "--checkpoint", str(saved), "--output"]
    folder = convert_checkpoint.main([*command, str(tmp_path / "new")])
    assert same(weights(load_network(str(folder))[0]), weights(expected))
    assert not list(folder.glob("*.bin"))
    torch.save(expected.state_dict() | {"weight": MakesFolder(marker)}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="more than tensors"):
        convert_checkpoint.main([*command, str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("source", ["attnfd", "mmsegmentation"])
def test_a_checkpoint_of_other_code_that_holds_code_is_refused(source, marker, tmp_path):
    torch.save({"state_dict": {}, "hook": MakesFolder(marker)}, tmp_path / "file.pth")
    command = ["--source", source, "--checkpoint", str(tmp_path / "file.pth"), "--output", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=r"without running code from it: .*mkdir"):
        convert_checkpoint.main(command)


def test_backbone_weights_that_hold_code_or_are_no_checkpoint_are_refused(marker, tmp_path):
    torch.save({"conv1.weight": MakesFolder(marker)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="without running code from it"):
        load_pretrained_backbone(network(), tmp_path / "file.pth")
    (tmp_path / "file.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="without running code from it"):
        load_pretrained_backbone(network(), tmp_path / "file.pth")


def test_code_of_a_repository_is_not_run_and_nobody_is_asked_to_press_y(saved, marker, monkeypatch):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "foo", "auto_map": {"AutoConfig": "code.FooConfig", "AutoModel": "code.Foo"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "code.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ValueError, match=r"needs Python code of its own repository.*trust_remote_code=True"):
        load_network(str(saved))


def test_an_export_report_names_no_file_elsewhere(saved, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (saved / "onnx").mkdir()
    (saved / "onnx" / "export.json").write_text(json.dumps({"exports": [{"file": "../../secret.txt"}]}))
    with pytest.raises(ValueError, match=r"names the file '\.\./\.\./secret\.txt', which is not beside it"):
        run_folder.read_exports(saved)


def test_no_code_of_ours_could_load_a_pickle_or_trust_a_repository():
    for file in Path(hf_segkd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{file}:{node.lineno}"
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "joblib.load"), where
            assert given.get("trust_remote_code", "False") == "False", where
            if name == "torch.load":
                assert given.get("weights_only") == "True", where


@pytest.mark.filterwarnings("ignore:Use 'content")  # how huggingface_hub calls its HTTP client
def test_a_token_is_in_nothing_that_a_run_writes_says_or_sends(tmp_path, monkeypatch, capfd, caplog):
    with LocalHub(tmp_path) as hub:
        hub.serve_this_process(monkeypatch)
        network(width=12).save_pretrained(tmp_path / "teacher")
        processor().save_pretrained(tmp_path / "teacher")
        values = {"student_config": STUDENT, "teacher": str(tmp_path / "teacher"), "method": "kd"}
        values |= {"push_to_hub": True, "hub_model_id": "tester/student", "hub_strategy": "all_checkpoints"}
        values |= {"save_strategy": "steps", "save_steps": 1, "log_level": "debug"}
        run = tmp_path / "run"
        train.main([*flags(run, **values), "--hub_token", hub.token])
        hub.refuse_commits = 418
        with pytest.raises(ValueError, match="could not be published") as refusal:
            train.main([*flags(run, **values), "--hub_token", hub.token, "--save_strategy", "no"])
        args = arguments(tmp_path, hub_token=hub.token)
        written = {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}
        sent = {name: data for commit in hub.commits("tester/student") for name, data in commit.files.items()}
        said = capfd.readouterr()
    assert len(sent) > 10
    assert any(name.endswith("trainer_state.json") for name in sent)
    assert any(name.endswith("checkpoint-2/training_args.json") for name in written)
    everything = {**written, **sent, "out": said.out.encode(), "err": said.err.encode(), "log": caplog.text.encode()}
    for text in (str(refusal.value), str(refusal.value.__cause__), repr(args), str(args), args.to_json_string()):
        everything[text] = text.encode()
    assert [name for name, data in everything.items() if hub.token.encode() in data] == []
