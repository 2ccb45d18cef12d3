"""Gradient-based attention transfer: distance between gradients at the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netgraft.losses.dtypes import at_least_float32


class GradientAttention(nn.Module):
    """``mean_b 1/2 ||J_S - J_T||_2``, ``J`` the gradient of a sample's own classification loss at its image.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2. The norm is not
    squared, as in the article's definition; the derivative that the article prints below it is the squared norm's.

    ``J_S`` must be made with ``create_graph=True``, so that the student's weights get a gradient, and from the *sum* of
    the batch's classification losses: with their mean it would shrink with the size of the batch.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare gradients at the images.

        Args:
            student: Gradients (B, C, H, W).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: Shapes differ, or there is nothing in them.
        """
        if student.shape != teacher.shape or student.ndim != 4 or not student.numel():
            raise ValueError(
                f"gradient attention needs input gradients of one shape (B, C, H, W), none of them 0, "
                f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        difference = at_least_float32(student) - at_least_float32(teacher)
        # unlike the square root of a sum, the norm has the gradient 0 where the difference is 0
        return torch.linalg.vector_norm(difference, dim=(1, 2, 3)).mean() / 2
