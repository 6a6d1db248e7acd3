import pytest
import torch
from tiny_runs import SIZE, network

from hf_segkd.export.graph import DenseNetwork, save_onnx, trace
from hf_segkd.export.opsets import OLDEST, OPSET, check_opset, newest_opset
from hf_segkd.export.runtimes import onnx_network
from hf_segkd.models import ISANetConfig, ISANetForSemanticSegmentation

onnx = pytest.importorskip("onnx", reason="ONNX files need the extra [export]")
pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")


@pytest.fixture(scope="module")
def traced():
    student = DenseNetwork(network())
    return student, trace(student, SIZE)


def check(student, program, path, opset):
    save_onnx(program, path, student.output_name, opset=opset)
    (found,) = (entry.version for entry in onnx.load(path).opset_import if entry.domain == "")
    assert found == opset
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(onnx_network(path)(images), student(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("opset", [16, 17, 18, "newest"])
def test_a_file_is_of_the_opset_asked_for_and_the_same_network(traced, tmp_path, opset):
    check(*traced, tmp_path / "model.onnx", newest_opset() if opset == "newest" else opset)


@pytest.mark.slow
def test_every_opset_of_the_range_is_the_same_network(tmp_path):
    for dynamic in (False, True):
        student = DenseNetwork(network())
        program = trace(student, SIZE, dynamic)
        for opset in range(OLDEST, newest_opset() + 1):
            check(student, program, tmp_path / "model.onnx", opset)


def test_opsets_out_of_range_are_refused():
    newest = newest_opset()
    assert newest > OPSET
    for opset in (OLDEST, OPSET, newest):
        check_opset(opset)
    for opset in (OLDEST - 1, newest + 1, 0, -1):
        with pytest.raises(ValueError, match=f"--opset {opset}: .* opsets 16 to {newest}"):
            check_opset(opset)


@pytest.mark.slow
def test_a_network_that_an_old_opset_has_no_operation_for_is_refused(tmp_path):
    backbone = {"model_type": "segkd-resnet", "width": 8, "depths": [1, 1, 1, 1], "strides": [1, 2, 2, 1]}
    backbone["out_features"] = ["stage3", "stage4"]
    config = ISANetConfig(backbone_config=backbone, channels=16, attention_channels=8, num_labels=5)
    isanet = DenseNetwork(ISANetForSemanticSegmentation(config))
    program = trace(isanet, (65, 97), dynamic=True)
    with pytest.raises(ValueError, match="cannot be written in opset 17, which lacks an operation"):
        save_onnx(program, tmp_path / "model.onnx", "logits", dynamic=True, opset=17)
