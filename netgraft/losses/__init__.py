"""Distillation losses: pure modules on tensors, one a file, usable in anybody's loop."""

from netgraft.losses.normalized_logits import NormalizedLogits

__all__ = ["NormalizedLogits"]
