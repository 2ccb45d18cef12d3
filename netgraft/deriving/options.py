"""How a student is derived, as it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from netgraft.options import MOST_STEPS, option

CRITERIA = ("surgeon", "weight-norm")


@dataclass(frozen=True)
class DerivingOptions:
    """Which channels go, and how many of each layer; the defaults are the best that is known here.

    The others are what they are compared with.

    Examples:
        >>> import netgraft
        >>> netgraft.DerivingOptions(rounds=2).criterion
        'surgeon'
    """

    criterion: str = option(
        "surgeon",
        "Which channels a derived student loses first: surgeon (those whose loss the other weights make up for best) "
        "or weight-norm (those of the smallest filters).",
        choices=CRITERIA,
        scope="run",
        section="expert",
    )
    allocation: str = option(
        "knapsack",
        "How widths are chosen for a budget: knapsack (the least sum of errors), greedy (step by step the least error "
        "for what it saves) or uniform (the same part of all layers).",
        choices=("knapsack", "greedy", "uniform"),
        scope="run",
        section="expert",
    )
    convolutions: str = option(
        "low-rank",
        "What becomes of convolutions whose kernel is larger than 1x1: low-rank (some become two, of which the first "
        "writes few channels and the second is 1x1) or whole.",
        choices=("low-rank", "whole"),
        scope="run",
        section="expert",
    )
    rounds: int | None = option(
        None,
        "Rounds in which channels go; what each is worth is measured anew in every one. As many by default as leave "
        "four fifths of a cost in each.",
        minimum=1,
        maximum=20,
        scope="run",
    )
    recovery_steps: int = option(
        0,
        "Steps of training between two rounds, on the teacher's logits and maps: the student of each but the last is "
        "trained before the next one narrows it further.",
        minimum=0,
        maximum=MOST_STEPS,
        scope="run",
    )

    @property
    def scores(self) -> bool:
        """Whether widths are chosen by their errors, so that there is a library."""
        return self.allocation != "uniform"
