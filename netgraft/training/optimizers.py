"""Optimisers, as phases describe them."""

from __future__ import annotations

from typing import Any

import torch

from netgraft.plan import Phase


def make_optimizer(phase: Phase) -> torch.optim.Optimizer:
    """Return the optimiser of a phase's trainable part.

    Its groups hold ``peak``, the rate that the schedule multiplies. Adapters have their own; weights of one dimension
    (biases, norms) don't decay. One fused kernel updates all weights: the many small ones of the default took as long
    as a third of a step on a CPU.

    Raises:
        ValueError: The phase names an optimiser that doesn't exist.
    """
    schedule = phase.schedule
    special = {parameter for adapter in phase.adapters for parameter in adapter.parameters()}
    peaks = {True: schedule.lr if schedule.adapter_lr is None else schedule.adapter_lr, False: schedule.lr}
    groups: list[dict[str, Any]] = []
    for is_special, peak in peaks.items():
        for decays in (True, False):
            chosen = [
                p for p in phase.trainable.parameters() if (p in special) == is_special and (p.dim() > 1) == decays
            ]
            if chosen:
                decay = schedule.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    if schedule.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True, fused=True)
    raise ValueError(f"optimizer must be adam, adamw or sgd, not {schedule.optimizer!r}")


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rates of an optimiser of :func:`make_optimizer` to their peaks times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
