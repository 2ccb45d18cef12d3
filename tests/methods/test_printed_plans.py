"""What people read of a plan: the names of its phases and of what is trained beside the student."""

from __future__ import annotations

import pytest

from netgraft.methods.registry import METHODS
from tests.support.method_pairs import method, pairing

STUDENT = ("train the student", "connectors")

# of the digits' pair, whose first block is inherited
NAMES = {
    "netgraft": [
        *((f"graft block {number}", "adapters") for number in (2, 3, 4)),
        ("join blocks 2-3", "adapters"),
        ("join blocks 2-4", "adapters"),
    ],
    "kd": [STUDENT],
    "fitnets": [("hint behind block 2", "connectors"), STUDENT],
    "at": [STUDENT],
    "at-gradient": [STUDENT],
    "nst": [STUDENT],
    "ft": [("train the paraphraser", "adapters"), STUDENT],
    "ab": [("activation boundaries", "connectors"), STUDENT],
    "fsp": [("flows", "connectors"), STUDENT],
    "rkd": [STUDENT],
    "ban": [(f"generation {number}", "adapters") for number in (1, 2, 3)],
    "dml": [("2 peers", "other peers")],
    "one": [("3 branches", "other branches and gate")],
    "byot": [STUDENT],
    "supervised": [STUDENT],
    "none": [("recalibrate batch norms", "adapters")],
}


@pytest.mark.parametrize("name", METHODS)
def test_phases_have_their_names(name: str) -> None:
    plan = method(name).plan(pairing())
    assert [(phase.name, phase.adapters_are) for phase in plan.phases] == NAMES[name]
    lines = str(plan).splitlines()
    for number, (phase, _) in enumerate(NAMES[name], 1):
        assert lines[number].startswith(f"  {number}. {phase}: ")
