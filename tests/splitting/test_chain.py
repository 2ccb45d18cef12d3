"""Chains of blocks: what they are made of, merging, names and modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.splitting.chain import BlockChain, Cut, state_of
from netgraft.splitting.split import split
from tests.support.model_families import family
from tests.support.random_models import images, randomise, snapshot

X = images(2, 3, 8, 8)


class Names(nn.Module):
    """Modules with names that a container has uses for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Conv2d(3, 4, 3)
        self.cuts = nn.ModuleDict({"x": nn.Conv2d(4, 4, 1)})
        self.cuts_x = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.cuts_x(self.cuts["x"](self.blocks(x)))).mean((2, 3)))


def test_any_module_name_can_be_cut_behind() -> None:
    model = Names().eval()
    chain = split(model, probe=X, cuts=["blocks", "cuts.x", "cuts_x", "head"])
    assert chain.names == ("blocks", "cuts.x", "cuts_x", "head", "head")
    assert len(chain) == 5
    assert torch.equal(chain(X), model(X))


@pytest.mark.parametrize("training", [False, True])
def test_modes_stay_as_they_were(training: bool) -> None:
    model, x = family("cifar_resnet8")
    model.train(training)
    frozen = model.get_submodule("layer2.0.bn1")
    frozen.train(not training)
    before = snapshot(model)
    chain = split(model, probe=x)
    assert snapshot(model) == before
    merged = chain.merge([1])
    for container in (chain, merged):
        modes = {module.training for module in container.modules() if module is not frozen}
        assert modes == {training}
    assert frozen.training is not training


def test_merge_keeps_function_names_and_cuts() -> None:
    model, x = family("cifar_resnet18")
    chain = split(model, probe=x)
    merged = chain.merge([1, 3])
    assert merged.names == (chain.names[1], chain.names[3], "head")
    assert merged.cuts == (chain.cuts[1], chain.cuts[3])
    assert torch.equal(merged(x), model(x))
    assert torch.equal(merged[0](x), chain[1](chain[0](x)))
    assert state_of(merged).keys() == model.state_dict().keys()
    assert len(chain.merge([])) == 1


def test_chain_of_other_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks with 2 names and 0 cuts are no chain"):
        BlockChain([nn.Identity(), nn.Identity()], ["a", "b"], [])


def test_maps_of_another_layout_have_no_size() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 6), nn.Linear(6, 2))).eval()
    chain = split(model, probe=X, cuts=["0", "2"])
    assert chain.cuts == (Cut("0", (4, 6, 6), "NCHW"), Cut("2", (6,), "other"))
    assert [str(cut) for cut in chain.cuts] == ["4x6x6", "6"]
    assert (chain.cuts[1].size, chain.cuts[1].channels) == ((), 6)
