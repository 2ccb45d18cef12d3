"""Neuron selectivity transfer: distance between the sets of patterns that two layers' channels respond to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netgraft.losses.directions import directions
from netgraft.losses.dtypes import at_least_float32

KERNELS = ("linear", "polynomial", "gaussian")


class NeuronSelectivity(nn.Module):
    """Squared maximum mean discrepancy of two sets of channel patterns (Huang and Wang, 2017, arXiv 1707.01219, NST).

    ``mean_i,i' k(s_i, s_i') + mean_j,j' k(t_j, t_j') - 2 mean_i,j k(s_i, t_j)`` for each sample, and the mean over the
    batch. A pattern is one channel's map as a vector of unit length; a channel without any response stays zero.

    Args:
        kernel: ``linear``: ``x.y``; ``polynomial``: ``(x.y + constant)^degree``; ``gaussian``:
            ``exp(-||x - y||^2 / (2 sigma^2))``, ``sigma^2`` being the mean squared distance over all ordered pairs in
            the union of a sample's two sets. It is taken as a constant: no gradient flows through it.
        degree: Degree of the polynomial, an integer of at least 1.
        constant: Constant of the polynomial, at least 0.

    Raises:
        ValueError: Another kernel, or a degree or constant out of range.
    """

    def __init__(self, kernel: str = "polynomial", degree: int = 2, constant: float = 0.0) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be 'linear', 'polynomial' or 'gaussian', not {kernel!r}")
        if not isinstance(degree, int) or degree < 1:
            raise ValueError(f"degree must be an integer of at least 1, not {degree!r}")
        if not 0 <= constant < float("inf"):
            raise ValueError(f"constant must be a finite number of at least 0, not {constant!r}")
        self.kernel = kernel
        self.degree = degree
        self.constant = constant

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the channels' patterns as two sets.

        The largest tensor made is as large as the maps or one matrix of pairs a sample, whichever is larger.

        Args:
            student: Maps (B, C_S, H, W).
            teacher: Maps (B, C_T, H, W).

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: They are no maps, or differ in B, H or W.
        """
        if student.dim() != 4 or teacher.dim() != 4 or _all_but_channels(student) != _all_but_channels(teacher):
            raise ValueError(
                "student and teacher must be maps (B, C, H, W) that agree in B, H and W, "
                f"not of shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        # products in bfloat16 would be coarser than the differences that are sought
        with torch.autocast(student.device.type, enabled=False):
            s, t = (directions(at_least_float32(maps).flatten(2)) for maps in (student, teacher))
            return self._discrepancies(s, t).mean()

    def _discrepancies(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the discrepancy of each sample (B,) from unit patterns (B, C_S, N) and (B, C_T, N)."""
        if self.kernel == "linear" or (self.kernel == "polynomial" and self.degree == 1):
            return _squared_distance_of_means(s, t)
        positions, channels = s.shape[2], max(s.shape[1], t.shape[1])
        if self.kernel == "polynomial" and self.degree == 2 and positions <= channels:
            # mean (x.y)^2 is an inner product of second moments: N x N instead of C x C, and free of cancellation
            moments = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
            distance = moments.square().sum((1, 2))
            return distance + 2 * self.constant * _squared_distance_of_means(s, t) if self.constant else distance
        wider = torch.promote_types(s.dtype, t.dtype)
        s, t = s.to(wider), t.to(wider)
        if self.kernel == "gaussian":
            ss, tt, st = _gaussian(s, t)
        else:
            ss, tt, st = ((products + self.constant).pow(self.degree) for products in (s @ s.mT, t @ t.mT, s @ t.mT))
        return ss.mean((1, 2)) + tt.mean((1, 2)) - 2 * st.mean((1, 2))


def _all_but_channels(maps: Tensor) -> tuple[int, ...]:
    return (maps.shape[0], *maps.shape[2:])


def _squared_distance_of_means(s: Tensor, t: Tensor) -> Tensor:
    return (s.mean(1) - t.mean(1)).square().sum(1)


def _gaussian(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gaussian kernel's values (B, C_S, C_S), (B, C_T, C_T) and (B, C_S, C_T)."""
    # distances don't change with the origin, but from afar they would be differences of rounded inner products
    origin = ((s.mean(1, keepdim=True) + t.mean(1, keepdim=True)) / 2).detach()
    s, t = s - origin, t - origin
    ss, tt, st = _squared_distances(s, s), _squared_distances(t, t), _squared_distances(s, t)
    pairs = (s.shape[1] + t.shape[1]) ** 2
    variance = (ss.sum((1, 2)) + tt.sum((1, 2)) + 2 * st.sum((1, 2))).detach() / pairs
    # where all patterns are the same, the distances are rounding errors and must not be blown up
    variance = variance.clamp_min(64 * torch.finfo(s.dtype).eps)[:, None, None]
    return (-ss / (2 * variance)).exp(), (-tt / (2 * variance)).exp(), (-st / (2 * variance)).exp()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :] - 2 * x @ y.mT
