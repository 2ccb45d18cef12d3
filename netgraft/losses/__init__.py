"""Distillation losses: pure modules on tensors, one a file, usable in anybody's loop."""

from netgraft.losses.logit_mse import LogitMSE
from netgraft.losses.normalized_logits import NormalizedLogits

__all__ = ["LogitMSE", "NormalizedLogits"]
