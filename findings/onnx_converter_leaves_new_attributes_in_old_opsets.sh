#!/usr/bin/env bash
# onnx 1.23.2: version_converter writes an invalid model when it takes a ReduceMean from opset 18 to 17, without an error.
#
# ReduceMean and the other reductions got the attribute `noop_with_empty_axes` in opset 18, when `axes` became an input.
# The converter makes `axes` an attribute again and leaves `noop_with_empty_axes`, which opset 17 has not, even where it
# is 0, the default. PyTorch's exporter writes it into every reduction. onnx's own checker refuses what the converter
# returned, and so does ONNX Runtime 1.31.1. Without the attribute the same model is converted rightly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.31.1 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper, version_converter


def mean(operation, **attributes):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operation, ["x", "axes"], ["y"], keepdims=0, **attributes)],
        "mean",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [value("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


x = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
for operation in ("ReduceMean", "ReduceMax", "ReduceL2"):
    np.testing.assert_array_equal(run(mean(operation, noop_with_empty_axes=0), x), run(mean(operation), x))
    older = version_converter.convert_version(mean(operation, noop_with_empty_axes=0), 17)
    names = sorted(attribute.name for attribute in older.graph.node[0].attribute)
    print(f"{operation}: opset {older.opset_import[0].version}, attributes {', '.join(names)}")
    assert older.opset_import[0].version == 17
    assert names == ["axes", "keepdims", "noop_with_empty_axes"], names
    for refuse in (lambda: checker.check_model(older), lambda: run(older, x)):
        try:
            refuse()
        except Exception as error:
            print(f"  {type(error).__name__}: {' '.join(str(error).split())[:140]}")
            assert "noop_with_empty_axes" in str(error)
        else:
            raise SystemExit("the converted model is taken now")

    older = version_converter.convert_version(mean(operation), 17)
    checker.check_model(older)
    np.testing.assert_array_equal(run(older, x), run(mean(operation), x))
    print("  without the attribute: converted, checked, the same numbers")
PY
