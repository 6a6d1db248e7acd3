#!/usr/bin/env bash
# torch 2.14.1 with onnxscript 0.7.2, onnx 1.23.2: torch.onnx.export(opset_version=16) of a mean writes opset 18, and
# raises nothing.
#
# The exporter makes opset 18 and hands the model to onnx's converter, which cannot lower ReduceMean there ("No
# initializer or constant input to node found"). The failure is only logged, the opset 18 model is written, and a runtime
# that is limited to opset 17 refuses the file much later. A network without a mean (a plain convolution here) is lowered
# as asked. Calling onnx's converter directly on the written file, once the attribute that is new in 18 is dropped, works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

assert torch.__version__.startswith("2.14.1"), torch.__version__


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3), keepdim=True)


def opset(path):
    return next(entry.version for entry in onnx.load(path).opset_import if entry.domain == "")


x = torch.randn(1, 3, 5, 7)
for name, network in {"convolution": nn.Conv2d(3, 4, 3).eval(), "mean": Mean()}.items():
    torch.onnx.export(network, (x,), f"{name}.onnx", dynamo=True, opset_version=16, verbose=False)
    print(f"{name}: asked for opset 16, got {opset(f'{name}.onnx')}")
assert opset("convolution.onnx") == 16
assert opset("mean.onnx") == 18

model = onnx.load("mean.onnx")
for node in model.graph.node:
    kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
older = onnx.version_converter.convert_version(model, 16)
onnx.checker.check_model(older)
session = onnxruntime.InferenceSession(older.SerializeToString())
(found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
assert np.allclose(found, Mean()(x).numpy(), atol=1e-6)
print("onnx's converter, called directly, gives opset", next(e.version for e in older.opset_import if not e.domain))
PY
