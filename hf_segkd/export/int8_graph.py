"""`simulated`: a graph that rounds as int8 does; `Int8Quantizer`: which of its tensors, for all runtimes alike."""

from __future__ import annotations

import copy

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.fake_quantize import FakeQuantize, FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
RECTIFIERS = (aten.relu.default, aten.hardtanh.default, aten.clamp.default)
SAME_RANGE = (aten.max_pool2d.default,)
NOT_IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.clamp_.default: aten.clamp.default,
    aten.add_.Tensor: aten.add.Tensor,
}
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default)
KEY = "quantization_annotation"  # where torchao looks

# Ranges of activations follow the last twenty or so images; those of weights are the weights' own. PyTorch's fused form
# is not taken: it rounds channels of one sign, and small ones, otherwise than the file does.
ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, averaging_constant=0.05, eps=2**-12
    ),
)
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-16
    ),
)


class Int8Quantizer(Quantizer):
    """Convolutions, sums, concatenations and maximum pooling in int8, with the ReLU or ReLU6 after them.

    What lies between them (resizes, averages, attention) stays fp32. torchao's and the runtimes' own quantizers each
    know one runtime, and ExecuTorch's puts a rounding between a convolution and its ReLU6, which costs time and
    accuracy in MobileNetV2.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the tensors to quantise."""
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS and node.args[1].op == "get_attr":  # not a weight that is computed
                image, weight = node.args[:2]
                self._mark(node, {image: ACTIVATION, weight: WEIGHT})
            elif node.target is aten.add.Tensor and all(map(_is_map, node.args)):
                self._mark(node, dict.fromkeys(node.args, ACTIVATION))
            elif node.target is aten.cat.default and all(map(_is_map, node.args[0])):
                first, *others = node.args[0]
                shared = SharedQuantizationSpec((first, node))
                inputs = {first: ACTIVATION, **dict.fromkeys((one for one in others if one is not first), shared)}
                node.meta[KEY] = QuantizationAnnotation(inputs, shared, _annotated=True)
            elif node.target in SAME_RANGE:
                image = node.args[0]
                shared = SharedQuantizationSpec((image, node))
                node.meta[KEY] = QuantizationAnnotation({image: ACTIVATION}, shared, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to say; the base class asks for it."""

    def _mark(self, node: Node, inputs: dict[Node, QuantizationSpec]) -> None:
        """A node whose output, after its ReLU if it has one, is int8."""
        users = list(node.users)
        rectified = len(users) == 1 and users[0].target in RECTIFIERS
        node.meta[KEY] = QuantizationAnnotation(inputs, None if rectified else ACTIVATION, _annotated=True)
        if rectified:
            users[0].meta[KEY] = QuantizationAnnotation({}, ACTIVATION, _annotated=True)


def _is_map(value: object) -> bool:
    """Whether an argument is a tensor (b, c, h, w) of floats, rather than a number."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(found, torch.Tensor) and found.is_floating_point() and found.dim() == 4


def simulated(program: ExportedProgram) -> GraphModule:
    """A traced network with batch norm folded, whose tensors are rounded as in int8; its weights can be trained.

    Raises:
        ValueError: If it has no convolution.
    """
    graph = copy.deepcopy(program.module())  # training must not reach the network itself
    for node in list(graph.graph.nodes):
        node.target = NOT_IN_PLACE.get(node.target, node.target)
        if node.target in DROPOUTS:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    graph = prepare_pt2e(graph, Int8Quantizer())
    if not any(isinstance(module, FakeQuantizeBase) for module in graph.modules()):
        raise ValueError("The network has no convolution, and nothing else is computed in int8. Leave --int8.")
    return graph


def observe(graph: GraphModule, ranges: bool, rounding: bool) -> None:
    """Say whether a simulated graph takes the ranges of activations from what it sees, and whether it rounds.

    Weights always have their own range.
    """
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(ranges or module.is_per_channel)
            module.enable_fake_quant(rounding)
