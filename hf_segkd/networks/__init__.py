"""Segmentation models of transformers as teachers and students."""

from hf_segkd.networks.feature_network import ForeignNetwork, with_taps, without_taps
from hf_segkd.networks.outputs import predicts_masks, query_log_probabilities, trial_size

__all__ = ["ForeignNetwork", "predicts_masks", "query_log_probabilities", "trial_size", "with_taps", "without_taps"]
