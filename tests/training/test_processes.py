import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from tiny_runs import SIZE, arguments, network, same, trainer, weights
from torch import nn

from hf_segkd.losses.adversary import Adversary
from hf_segkd.training.processes import synchronise_batch_norms

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "hf_segkd" / "accelerate_configs"
TWO_GPUS = SimpleNamespace(world_size=2, device=torch.device("cuda"))
WAYS = ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"]


@pytest.mark.parametrize("way", [*WAYS, "ACCELERATE_USE_PARALLELISM_CONFIG"])
def test_networks_divided_among_processes_by_accelerates_config_are_refused(way, tmp_path, monkeypatch):
    monkeypatch.setenv(way, "true")
    with pytest.raises(ValueError, match=f"by {way}.*never tested with a network divided among processes"):
        arguments(tmp_path)


@pytest.mark.parametrize("flag", [{"fsdp": "full_shard"}, {"deepspeed": "zero2.json"}])
def test_networks_divided_among_processes_by_flags_are_refused(flag, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(flag))} is asked for.*Use plain data parallelism"):
        arguments(tmp_path, **flag)


def test_a_launch_that_started_one_process_of_several_is_warned_about(tmp_path, monkeypatch, caplog):
    trainer(tmp_path)
    assert "this is the only one" not in caplog.text
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    trainer(tmp_path)
    assert "asked for several processes, but this is the only one: images per optimizer step are 4" in caplog.text


@pytest.mark.parametrize("method", ["ofd", "skds"])
def test_synchronised_batch_norms_keep_keys_values_and_class_and_leave_discriminators_alone(method, tmp_path):
    distiller = trainer(tmp_path, method=method).model.eval()
    before, images = weights(distiller), torch.randn(2, 3, *SIZE)
    expected = distiller(images)["logits"]
    synchronise_batch_norms(distiller, TWO_GPUS)
    assert same(weights(distiller), before)
    assert torch.equal(distiller(images)["logits"], expected)
    adversaries = [module for module in distiller.modules() if isinstance(module, Adversary)]
    left = [module for module in distiller.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(adversaries) == (method == "skds")
    assert left == [m for adversary in adversaries for m in adversary.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(isinstance(module, nn.SyncBatchNorm) for module in distiller.student.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in distiller.loss.modules()) == (method == "ofd")
    distiller.student.save_pretrained(tmp_path)
    plain = network().from_pretrained(tmp_path)
    assert same(weights(plain), weights(distiller.student))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in plain.modules())


def test_synchronised_batch_norms_need_gpus_and_more_than_one_process(tmp_path, caplog):
    run = trainer(tmp_path, sync_batch_norm=True)
    assert "changes nothing in a run of one process" in caplog.text
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in run.model.modules())
    with pytest.raises(ValueError, match="no SyncBatchNorm on CPUs"):
        synchronise_batch_norms(run.model, SimpleNamespace(world_size=2, device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "processes", "machines", "cpu"),
    [
        ("single_gpu", 1, 1, False),
        ("multi_gpu", 8, 1, False),
        ("multi_node", 16, 2, False),
        ("cpu_two_processes", 2, 1, True),
    ],
)
def test_accelerate_reads_the_configs_of_the_package(name, processes, machines, cpu):
    args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    args, config, _ = _validate_launch_command(args)
    assert (args.num_processes, args.num_machines, args.use_cpu) == (processes, machines, cpu)
    assert args.multi_gpu == (processes > 1)
    assert not (args.use_fsdp)
    assert not (args.use_deepspeed)
    assert not (args.use_megatron_lm)
    assert not (args.tpu)
    assert config.mixed_precision == args.mixed_precision == "no"


def test_the_configs_are_all_tested_and_are_shipped():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == [
        "cpu_two_processes",
        "multi_gpu",
        "multi_node",
        "single_gpu",
    ]
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.package_data"]["hf_segkd.accelerate_configs"] == "*.yaml"
    assert (CONFIGS / "__init__.py").is_file()  # find: takes packages alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "processes"),
    [
        (["--config_file", str(CONFIGS / "cpu_two_processes.yaml")], 2),
        (["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], 2),
        (["--cpu", "--num_processes", "2"], 1),
    ],
    ids=["shipped config", "flags", "flags that start one"],
)
def test_accelerate_launch_starts_the_processes_that_the_documentation_says(launch, processes, tmp_path):
    options = {"image_size": list(SIZE), "num_classes": 4, "num_images": 8}
    student = {"backbone": "mobilenet_v2", "depth_multiplier": 0.1, "aspp_channels": 8, "decoder_channels": 8}
    recipe = {"dataset": "demo", "dataset_options": options, "image_size": list(SIZE), "student_config": student}
    recipe |= {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [Path(sys.executable).with_name("accelerate"), "launch", *launch, ROOT / "scripts" / "train.py"]
    flags = ["--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path, "--use_cpu"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert (report["num_processes"], report["batch_size"]) == (processes, 4 * processes)
    assert ("this is the only one" in done.stderr) == (processes == 1)
