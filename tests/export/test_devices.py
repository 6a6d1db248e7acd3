"""Each format for devices with its own runtime, where that is installed."""

import json

import numpy as np
import pytest
import torch
from tiny_runs import NUM_CLASSES, SIZE, network, processor
from torch import nn

from hf_segkd.commands import export as export_command
from hf_segkd.export.formats import DEVICE_FORMATS, INT8_FORMATS, ONNX, load, write
from hf_segkd.export.graph import DenseNetwork, save_onnx, trace
from hf_segkd.export.int8 import converted, prepare
from hf_segkd.export.quantization import make_unsigned
from hf_segkd.export.runtimes import onnx_network
from hf_segkd.models import (
    HRNetConfig,
    HRNetForSemanticSegmentation,
    ISANetConfig,
    ISANetForSemanticSegmentation,
    PSPNetConfig,
    PSPNetForSemanticSegmentation,
)

pytestmark = pytest.mark.slow
RESNET = {"model_type": "segkd-resnet", "width": 8, "depths": [1, 1, 1, 1], "strides": [1, 2, 2, 1]}


def resnet(*maps):
    return {"backbone_config": {**RESNET, "out_features": list(maps)}, "num_labels": NUM_CLASSES}


def mobilenet():
    narrow = {"backbone": "mobilenet_v2", "depth_multiplier": 0.1}
    return network(backbone_config=None, **narrow)


def mmsegmentation():
    return network(layout="mmsegmentation", **resnet("stage1", "stage3", "stage4"))


def pspnet():
    return PSPNetForSemanticSegmentation(PSPNetConfig(**resnet("stage3", "stage4"), channels=16))


def isanet():
    small = {"channels": 16, "attention_channels": 8}
    return ISANetForSemanticSegmentation(ISANetConfig(**resnet("stage3", "stage4"), **small))


def hrnet():
    small = {"width": 4, "stem_blocks": 1, "num_modules": [1, 1, 1], "num_blocks": 1}
    return HRNetForSemanticSegmentation(HRNetConfig(backbone_config=small, num_labels=NUM_CLASSES))


