"""Losses on maps alone, built as a user builds them, against the numbers of public code outside the repository."""

import pytest
import torch
from loss_cases import make_labels, reference

from hf_segkd.losses import create_loss
from hf_segkd.types import NetworkSpec

# Case -> method, tap, arguments.
CASES = {
    "cirkd_T1": ("kd", "logits", {}),
    "cirkd_randn": ("at", "decoder", {"weight": 1.0, "reduction": "mean"}),
    "repdistiller_b4_relu": ("sp", "decoder", {"weight": 1.0}),
    "official_cifar_embed1x1_bn_train": ("ickd", "decoder", {"weight": 1.0}),
    "aicsd_on_logits_ic_lambda1": ("ickd", "logits", {"weight": 1.0, "tap": "logits"}),
    "seg_beta1_gamma1": ("dist", "logits", {}),
    "derived_pixel_angular": ("lad", "decoder", {}),
    "pixelwise_official": (
        "skds",
        "logits",
        {"preset": "official", "weight": 1.0, "pair_weight": 0, "adversarial_weight": 0},
    ),
    "pairwise_official_scale0.5": ("skds", "decoder", {"weight": 0, "pair_weight": 1.0, "adversarial_weight": 0}),
    "distillation_loss_with_margin": (
        "ofd",
        "decoder_pre",
        {"weight": 1.0, "divisors": {"decoder_pre": 1}, "connectors": False},
    ),
}


def drawn(recipe):
    torch.manual_seed(recipe["seed"])
    tensors = {}
    for entry in recipe["tensors"]:
        tensor = getattr(torch, entry["op"])(entry["shape"])  # randn or rand
        for name, *numbers in entry.get("post", ()):
            tensor = getattr(tensor, name)(*numbers)  # mul, add or relu
        tensors[entry["name"]] = tensor
    return tensors


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_of_the_reference_file_come_from_documented_arguments(case):
    method, tap, arguments = CASES[case]
    expected = next(entry for entry in reference("methods.json")["cases"] if entry["id"] == case)
    tensors = drawn(expected["recipe"])
    student, teacher = tensors["s"].requires_grad_(), tensors["t"]
    norms = {tap: (tensors["bn_w"], tensors["bn_b"])} if "bn_w" in tensors else {}
    specs = [NetworkSpec({tap: x.shape[1]}, num_labels=student.shape[1], norms=norms) for x in (student, teacher)]
    loss = create_loss(method, *specs, **arguments)
    if "conv_w" in tensors:
        loss.embed[0].weight.data.copy_(tensors["conv_w"])
    value = sum(loss({tap: student}, {tap: teacher}, make_labels()[:1].expand(len(student), -1, -1)).values())
    value.backward()
    gradient = expected["grads_of_sum_of_outputs"]["s"]
    actual = [value.item(), student.grad.norm().item(), *student.grad.flatten()[:4].tolist()]
    numbers = [expected.get("outputs_f64", expected["outputs"])["loss"], gradient["l2"], *gradient["first4"]]
    assert actual == pytest.approx(numbers, rel=2e-5, abs=1e-9)
