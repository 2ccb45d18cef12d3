"""Which phases don't depend on one another, so that several processes can train them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from netgraft.modules import shares_parameters
from netgraft.plan import Phase


def independent_groups(phases: Sequence[Phase]) -> Iterator[range]:
    """Divide phases into runs of neighbours of which none sees what another trains.

    Yields:
        Ranges of phase numbers that cover all phases in order.
    """
    start = 0
    for number, phase in enumerate(phases):
        if any(_sees(phase, other) or _sees(other, phase) for other in phases[start:number]):
            yield range(start, number)
            start = number
    if phases:
        yield range(start, len(phases))


def _sees(phase: Phase, other: Phase) -> bool:
    """Whether what ``phase`` runs or trains has a part that ``other`` trains."""
    features = [*phase.features, *phase.teacher_features]
    connectors = [feature.connector for feature in features if feature.connector is not None]
    parts = [phase.model, phase.trainable, *connectors, *([] if phase.teacher is None else [phase.teacher])]
    return shares_parameters(nn.ModuleList(parts), other.trainable)


def lane(group: range, rank: int, ranks: int) -> range:
    """Return the phases of a group that one of several processes trains."""
    return group[rank::ranks]
