"""Features stand behind trained blocks in front of the head."""

from __future__ import annotations

import pytest

from netgraft.errors import RequestError
from netgraft.grafting.pairing import Pairing
from tests.support.method_pairs import method, networks, one_cut, pairing


def test_features_need_a_trained_block_in_front_of_the_head() -> None:
    whole = one_cut()
    inherited = Pairing(whole.teacher, whole.student, inherited=1)
    for name in ("fitnets", "at", "nst", "ft", "ab", "rkd", "one", "byot"):
        assert method(name).plan(whole).phases
        with pytest.raises(RequestError, match="all blocks but the head are inherited"):
            method(name).plan(inherited)


def test_the_digits_networks_are_what_these_tests_take_them_for() -> None:
    teacher, student = networks("digits")
    assert pairing().widths == [(32, 32), (64, 32), (128, 64)]
    assert sum(p.numel() for p in teacher.parameters()) > sum(p.numel() for p in student.parameters())
