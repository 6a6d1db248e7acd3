"""`predict`, `logits_at`: kept under the path they had before `hf_segkd.networks`."""

from hf_segkd.networks.inference import logits_at, predict

__all__ = ["logits_at", "predict"]
