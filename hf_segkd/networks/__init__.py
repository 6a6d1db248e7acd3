"""Segmentation models of transformers as teachers and students, and those of other libraries as teachers."""

from hf_segkd.networks.feature_network import FeatureNetwork, FeatureReader, network_spec, with_taps, without_taps
from hf_segkd.networks.logits_network import LogitsNetwork
from hf_segkd.networks.outputs import predicts_masks, query_log_probabilities, trial_size

__all__ = [
    "FeatureNetwork",
    "FeatureReader",
    "LogitsNetwork",
    "network_spec",
    "predicts_masks",
    "query_log_probabilities",
    "trial_size",
    "with_taps",
    "without_taps",
]