def with_statistics(model):
    """Batch norms that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return DenseNetwork(model)


def needs(name):
    for package in DEVICE_FORMATS[name].packages:
        pytest.importorskip(package, reason=f"needs the extra [{name}]")


@pytest.mark.parametrize("make", [network, mobilenet, mmsegmentation, pspnet, isanet, hrnet])
@pytest.mark.parametrize("name", DEVICE_FORMATS)
def test_every_network_is_the_same_in_every_runtime(name, make, tmp_path):
    needs(name)
    student, size = with_statistics(make()), (65, 97)
    path = write(name, student, trace(student, size), tmp_path, (3, *size), {"input": "pixel_values"})
    assert json.loads((tmp_path / "metadata.json").read_text()) == {"input": "pixel_values"}
    if name == "coreml":
        import coremltools

        description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
        (output,) = description.output
        assert (output.name, list(output.type.multiArrayType.shape)) == ("logits", [1, NUM_CLASSES, *size])
        assert description.metadata.userDefined["input"] == '"pixel_values"'
        return
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected, found = student(images), load(name, path)(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize("make", [network, mobilenet, mmsegmentation, pspnet, isanet, hrnet])
@pytest.mark.parametrize("name", INT8_FORMATS)
def test_int8_files_compute_what_was_trained(name, make, tmp_path, request):
    if (name, make) == ("litert", pspnet):
        reason = "LiteRT differs from the graph by 8 % of the logits' range, ten times what int8 costs; not explained"
        request.node.add_marker(pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason))
    pytest.importorskip("torchao", reason="needs the extra [int8]")
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    else:
        needs(name)
    student, size = with_statistics(make()), (65, 97)
    images = [{"pixel_values": torch.randn(3, *size)} for _ in range(4)]
    graph = prepare(trace(student, size), images)
    expected = converted(graph)
    int8 = converted(graph, rounded_weights=name != "litert")
    program = trace(int8, size)
    if name == "onnx":
        path = tmp_path / "model-int8.onnx"
        save_onnx(program, path, "logits")
        make_unsigned(path)
        run = onnx_network(path)
    else:
        path = write(name, int8, program, tmp_path, (3, *size), {})
        assert path.stem == "model-int8"
        run = load(name, path)
    image = images[0]["pixel_values"][None]
    with torch.inference_mode():
        found, wanted, fp32 = run(image), expected(image), student(image)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    # Each runtime rounds in its own way, by a step here and there; that is less than what int8 itself costs.
    error, cost = ((other - wanted).square().mean().sqrt() for other in (found, fp32))
    assert error < max(0.7 * cost, 0.01 * (wanted.max() - wanted.min()))
    assert path.stat().st_size < 0.5 * 4 * sum(value.numel() for value in student.parameters()) + 100_000


def test_one_command_trains_and_writes_int8_of_each_format(tmp_path, capsys):
    pytest.importorskip("torchao", reason="needs the extra [int8]")
    packages = {"onnx": ONNX, **{name: made.packages for name, made in DEVICE_FORMATS.items()}}
    formats = [name for name in INT8_FORMATS if all(map(installed, packages[name]))]
    network().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    options = json.dumps({"image_size": list(SIZE), "num_classes": NUM_CLASSES, "num_images": 8})
    flags = ["--model", str(tmp_path), "--latency_runs", "2", "--compile_seconds", "0", "--format", *formats]
    flags += ["--dataset", "demo", "--dataset_options", options, "--num_images", "4"]
    int8 = ["--int8", "--int8_steps", "2", "--max_int8_loss", "100", "--calibration_images", "4"]
    for argmax in ([], ["--argmax"]):
        report = export_command.main([*flags, *int8, *argmax])
        assert "int8: 2 steps, divergence from fp32" in capsys.readouterr().out
        files = [(entry["format"], entry["precision"]) for entry in report["exports"]]
        assert files == [pair for name in formats for pair in ((name, "fp32"), (f"{name}-int8", "int8"))]
        timed = {row["runtime"] for row in report["latency"]["rows"]}
        for entry in report["exports"]:
            assert entry["runtime"] in timed
            folder = tmp_path / entry["format"].removesuffix("-int8")
            sizes = [(folder / file).stat().st_size for file in entry["files"]]
            assert entry["file_mb"] == pytest.approx(sum(sizes) / 1e6)
            if entry["precision"] == "int8":
                assert entry["files"] == [entry["file"]]
    # A later export without int8 leaves no file of an earlier network.
    export_command.main(flags)
    assert not list(tmp_path.glob("*/model-int8*"))


def test_a_map_with_as_many_channels_as_rows_is_right_in_litert(tmp_path):
    needs("litert")
    # `expand` there gave wrong numbers without a word.
    student, size = with_statistics(network(aspp_channels=8)), (64, 96)
    assert student.model.aspp.project.conv.out_channels == size[0] // 8
    path = write("litert", student, trace(student, size), tmp_path, (3, *size), {})
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(load("litert", path)(images), student(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, made in DEVICE_FORMATS.items() if made.argmax and made.load])
def test_classes_are_those_of_the_network(name, tmp_path):
    needs(name)
    student = DenseNetwork(with_statistics(network()).model, argmax=True)
    path = write(name, student, trace(student, SIZE), tmp_path, (3, *SIZE), {})
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        expected, found = student(images), load(name, path)(images)
    assert found.shape == expected.shape
    assert (found == expected).float().mean() > 0.999


@pytest.mark.parametrize("make", [network, pspnet, isanet])
def test_openvino_takes_any_size(make, tmp_path):
    needs("openvino")
    student = with_statistics(make())
    path = write("openvino", student, trace(student, (65, 97), dynamic=True), tmp_path, (3, 65, 97), {})
    run = load("openvino", path)
    for shape in [(1, 3, 65, 97), (3, 3, 71, 85)]:
        images = torch.randn(shape)
        with torch.inference_mode():
            expected, found = student(images), run(images)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_one_command_writes_checks_and_times_several_formats(tmp_path, capsys):
    formats = [name for name in DEVICE_FORMATS if all(map(installed, DEVICE_FORMATS[name].packages))]
    if not formats:
        pytest.skip("needs the extra of a format")
    network().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    options = json.dumps({"image_size": list(SIZE), "num_classes": NUM_CLASSES, "num_images": 8})
    data = ["--dataset", "demo", "--dataset_options", options, "--num_images", "4"]
    flags = ["--model", str(tmp_path), "--latency_runs", "2", "--compile_seconds", "0", *data]
    report = export_command.main([*flags, "--format", "onnx", *formats])
    out = capsys.readouterr().out
    timed = {row["runtime"] for row in report["latency"]["rows"]}
    for entry in report["exports"]:
        assert DEVICE_FORMATS.get(entry["format"]) is None or entry["file"] == DEVICE_FORMATS[entry["format"]].file
        assert f"| {entry['file']}" in out
        if entry["parity"] is None:
            assert entry["format"] == "coreml"
            assert "Not timed: student, Core ML: it runs on other systems only." in out
        else:
            assert entry["runtime"] in timed
            assert entry["precision"] != "fp32" or entry["parity"]["argmax_agreement"] > 0.999
        folder = tmp_path / entry["format"]
        sizes = [(folder / file).stat().st_size for file in entry["files"]]
        assert entry["file_mb"] == pytest.approx(sum(sizes) / 1e6)
        assert json.loads((folder / "export.json").read_text())["latency"] == report["latency"]


def installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_mnn_takes_the_onnx_file(tmp_path):
    mnn = pytest.importorskip("MNN")
    import subprocess
    import sys
    from pathlib import Path

    student, images = with_statistics(network()), torch.randn(1, 3, *SIZE)
    save_onnx(trace(student, SIZE), tmp_path / "model.onnx", "logits")
    convert = [Path(sys.executable).with_name("mnnconvert"), "-f", "ONNX", "--modelFile", tmp_path / "model.onnx"]
    command = [*convert, "--MNNModel", tmp_path / "model.mnn", "--bizCode", "x"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    net = mnn.nn.load_module_from_file(str(tmp_path / "model.mnn"), ["pixel_values"], ["logits"])
    given = mnn.expr.const(images.numpy(), list(images.shape), mnn.expr.data_format.NCHW)
    found = np.array(mnn.expr.convert(net.forward(given), mnn.expr.data_format.NCHW).read())
    with torch.inference_mode():
        expected = student(images).numpy()
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("package", ["onnxsim", "onnxslim"])
def test_a_file_that_was_simplified_is_still_run(package, tmp_path):
    simplifier = pytest.importorskip(package)
    import onnx

    from hf_segkd.export import run_onnx
    from hf_segkd.export.metadata import describe, describe_onnx

    student = network()
    save_onnx(trace(DenseNetwork(student), SIZE), tmp_path / "model.onnx", "logits")
    describe_onnx(tmp_path / "model.onnx", describe(student, processor(), "logits"))
    before = run_onnx.load(tmp_path / "model.onnx")[1]
    model = onnx.load(tmp_path / "model.onnx")
    made = simplifier.simplify(model)[0] if package == "onnxsim" else simplifier.slim(model)
    onnx.save(made, tmp_path / "model.onnx")
    assert run_onnx.load(tmp_path / "model.onnx")[1] == before
