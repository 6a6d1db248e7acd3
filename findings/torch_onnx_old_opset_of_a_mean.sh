#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2: torch.onnx.export(opset_version=17) of x.mean(dim) writes opset 18 and raises nothing.
#
# The exporter makes a graph of opset 18 and has onnx's converter take it to older ones before it folds constants: the axes
# of the mean are then still Reshape(Constant, Constant), and the converter, which needs a constant, fails with "No
# initializer or constant input to node found". The error is logged, the model stays at opset 18, and torch.onnx.export
# returns it as if nothing had been. Afterwards the axes are folded: onnx's converter takes the file that was written to
# opset 17. Networks without a reduction (a convolution, a resize) come out in the opset asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import checker, version_converter
from torch import nn


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


image = torch.rand(1, 3, 8, 8)


def exported(network, opset):
    torch.onnx.export(network.eval(), (image,), "model.onnx", dynamo=True, opset_version=opset, verbose=False)
    model = onnx.load("model.onnx")
    (found,) = (entry.version for entry in model.opset_import if entry.domain == "")
    print(f"{type(network).__name__}: asked for opset {opset}, written {found}", flush=True)
    return model, found


shown, convert = [], version_converter.convert_version


def watched(model, target_version):
    shown.append([node.op_type for node in model.graph.node])
    return convert(model, target_version)


version_converter.convert_version = watched
assert exported(nn.Conv2d(3, 4, 3), 17)[1] == 17
for opset in (16, 17, 18):
    model, found = exported(Mean(), opset)
    assert found == 18, found
version_converter.convert_version = convert
before, after = shown[-1], [node.op_type for node in model.graph.node]
print(f"the converter was shown {', '.join(before)}; written is {', '.join(after)}")
assert before == ["Constant", "Constant", "Reshape", "ReduceMean"] and after == ["ReduceMean"], (before, after)

# onnx by itself converts it (the attribute would stay and make it invalid, another fault; 0 is its default).
for node in model.graph.node:
    kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
older = version_converter.convert_version(model, 17)
checker.check_model(older, full_check=True)
assert older.opset_import[0].version == 17
session = onnxruntime.InferenceSession(older.SerializeToString(), providers=["CPUExecutionProvider"])
found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
np.testing.assert_allclose(found, image.mean(dim=(2, 3)).numpy(), rtol=1e-5)
print("onnx's converter alone: opset 17, checked, the same numbers")
PY
