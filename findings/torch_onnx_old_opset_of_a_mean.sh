#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2: torch.onnx.export(opset_version=17) of x.mean(dim) writes opset 18 and raises nothing.
#
# The exporter writes opset 18 and has it converted to older ones by onnx's converter. onnxscript shows the converter
# every constant as an input of the graph as well, to keep large ones out; for the converter the axes of the mean are then
# no constant any more, and it fails with "No initializer or constant input to node found". The error is logged, the
# model stays at opset 18, and torch.onnx.export returns it as if nothing had been. onnx alone, given the same model,
# takes it to opset 17. Networks without a reduction (a convolution, a resize) come out in the opset asked for.
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


assert exported(nn.Conv2d(3, 4, 3), 17)[1] == 17
for opset in (16, 17, 18):
    model, found = exported(Mean(), opset)
    assert found == 18, found

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

# The same model fails once its constant is an input as well, as onnxscript shows it.
(axes,) = model.graph.initializer
model.graph.input.append(onnx.helper.make_tensor_value_info(axes.name, axes.data_type, list(axes.dims)))
try:
    version_converter.convert_version(model, 17)
except Exception as error:
    print(f"with the axes as an input, too: {type(error).__name__}: {str(error).splitlines()[0][-60:]}")
    assert "No initializer or constant input to node found" in str(error)
else:
    raise SystemExit("the converter takes it now")
PY
