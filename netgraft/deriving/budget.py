"""What a derived student may cost: ``macs=0.5``, ``parameters=2.5M``, ``ms=3``, several at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from netgraft.errors import RequestError

UNITS = ("macs", "parameters", "ms")

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}

_EXAMPLES = "give a fraction such as macs=0.5, or a number such as parameters=2.5M"


@dataclass(frozen=True)
class Amount:
    """What may be spent of one unit.

    Attributes:
        unit: ``macs``, multiply-accumulates for one image; ``parameters``; or ``ms``, milliseconds of one image on the
            device at hand.
        value: As many, or a fraction of the teacher's.
        of_teacher: Whether ``value`` is a fraction.
    """

    unit: str
    value: float
    of_teacher: bool

    def limit(self, teacher: float) -> float:
        """Return how many may be spent.

        Args:
            teacher: How many the teacher has.

        Raises:
            RequestError: As many as the teacher has, or more.
        """
        most = self.value * teacher if self.of_teacher else self.value
        if most >= teacher:
            raise RequestError(
                f"the teacher has {teacher:,.4g} {self.unit}, which is within the budget of {most:,.4g} already; "
                "give a smaller one"
            )
        return most

    def __str__(self) -> str:
        return f"{self.value:g} of the teacher's {self.unit}" if self.of_teacher else f"{self.value:,.4g} {self.unit}"


def parse_budget(text: str) -> tuple[Amount, ...]:
    """Read what may be kept.

    Args:
        text: ``unit=amount``, several joined by commas; a bare fraction is one of the multiply-accumulates.

    Raises:
        RequestError: An unknown unit, an amount that is no number, a fraction outside (0, 1), or a unit given twice.

    Examples:
        >>> print(*parse_budget("macs=0.5,parameters=2.5M"), sep="; ")
        0.5 of the teacher's macs; 2.5e+06 parameters
    """
    return budget_of(dict(_pair(part) for part in _apart(text)))


def series_of(text: str) -> tuple[str, ...]:
    """Return the budgets of a series of students: of several bare fractions each; else the text is one budget.

    Raises:
        RequestError: A budget of a series stands there twice, or can't be read.

    Examples:
        >>> series_of("0.7,0.5"), series_of("macs=0.5,parameters=0.3")
        (('macs=0.7', 'macs=0.5'), ('macs=0.5,parameters=0.3',))
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not any("=" in part for part in parts):
        if len(set(parts)) < len(parts):
            raise RequestError(f"a series has each budget once, not {text!r}; {_EXAMPLES}")
        series = tuple(f"macs={part}" for part in parts)
        for budget in series:
            parse_budget(budget)  # none is begun before all can be read
        return series
    return (text,)


def budget_of(amounts: Mapping[str, float | str]) -> tuple[Amount, ...]:
    """Read what may be kept, by unit. Raises like :func:`parse_budget`."""
    return tuple(_amount(unit, str(value)) for unit, value in amounts.items())


def _apart(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    units = [_pair(part)[0] for part in parts]
    if len(set(units)) < len(units):
        raise RequestError(f"a budget has each unit once, not {text!r}; {_EXAMPLES}")
    return parts


def _pair(part: str) -> tuple[str, str]:
    unit, equals, value = part.partition("=")
    return (unit.strip(), value.strip()) if equals else ("macs", part)


def _amount(unit: str, text: str) -> Amount:
    if unit not in UNITS:
        raise RequestError(f"a budget is of {', '.join(UNITS[:-1])} or {UNITS[-1]}, not of {unit!r}; {_EXAMPLES}")
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)([KMG]?)", text.strip())
    if found is None:
        raise RequestError(f"a budget's amount must be a number, not {text!r}; {_EXAMPLES}")
    number, suffix = float(found[1]), found[2]
    # nobody asks for less than a thousand operations or parameters, and a millisecond is a long time
    if suffix or number >= (1 if unit == "ms" else 1000):
        return Amount(unit, number * _FACTORS[suffix], of_teacher=False)
    if not 0 < number < 1:
        raise RequestError(f"a fraction of the teacher's {unit} lies between 0 and 1, not at {text}; {_EXAMPLES}")
    return Amount(unit, number, of_teacher=True)
