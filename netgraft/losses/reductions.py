"""The check that all losses with more than one reduction make."""

from __future__ import annotations


def known_reduction(reduction: str, *known: str) -> str:
    """Return ``reduction`` if it is one of those that a loss knows.

    Args:
        reduction: What was asked for.
        known: What the loss knows.

    Raises:
        ValueError: It is none of them.
    """
    if reduction not in known:
        raise ValueError(f"reduction must be {' or '.join(map(repr, known))}, not {reduction!r}")
    return reduction
