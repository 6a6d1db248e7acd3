"""Quantisation-aware distillation: a network learns from its own fp32 logits to compute in int8."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from hf_segkd.data import EvaluationDataset
from hf_segkd.losses.kd import pixel_wise_divergence

from .graph import classes_of
from .runtimes import Network, require_extra

IMAGES_OF_A_STEP = 4
LEARNING_RATE = 1e-5  # of Adam, along a cosine to 0; of 1e-4, 3e-5 and 1e-5 the best for a student of CamVid


class Int8Network(nn.Module):
    """A network in int8 as it is exported, in place of the `DenseNetwork` that it was made from.

    Args:
        model: A graph from torchao, which gives logits.
        argmax: Return the class of each pixel instead, as `DenseNetwork` does.
    """

    def __init__(self, model: GraphModule, argmax: bool) -> None:
        super().__init__()
        self.model = model
        self.argmax = argmax

    @property
    def output_name(self) -> str:
        """Name of the output in files."""
        return "mask" if self.argmax else "logits"

    def train(self, mode: bool = True) -> Int8Network:
        """Nothing: torchao's graphs refuse to be asked, and compute alike in training and evaluation."""
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (b, k, hh, ww) fp32, or classes (b, hh, ww), of normalised images (b, 3, hh, ww)."""
        logits = self.model(pixel_values)
        return classes_of(logits) if self.argmax else logits


def prepare(program: ExportedProgram, calibration: EvaluationDataset) -> GraphModule:
    """A graph that rounds weights and activations as int8 does; its ranges are those of some images.

    Args:
        program: A traced network that gives logits.
        calibration: Images of a size that it takes.

    Raises:
        ImportError: If torchao is missing; the message says how to install it.
        ValueError: If the network has no convolution.
    """
    require_extra("int8", "int8 files by training, and for devices,", ("torchao",))
    from .int8_graph import observe, simulated

    graph = simulated(program)
    observe(graph, ranges=True, rounding=False)
    with torch.no_grad():
        for index in range(len(calibration)):
            graph(calibration[index]["pixel_values"][None])
    observe(graph, ranges=False, rounding=True)
    return graph


def distil(graph: GraphModule, teacher: Network, images: EvaluationDataset, steps: int, seed: int = 0) -> list[float]:
    """Train a graph from `prepare`, in place, to give the teacher's logits; labels are not used.

    The loss is the method kd's. Batch norm is folded, so that its statistics are fixed. Ranges of activations follow
    the images for the first half of the steps and are then fixed, too.

    Args:
        graph: The graph.
        teacher: Mostly the network itself in fp32.
        images: Whole images as the network sees them; each is mirrored half of the time.
        steps: Optimiser steps, from 1, of `IMAGES_OF_A_STEP` images.
        seed: For the order of the images.

    Returns:
        Loss of each step, in nats a pixel.
    """
    from .int8_graph import observe

    rng = np.random.default_rng(seed)
    passes = -(-steps * IMAGES_OF_A_STEP // len(images))
    order = iter(np.concatenate([rng.permutation(len(images)) for _ in range(passes)]))
    parameters = [parameter.requires_grad_() for parameter in graph.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    losses = []
    for step in range(steps):
        observe(graph, ranges=step < steps / 2, rounding=True)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        losses.append(0.0)
        for _ in range(IMAGES_OF_A_STEP):  # one by one, as graphs are made for one
            image = images[int(next(order))]["pixel_values"][None]
            image = image.flip(-1) if rng.random() < 0.5 else image
            with torch.no_grad():
                target = teacher(image)
            loss = pixel_wise_divergence(graph(image), target) / IMAGES_OF_A_STEP
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
    observe(graph, ranges=False, rounding=True)
    with torch.no_grad():
        graph(image)  # for the ranges of the weights after the last step
    return losses


def converted(graph: GraphModule, argmax: bool = False, rounded_weights: bool = True) -> Int8Network:
    """The network of a graph from `prepare` or `distil`, with the operations on 8-bit integers that runtimes know.

    Args:
        graph: The graph, which stays as it is.
        argmax: Whether the network gives classes.
        rounded_weights: Keep weights as integers, or in fp32 with their rounding, as LiteRT's converter wants them.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    return Int8Network(convert_pt2e(copy.deepcopy(graph), fold_quantize=rounded_weights), argmax)
