"""The same images through a model and through its file: whether both are one function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netgraft.errors import RunError
from netgraft.evaluation.metrics import agreement

TOLERANCE = 1e-4
"""By how much a logit may differ, as a part of the largest one of its batch: float32 in another order of sums."""


@dataclass(frozen=True)
class Proof:
    """Model and file answered alike.

    Attributes:
        images: On how many.
        difference: The largest, as a part of the largest logit.
        tolerance: What it was allowed to be.
    """

    images: int
    difference: float
    tolerance: float = TOLERANCE


@torch.inference_mode()
def prove(model: nn.Module, export: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Proof:
    """Compare logits and answers.

    Args:
        model: In eval mode.
        export: What was opened.
        batches: The same images twice: as ``model`` takes them, and as ``export`` does.

    Raises:
        RunError: They differ.
    """
    images, largest = 0, 0.0
    for number, (of_model, of_export) in enumerate(batches, 1):
        expected, found = model(of_model), export(of_export)
        where = f"on batch {number}, of {len(of_model)} images"
        if found.shape != expected.shape:
            raise RunError(
                f"the export isn't the model: expected logits {tuple(expected.shape)} {where}, got "
                f"{tuple(found.shape)}; nothing was written"
            )
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        # not "larger than": NaN is no difference that was allowed
        if not difference <= TOLERANCE:
            raise RunError(
                f"the export isn't the model: logits differ by {difference:.2g} of the largest one {where}, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        if agreement(found, expected) < 100:
            raise RunError(f"the export isn't the model: another top-1 {where}; nothing was written")
        images += len(of_model)
        largest = max(largest, difference)
    return Proof(images, largest)
