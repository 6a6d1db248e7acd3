"""Training in simulated int8, and what becomes of it; the runtimes for devices are in test_devices.py."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import NUM_CLASSES, SIZE, network, processor, scenes
from torch import nn

from hf_segkd.data import EvaluationDataset
from hf_segkd.export import runtimes
from hf_segkd.export.graph import DenseNetwork, save_onnx, trace
from hf_segkd.export.int8 import converted, distil, prepare
from hf_segkd.export.quantization import make_unsigned

pytest.importorskip("torchao", reason="needs the extra [int8]")

from hf_segkd.export.int8_graph import observe

MOBILENET = {"backbone_config": None, "backbone": "mobilenet_v2", "depth_multiplier": 0.1}
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE_WEIGHT = torch.ops.quantized_decomposed.dequantize_per_channel.default


def images(num_images=8):
    return EvaluationDataset(scenes(num_images=num_images), processor())


def plain(**overrides):
    """A network whose batch norms have seen images."""
    model = network(**overrides).train()
    with torch.no_grad():
        for _ in range(20):
            model(pixel_values=torch.stack([sample["pixel_values"] for sample in images()]))
    return DenseNetwork(model)


@pytest.fixture(scope="module")
def fp32():
    return plain()


@pytest.fixture(scope="module")
def prepared(fp32):
    return prepare(trace(fp32, SIZE), images())


@pytest.mark.parametrize("overrides", [{}, MOBILENET, {"layout": "mmsegmentation"}])
def test_without_rounding_the_graph_is_the_network(overrides):
    if "layout" in overrides:
        overrides = {"layout": "mmsegmentation", "use_auxiliary_head": False}
    student = plain(**overrides)
    graph = prepare(trace(student, SIZE), images(2))
    observe(graph, ranges=False, rounding=False)
    image = images(1)[0]["pixel_values"][None]
    with torch.no_grad():
        torch.testing.assert_close(graph(image), student(image), atol=1e-4, rtol=1e-4)
        observe(graph, ranges=False, rounding=True)
        assert 1e-3 < (graph(image) - student(image)).abs().max() < 0.3 * student(image).abs().max()
    targets = {node.target for node in graph.graph.nodes}
    assert not any("batch_norm" in str(target) or "dropout" in str(target) for target in targets)


@pytest.mark.parametrize("overrides", [{}, MOBILENET])
def test_all_convolutions_and_sums_are_integers_and_rectified_before_they_are_rounded(overrides):
    graph = converted(prepare(trace(plain(**overrides), SIZE), images(2))).model.graph
    aten = torch.ops.aten
    rectifiers = (aten.relu.default, aten.hardtanh.default)
    convolutions = [node for node in graph.nodes if node.target is aten.conv2d.default]
    assert convolutions
    assert {node.args[1].target for node in convolutions} == {DEQUANTIZE_WEIGHT}
    sums = [node for node in graph.nodes if node.target is aten.add.Tensor]
    assert sums
    rectified = 0
    for node in [*convolutions, *sums]:
        (user,) = node.users
        if user.target in rectifiers:
            rectified += 1
            (user,) = user.users
        assert user.target is QUANTIZE, node
    assert rectified > len(convolutions) / 3
    # A maximum keeps the range of what it is taken of.
    for node in graph.nodes:
        if node.target is aten.max_pool2d.default:
            (after,) = node.users
            assert after.args[1:3] == node.args[0].args[1:3]


def test_training_brings_int8_closer_to_fp32_and_leaves_the_network_as_it_is(fp32, prepared):
    before = copy.deepcopy(fp32.state_dict())
    first, second = copy.deepcopy(prepared), copy.deepcopy(prepared)
    losses = distil(first, fp32, images(), steps=30)
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert distil(second, fp32, images(), steps=30) == losses  # the seed decides
    assert distil(copy.deepcopy(prepared), fp32, images(), steps=2, seed=1) != losses[:2]
    for name, value in fp32.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(*(next(graph.parameters()) for graph in (first, prepared)))


@pytest.mark.parametrize("steps", [0, 3])
def test_what_was_trained_is_what_is_written(steps):
    # PyTorch's fused rounding gives channels of one sign a zero point and small ones a finer scale; files have neither.
    student = plain(**MOBILENET)
    depthwise = [module for module in student.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    with torch.no_grad():
        depthwise[0].weight.abs_()
        depthwise[1].weight.mul_(1e-3)
    graph = prepare(trace(student, SIZE), images(4))
    if steps:
        distil(graph, student, images(4), steps)
    with torch.no_grad():
        for sample in images(4):
            image = sample["pixel_values"][None]
            torch.testing.assert_close(converted(graph)(image), graph(image), atol=1e-5, rtol=1e-5)


def test_ranges_are_those_of_the_images_and_then_of_the_first_half_of_the_steps(fp32, prepared):
    def ranges(graph):
        return [
            float(module.scale)
            for module in graph.modules()
            if hasattr(module, "observer_enabled") and not module.is_per_channel
        ]

    graph, pixels = copy.deepcopy(prepared), torch.stack([sample["pixel_values"] for sample in images()])
    span = float(pixels.max() - pixels.min()) / 255
    assert 0.6 * span < ranges(graph)[0] <= span  # the first is the input's, an average over images
    distil(graph, fp32, images(), steps=2)
    moved = ranges(graph)
    assert moved != ranges(prepared)
    graph(5 * pixels[:1])
    assert ranges(graph) == moved


def test_trained_files_of_onnx_are_the_graph_in_unsigned_integers(fp32, prepared, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    import onnx

    student, path = converted(prepared), tmp_path / "model.onnx"
    save_onnx(trace(student, SIZE), path, student.output_name)
    image = images(1)[0]["pixel_values"][None]
    signed = runtimes.onnx_network(path)(image)
    make_unsigned(path)
    found = runtimes.onnx_network(path)(image)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert rounded
    assert {types[node.input[2]] for node in rounded} == {onnx.TensorProto.UINT8}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types]
    assert {types[node.input[0]] for node in weights} == {onnx.TensorProto.INT8}
    span = float(signed.max() - signed.min())
    assert (found - signed).abs().max() < 0.03 * span
    with torch.no_grad():
        assert (found - student(image)).abs().max() < 0.03 * span
    assert path.stat().st_size < 0.6 * 4 * sum(value.numel() for value in fp32.parameters()) + 60_000


def test_classes_of_an_int8_network_are_those_of_its_logits(prepared):
    image = images(1)[0]["pixel_values"][None]
    with torch.no_grad():
        mask, logits = converted(prepared, argmax=True)(image), converted(prepared)(image)
    assert (mask.dtype, mask.shape, logits.shape) == (torch.uint8, (1, *SIZE), (1, NUM_CLASSES, *SIZE))
    assert torch.equal(mask, logits.argmax(dim=1).byte())


def test_a_missing_torchao_is_named_with_the_line_that_installs_it(monkeypatch, fp32):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"int8 files .* need torchao: pip install 'hf-segkd\[int8\]'"):
        prepare(trace(fp32, SIZE), images(1))


class Pointwise(nn.Module):
    """Logits without a convolution."""

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values * 2)


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="has no convolution"):
        prepare(trace(DenseNetwork(Pointwise()), SIZE), images(1))
