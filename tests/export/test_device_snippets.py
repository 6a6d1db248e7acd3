"""The lines of docs/devices.md that load a file and give a mask, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import SIZE, network

from hf_segkd.export.formats import DEVICE_FORMATS, write
from hf_segkd.export.graph import DenseNetwork, save_onnx, trace

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
BLOCK = PAGE.split("## Three lines each")[1].split("```text\n")[1].split("```")[0]
IMPORTS, *PARTS = re.split(r"^# ", BLOCK, flags=re.M)
SNIPPETS = {re.match(r"\w+", part)[0]: "# " + part for part in PARTS}
PACKAGES = {"LiteRT": "litert", "ExecuTorch": "executorch", "OpenVINO": "openvino", "ncnn": "ncnn"}


def write_file(runtime, student, program, folder):
    """The file that a snippet reads."""
    if runtime != "MNN":
        name = PACKAGES[runtime]
        (folder / name).mkdir()
        return write(name, student, program, folder / name, (3, *SIZE), {})
    (folder / "onnx").mkdir()
    save_onnx(program, folder / "onnx" / "model.onnx", "logits")
    program, *flags = re.search(r"mnnconvert .*", SNIPPETS["MNN"])[0].split()
    command = [str(Path(sys.executable).with_name(program)), *flags]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("runtime", [*PACKAGES, "MNN"])
def test_the_lines_of_the_page_give_the_networks_mask(runtime, tmp_path, monkeypatch):
    for package in ["MNN"] if runtime == "MNN" else DEVICE_FORMATS[PACKAGES[runtime]].packages:
        pytest.importorskip(package)
    torch.manual_seed(0)
    student, images = DenseNetwork(network()), torch.randn(1, 3, *SIZE)
    write_file(runtime, student, trace(student, SIZE), tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"pixels": images.numpy()}
    exec(IMPORTS + SNIPPETS[runtime], names)
    with torch.inference_mode():
        expected = student(images)[0].argmax(0)
    mask = torch.as_tensor(names["mask"])
    assert mask.shape == expected.shape
    assert len(expected.unique()) > 1
    assert (mask == expected).float().mean() > 0.999


def test_each_runtime_has_its_lines():
    assert list(SNIPPETS) == [*PACKAGES, "MNN"]
