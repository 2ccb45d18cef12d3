"""How models pair, as it can be asked for."""

from __future__ import annotations

import itertools

import pytest

from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions


def test_every_start_goes_with_every_inheritance() -> None:
    for init, inherit in itertools.product(("auto", "random", "slice"), ("auto", "none")):
        assert PairingOptions(init, inherit) == PairingOptions(init=init, inherit=inherit, blocks=None)
    assert PairingOptions() == PairingOptions("auto", "auto")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("init", "Slice", "init must be auto, random, keep, slice or solve, not 'Slice'"),
        ("init", "", "init must be auto, random, keep, slice or solve, not ''"),
        ("inherit", "all", "inherit must be auto or none, not 'all'"),
    ],
)
def test_other_values_are_refused_by_name(field: str, value: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        PairingOptions(**{field: value})  # type: ignore[arg-type]
