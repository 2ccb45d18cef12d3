"""Vectors of unit length."""

from __future__ import annotations

import torch

from netgraft.losses.neuron_selectivity import directions


def test_directions_have_length_one_or_zero() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
    torch.testing.assert_close(directions(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))


def test_vectors_no_longer_than_eps_have_no_direction() -> None:
    vectors = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    torch.testing.assert_close(directions(vectors, eps=5.0), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
