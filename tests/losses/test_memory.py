"""The largest tensor that a loss on sets or relations makes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netgraft.losses.flow_of_solution import FlowOfSolution
from netgraft.losses.neuron_selectivity import NeuronSelectivity
from netgraft.losses.relations import RelationalAngle, RelationalDistance


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


def largest_tensor(loss: Callable[[Tensor, Tensor], Tensor], *shape: int) -> tuple[int, int]:
    """The sizes of the largest tensors of the forward and of the backward pass."""
    s, t = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    with Largest() as forward:
        value = loss(s, t)
    with Largest() as backward:
        value.backward()
    return forward.numel, backward.numel


def test_the_hook_sees_what_broadcasting_makes() -> None:
    def naive(s: Tensor, t: Tensor) -> Tensor:
        return (s.flatten(2)[:, :, None] * t.flatten(2)[:, None, :]).sum(3).square().mean()

    assert largest_tensor(naive, 2, 8, 3, 5) == (2 * 8 * 8 * 15, 2 * 8 * 8 * 15)


@pytest.mark.parametrize(
    "loss",
    [
        NeuronSelectivity("linear"),
        NeuronSelectivity(),
        NeuronSelectivity(degree=3, constant=1),
        NeuronSelectivity("gaussian"),
        lambda s, t: FlowOfSolution()([(s, s)], [(t, t)]),
    ],
)
@pytest.mark.parametrize("shape", [(16, 64, 8, 8), (16, 64, 3, 3), (16, 16, 16, 16)])
def test_sets_cost_a_matrix_of_pairs(loss: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int]) -> None:
    batch, channels, height, width = shape
    allowed = batch * channels * max(channels, height * width)
    assert max(largest_tensor(loss, *shape)) <= allowed


@pytest.mark.parametrize("loss", [NeuronSelectivity("linear"), NeuronSelectivity(), NeuronSelectivity(constant=1)])
def test_many_channels_on_few_positions_cost_no_more_than_the_maps(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert max(largest_tensor(loss, 4, 64, 2, 2)) <= 4 * 64 * 4


def test_relations_cost_no_difference_for_each_triplet() -> None:
    batch, width = 16, 512
    assert max(largest_tensor(RelationalDistance(), batch, width)) <= batch * width
    assert max(largest_tensor(RelationalAngle(), batch, width)) <= batch * batch * width
    assert max(largest_tensor(RelationalAngle(), 32, 2)) <= 32**3
