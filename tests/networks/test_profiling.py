import time

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_segkd.networks.profiling import count_macs, cpu_name, measure_latencies, milliseconds_per_image


class OneConvolution(PreTrainedModel):
    config: PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, pixel_values):
        return self.conv(pixel_values)


def test_macs_are_multiply_adds_and_not_twice_that():
    assert count_macs(OneConvolution(), (7, 11)) == 7 * 11 * 5 * 3 * 9


def test_the_networks_of_the_attnfd_paper_cost_what_is_known_of_them():
    from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

    with torch.device("meta"):
        model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone="resnet18", num_labels=21))
    assert count_macs(model, (513, 513)) == pytest.approx(42.7e9, rel=2e-3)


def test_time_is_a_positive_number_of_milliseconds():
    assert 0 < milliseconds_per_image(OneConvolution(), (8, 8), runs=3) < 1000


def test_calls_take_turns_and_the_slow_one_is_the_slow_one():
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    fast, slow = measure_latencies([call("fast", 0.001), call("slow", 0.005)], runs=11)
    assert order == (["fast"] * 15 + ["slow"] * 15) * 2
    assert 1 <= fast.median_ms < 5 <= slow.median_ms <= slow.p95_ms


def test_one_slow_run_of_many_moves_the_95th_percentile_and_not_the_median():
    pauses = iter([0.0] * 7 + [0.03] + [0.0] * 7)  # five calls are not timed
    (latency,) = measure_latencies([lambda: time.sleep(next(pauses))], runs=10)
    assert latency.median_ms < 10 < latency.p95_ms


def test_the_first_calls_are_not_timed():
    pauses = iter([0.03] * 5 + [0.0] * 10)
    (latency,) = measure_latencies([lambda: time.sleep(next(pauses))], runs=10)
    assert latency.p95_ms < 10


def test_the_processor_has_a_name():
    assert cpu_name()
