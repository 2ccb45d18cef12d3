"""Networks side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.methods.peers import Peers
from tests.support.method_pairs import method


def test_peers_answer_side_by_side_and_may_work_in_place() -> None:
    peers = Peers([nn.ReLU(inplace=True), nn.Identity()])
    inputs = torch.tensor([[-1.0, 2.0]])
    assert peers(inputs).tolist() == [[[0.0, 2.0], [-1.0, 2.0]]]
    assert inputs.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize(("name", "field"), [("dml", "peers"), ("one", "branches")])
def test_one_student_alone_is_refused(name: str, field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be at least 2, not 1"):
        method(name, **{field: 1})
