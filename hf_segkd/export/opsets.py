"""`check_opset`, `lowered`: which versions of ONNX's operations a file may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .runtimes import require_extra

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET, OLDEST = 20, 16
# The oldest that PyTorch's exporter writes. Asked for less it writes this, and only logs that it did.
PYTORCH_OPSET = 18


def newest_opset() -> int:
    """The newest opset that the installed onnx knows and the installed ONNX Runtime loads."""
    require_extra()
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    for opset in range(onnx.defs.onnx_opset_version(), OPSET, -1):
        model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", opset)])
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # ONNX Runtime has kinds of its own; it says "till opset 26"
            continue
        return opset
    return OPSET


def check_opset(opset: int) -> None:
    """Make sure that files of an opset can be written here, and be checked.

    Raises:
        ImportError: If the packages of the extra `export` are missing.
        ValueError: If not; the message has the range.
    """
    if opset == OPSET:
        return
    newest = newest_opset()
    if not OLDEST <= opset <= newest:
        raise ValueError(
            f"--opset {opset}: the installed onnx and onnxruntime write and run opsets {OLDEST} to {newest}. Choose "
            "one of these; a newer one may need newer packages."
        )


def lowered(model: ModelProto, opset: int) -> ModelProto:
    """A model of opset 18 as one of an older opset.

    Raises:
        ValueError: If that opset lacks an operation of the network.
    """
    import onnx

    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
        del node.attribute[:]  # of reductions: new in 18, and the converter would keep it
        node.attribute.extend(kept)
    try:
        older = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(older)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise ValueError(
            f"The network cannot be written in opset {opset}, which lacks an operation it needs. Choose --opset "
            f"{PYTORCH_OPSET} or newer, or export for one size, without --dynamic. onnx says: {str(error).strip()}"
        ) from error
    return older
