"""Segmentation models of transformers as teachers and students."""

from hf_segkd.foreign.network import ForeignNetwork, query_log_probabilities, trial_size, with_taps, without_taps

__all__ = ["ForeignNetwork", "query_log_probabilities", "trial_size", "with_taps", "without_taps"]
