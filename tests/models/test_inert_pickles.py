"""Checkpoints as trainers write them, with their logs: the weights are read, and nothing else is made."""

import collections
import datetime
import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from test_convert_mmseg import mmseg_state_dict
from tiny_mmseg_networks import NETWORKS, TINY_BACKBONE, tiny_network

from hf_segkd.commands import convert_checkpoint
from hf_segkd.models import load_pretrained_backbone, read_checkpoint
from hf_segkd.networks.loading import load_network


@pytest.fixture
def plant(monkeypatch):
    """Puts a class or function into a module that is not installed, or in place of one that is."""

    def put(module, thing):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name == module or name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(sys.modules[module], thing.__name__, thing)
        return thing

    return put


def history_buffer():
    """As mmengine's: arrays, and its own methods by name, which Python pickles by `getattr`."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.array([0.7, 0.5]), np.array([1, 1])
            self._statistics_methods = {"mean": self.mean}

        def mean(self):
            return self._log_history.mean()

    return HistoryBuffer


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
def test_a_checkpoint_of_mmengines_trainer_becomes_the_network(zipped, plant, tmp_path):
    network = tiny_network("pspnet")
    buffer = plant("mmengine.logging.history_buffer", history_buffer())()
    content = {
        "meta": {"epoch": 1, "time": datetime.datetime.now(), "work_dir": pathlib.Path("runs")},
        "state_dict": collections.OrderedDict(mmseg_state_dict("pspnet", network)),
        "message_hub": {
            "log_scalars": collections.OrderedDict({"train/loss": buffer}),
            "runtime_info": {"eta": np.float64(2.5), "iter": np.int64(80000), "best": np.float32(0.5)},
        },
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": np.float64(0.01)}]},
        "param_schedulers": [collections.defaultdict(list, {"last": [collections.deque([1, 2], 3)]})],
    }
    torch.save(content, tmp_path / "iter_80000.pth", _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        del sys.modules[name]  # not installed where it is converted
    fields = {"backbone_config": TINY_BACKBONE, **NETWORKS["pspnet"]}
    command = ["--source", "mmsegmentation", "--checkpoint", str(tmp_path / "iter_80000.pth")]
    command += ["--output", str(tmp_path / "net"), "--network_config"]
    convert_checkpoint.main([*command, json.dumps({"model_type": "segkd-pspnet", **fields})])
    converted = load_network(str(tmp_path / "net"))[0].state_dict()
    assert converted.keys() == network.state_dict().keys()
    assert all(torch.equal(value, converted[name]) for name, value in network.state_dict().items())
    fresh = tiny_network("pspnet")
    torch.nn.init.zeros_(fresh.backbone.stem[0].weight)
    load_pretrained_backbone(fresh, tmp_path / "iter_80000.pth")
    assert torch.equal(fresh.backbone.stem[0].weight, network.backbone.stem[0].weight)


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("name", ["scalar", "_reconstruct"])
def test_numbers_of_either_numpy_do_not_stand_in_the_way(core, name, plant, tmp_path):
    def make(*args):
        pytest.fail("was called")

    make.__name__ = name

    class Number:
        def __reduce__(self):
            return make, (np.dtype("float64"), b"12345678")

    number = Number()
    plant(core, make)
    torch.save({"state_dict": {"a": torch.arange(3)}, "best": number}, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth")["a"].tolist() == [0, 1, 2]


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_nothing_in_the_packages_that_are_let_through_is_called(plant, tmp_path):
    def make_folder(path):
        os.mkdir(path)

    def runstring(path):
        os.mkdir(path)

    marker = tmp_path / "code-was-run"
    calls = [plant("mmengine.fileio", make_folder), plant("numpy.testing._private.utils", runstring)]
    content = {"state_dict": {"a": torch.ones(2)}, "hub": [Calls(call, str(marker)) for call in calls]}
    content["hub"].append(Calls(getattr, pathlib.Path, "cwd"))
    torch.save(content, tmp_path / "file.pth")
    assert list(read_checkpoint(tmp_path / "file.pth")) == ["a"]
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda marker: Calls(os.mkdir, marker), r"\w+\.mkdir"),
        (lambda marker: Calls(eval, f"__import__('os').mkdir({marker!r})"), "eval"),
        (lambda marker: Calls(exec, f"import os; os.mkdir({marker!r})"), "exec"),
    ],
    ids=["mkdir", "eval", "exec"],
)
def test_a_message_hub_that_holds_code_is_refused_and_the_code_not_run(call, named, zipped, plant, tmp_path):
    marker = str(tmp_path / "code-was-run")
    buffer = plant("mmengine.logging.history_buffer", history_buffer())()
    hub = {"log_scalars": {"loss": buffer}, "runtime_info": call(marker)}
    torch.save({"state_dict": {}, "message_hub": hub}, tmp_path / "f.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"without running code from it: .*{named}"):
        read_checkpoint(tmp_path / "f.pth")
    assert not os.path.exists(marker)


def test_other_classes_are_named_and_refused(plant, tmp_path):
    class Hook:
        pass

    torch.save({"state_dict": {}, "hook": plant("their_lab.hooks", Hook)()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"their_lab\.hooks\.Hook was not an allowed global.*If you trust the file"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.slow
def test_a_file_that_mmengines_runner_wrote_is_read(tmp_path):
    runner, model = pytest.importorskip("mmengine.runner"), pytest.importorskip("mmengine.model")

    class Model(model.BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 1)

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return {"loss": self.layer(torch.stack(inputs)).square().mean()}

    images = [{"inputs": torch.ones(3, 8, 8)}] * 4
    trained = runner.Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader={"batch_size": 2, "dataset": images, "sampler": {"type": "DefaultSampler", "shuffle": True}},
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        param_scheduler=[{"type": "PolyLR", "power": 0.9, "begin": 0, "end": 2, "by_epoch": True}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
    )
    trained.train()
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    weights = read_checkpoint(tmp_path / "epoch_2.pth")
    expected = trained.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
