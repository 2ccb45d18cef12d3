"""What baselines have in common."""

from __future__ import annotations

import pytest

from netgraft.methods.baseline import Baseline
from netgraft.methods.registry import find


def test_a_method_that_teaches_nothing_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Baseline()  # type: ignore[abstract]
    assert issubclass(find("kd+at"), Baseline)
