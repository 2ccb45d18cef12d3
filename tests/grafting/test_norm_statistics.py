"""Norms without statistics: which they are, that measured ones are the inputs', and that the function stays."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from netgraft.grafting.norm_statistics import measure_statistics, norms_without_statistics
from tests.support.random_models import images, randomise


def network() -> nn.Sequential:
    """Two norms as folding leaves them, the first with the ``eps`` taken off; the third has been trained."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6, eps=1e-3),
        nn.Conv2d(6, 4, 1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for place in (1, 4):
        norm = model[place]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -3, 3)
    folded = model[1]
    assert isinstance(folded, nn.BatchNorm2d)
    assert folded.running_var is not None
    folded.running_var -= folded.eps
    randomise(model[6])
    return model.eval().double()


BATCHES = [4 * images(5, 3, 9, 9, seed=seed).double() + 1 for seed in range(3)]


def test_only_norms_that_know_nothing_are_found() -> None:
    model = network()
    assert norms_without_statistics(model) == [model[1], model[4]]
    assert norms_without_statistics(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3))) == []
    assert norms_without_statistics(nn.BatchNorm2d(3, track_running_stats=False)) == []


@torch.no_grad()
def test_statistics_are_those_of_what_the_norm_takes_in_and_the_function_stays() -> None:
    model = network()
    before = copy.deepcopy(model)
    entering = torch.cat([before[:4](batch) for batch in BATCHES])
    trained = copy.deepcopy(model[6].state_dict())
    model[0].train()
    modes = [module.training for module in model.modules()]
    assert measure_statistics(model, BATCHES) == 2
    assert [module.training for module in model.modules()] == modes
    norm = model[4]
    assert isinstance(norm.running_mean, Tensor)
    torch.testing.assert_close(norm.running_mean, entering.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, entering.var((0, 2, 3), unbiased=False))
    model.eval()
    unseen = images(4, 3, 9, 9, seed=9).double()
    torch.testing.assert_close(model(unseen), before(unseen), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, trained[name]) for name, value in model[6].state_dict().items())
    assert measure_statistics(model, BATCHES) == 0


@torch.no_grad()
def test_in_train_mode_the_network_is_the_same_one_on_what_was_measured() -> None:
    model, [batch, *_] = network(), BATCHES
    expected = model(batch)
    folded, measured = copy.deepcopy(model), model
    measure_statistics(measured, [batch])
    for each in (folded, measured):
        each.train()
        each[6].eval()
    assert not torch.allclose(folded(batch), expected, rtol=0.1)
    torch.testing.assert_close(measured(batch), expected, rtol=1e-9, atol=1e-9)
