"""Distillation losses: pure modules on tensors, one a file, usable in anybody's loop."""

from __future__ import annotations

from netgraft.losses.activation_boundary import ActivationBoundary
from netgraft.losses.attention_transfer import AttentionTransfer, attention_map
from netgraft.losses.factor_transfer import FactorTransfer
from netgraft.losses.flow_of_solution import FlowOfSolution, flow_matrix
from netgraft.losses.gradient_attention import GradientAttention
from netgraft.losses.hint import Hint
from netgraft.losses.logit_mse import LogitMSE
from netgraft.losses.neuron_selectivity import NeuronSelectivity
from netgraft.losses.normalized_logits import NormalizedLogits
from netgraft.losses.relations import RelationalAngle, RelationalDistance
from netgraft.losses.relative_error import RelativeError
from netgraft.losses.soft_targets import SoftTargets, softened

__all__ = [
    "ActivationBoundary",
    "AttentionTransfer",
    "FactorTransfer",
    "FlowOfSolution",
    "GradientAttention",
    "Hint",
    "LogitMSE",
    "NeuronSelectivity",
    "NormalizedLogits",
    "RelationalAngle",
    "RelationalDistance",
    "RelativeError",
    "SoftTargets",
    "attention_map",
    "flow_matrix",
    "softened",
]
