"""Factor transfer: distance between the directions of two factors."""

from __future__ import annotations

from torch import Tensor, nn

from netgraft.losses.directions import directions
from netgraft.losses.dtypes import at_least_float32
from netgraft.losses.reductions import known_reduction


class FactorTransfer(nn.Module):
    """``|| f_T/||f_T||_2 - f_S/||f_S||_2 ||_1`` (Kim et al., NeurIPS 2018, section 3.2, with p = 1).

    Norms are those of one sample's whole factor, flattened. A factor of zeros has no direction: it counts as zero and
    gets no gradient. RepDistiller (Tian, Krishnan and Isola, ICLR 2020, its program) compares energies instead: the
    mean over the channels of their squares, flattened.

    Args:
        reduction: ``sample``: the sum over a sample's factor, as the equation has it; ``element``: the mean over its
            elements, as the authors' code has it, to which their weight of 500 belongs. Both are means over the batch.

        form: ``factor``, as the equation has it, or ``energy``, as RepDistiller has it.

    Raises:
        ValueError: Another reduction or form.
    """

    def __init__(self, reduction: str = "sample", form: str = "factor") -> None:
        super().__init__()
        if form not in {"factor", "energy"}:
            raise ValueError(f"form must be 'factor' or 'energy', not {form!r}")
        self.form = form
        self.reduction = known_reduction(reduction, "sample", "element")

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare factors.

        Args:
            student: Factors (B, m, H, W).
            teacher: Of the same shape.

        Returns:
            A scalar in float32 or wider.

        Raises:
            ValueError: Shapes differ, or are other ones.
        """
        if student.dim() != 4 or student.shape != teacher.shape:
            raise ValueError(
                "student and teacher must be factors of one shape (B, m, H, W), "
                f"not {tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        s, t = (directions(self._compared(at_least_float32(factors))) for factors in (student, teacher))
        distances = (t - s).abs()
        return distances.sum(1).mean() if self.reduction == "sample" else distances.mean()

    def _compared(self, factors: Tensor) -> Tensor:
        return factors.flatten(1) if self.form == "factor" else factors.square().mean(1).flatten(1)
