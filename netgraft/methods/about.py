"""What kind of method one is, for lists and results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """Facts about a method.

    Attributes:
        category: ``offline`` (from a trained teacher), ``online`` (peers learn together), ``self`` (from itself), or
            ``reference`` (no distillation).
        matches: What of the networks is compared: logits, features, attention, sparsity, relations; or ``labels``.
        phases: Stages, in words.
        labels: ``none``; ``classes``: real ones on the labeled track, the teacher's arg-max on the unlabeled one.
        article: Authors, venue and number.
        year: Of the article; 0 for a reference point.
        teacher: Whether the teacher teaches; where not, its arg-max stands for labels on the unlabeled track.
    """

    category: str
    matches: str
    phases: str
    labels: str
    article: str
    year: int
    teacher: bool = True
