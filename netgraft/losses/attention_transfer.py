"""Activation-based attention transfer: distance between maps of where features are strong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.losses.dtypes import at_least_float32

# A sample whose features are all smaller than this has no attention; its map fades to zero.
VANISHING = 1e-12


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Return ``vec(sum_c |F_c|^power)`` of unit L2 length for each sample.

    A sample of zeros has a map of zeros. Summing over channels or averaging them gives the same map.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1.

    Args:
        features: Maps (B, C, H, W).
        power: Exponent of at least 1; larger ones weigh the strongest features more.

    Returns:
        Maps (B, H * W) in float32 or wider.

    Raises:
        ValueError: The features are no such maps or empty, or the exponent is below 1.
    """
    if features.ndim != 4 or not features.numel():
        raise ValueError(f"an attention map needs features (B, C, H, W), none of them 0, not {tuple(features.shape)}")
    # below the smallest normal number of float16 the gradient would leave its range
    vanishing = max(VANISHING, torch.finfo(features.dtype).tiny)
    features, power = at_least_float32(features), _checked(power)
    # The map doesn't depend on the scale, so that a constant one leaves the gradient as it is;
    # without it, powers of small or large features would leave float32's range.
    scale = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(vanishing)
    strength = (features / scale).abs().pow(power).sum(dim=1).flatten(1)
    # the largest entry is at least 1 unless the features vanish, and so is the length
    return F.normalize(strength, dim=1, eps=0.5)


class AttentionTransfer(nn.Module):
    """``mean_b 1/2 sum_l ||Q_S - Q_T||_2`` with ``Q`` the ``attention_map`` of the l-th pair of features.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1, equation 2. The norm
    is not squared, so its gradient has the same length however close the maps are; where they are equal it is zero.

    Args:
        power: Exponent of the attention maps, at least 1.
        form: ``paper`` is the equation above; ``code`` is what the authors' program computes instead:
            ``sum_l mean_b,hw (Q_S - Q_T)^2``, without the 1/2 and smaller the larger the maps.

    Raises:
        ValueError: The exponent is below 1, or the form is another.
    """

    def __init__(self, power: float = 2.0, form: str = "paper") -> None:
        super().__init__()
        if form not in {"paper", "code"}:
            raise ValueError(f"form must be 'paper' or 'code', not {form!r}")
        self.power = _checked(power)
        self.form = form

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare lists of maps, pair by pair.

        Args:
            student: Maps (B, C, H, W); H and W may change from pair to pair.
            teacher: As many; of a pair the widths C may differ, B, H and W may not.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: The lists differ in length or are empty, or a pair can't be compared.
        """
        if len(student) != len(teacher) or not len(student):
            raise ValueError(
                f"attention transfer needs as many maps of the student as of the teacher, at least one, "
                f"not {len(student)} and {len(teacher)}"
            )
        return torch.stack([self._compare(s, t) for s, t in zip(student, teacher, strict=True)]).sum()

    def _compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.ndim != 4 or teacher.ndim != 4 or _without_width(student) != _without_width(teacher):
            raise ValueError(
                f"attention transfer needs maps (B, C, H, W) that differ in C alone, "
                f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        difference = attention_map(student, self.power) - attention_map(teacher, self.power)
        if self.form == "code":
            return difference.square().mean()
        # unlike the square root of a sum, the norm has the gradient 0 where the difference is 0
        return torch.linalg.vector_norm(difference, dim=1).mean() / 2


def _without_width(maps: Tensor) -> tuple[int, ...]:
    B, _, H, W = maps.shape
    return B, H, W


def _checked(power: float) -> float:
    # below 1 the gradient at a feature of zero is infinite
    if not (power >= 1 and math.isfinite(power)):
        raise ValueError(f"power must be a finite number of at least 1, not {power!r}")
    return power
