"""A cut is legal exactly where all information passes, which hooks tell independently."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.splitting.chain import state_of
from netgraft.splitting.split import legal_cuts, split
from tests.support.model_families import FAMILIES, family
from tests.support.random_models import images, snapshot

X = images(2, 3, 8, 8)

OTHER = images(2, 3, 8, 8, seed=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_crosses_a_cut_leaves_the_named_module_or_a_layer_without_weights(name: str) -> None:
    model, x = family(name)
    chain = split(model, probe=x)
    outputs: dict[str, Tensor] = {}
    for key, module in model.named_modules():
        if key:
            module.register_forward_hook(
                lambda _module, _inputs, output, key=key: outputs.update({key: output.clone()})
            )
    model(x)
    state = x
    for cut, block in zip(chain.cuts, chain, strict=False):
        state = block(state)
        weightless = [key for key in outputs if not model.get_submodule(key).state_dict()]
        assert any(torch.equal(state, outputs[key]) for key in [cut.name, *weightless])
        assert cut.shape == tuple(state.shape[1:])
        assert (cut.channels, cut.size, cut.layout) == (state.shape[1], tuple(state.shape[2:]), "NCHW")


def test_cut_moves_behind_the_pooling_that_follows() -> None:
    model, x = family("resnet18")
    stem = split(model, probe=x).blocks()[0]
    conv = model.get_submodule("conv1")(x)
    expected = F.max_pool2d(F.relu(model.get_submodule("bn1")(conv)), 3, 2, 1)
    assert torch.equal(stem(x), expected)


class Skip(nn.Module):
    """Stem, two layers, and the stem's output added behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x))
        return self.fc(x.mean((2, 3)))


def test_cut_under_a_skip_connection_is_left_out() -> None:
    model = Skip().eval()
    chain = split(model, probe=X, cuts=["stem", "a", "b"])
    assert chain.names == ("stem", "head")
    assert torch.equal(chain(X), model(X))
    with pytest.raises(RequestError, match="no cut point among a, b where only one tensor crosses"):
        split(model, probe=X, cuts=["a", "b"])


class Wired(nn.Module):
    """Convolutions wired at random: each takes the sum of some earlier results, now and then in place."""

    def __init__(self, seed: int, layers: int = 7) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1)])
        # mostly chains with short detours: otherwise nothing could be cut
        self.sources: list[list[int]] = [[]]
        for number in range(1, layers):
            self.layers.append(nn.Conv2d(4, 4, 3, padding=1))
            earlier = draw.randrange(max(0, number - 3), number)
            self.sources.append(sorted({number - 1, earlier} if draw.random() < 0.5 else {number - 1}))
        self.position = nn.Parameter(torch.randn(4, 1, 1)) if draw.random() < 0.5 else None
        self.placed = [draw.random() < 0.3 for _ in range(layers)]
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        results = [self.layers[0](x)]
        for number, layer in enumerate(self.layers):
            if not number:
                continue
            x = results[self.sources[number][0]].sin()
            for source in self.sources[number][1:]:
                x = x + results[source]
            if self.placed[number] and self.position is not None:
                x += self.position
            results.append(layer(x))
        return self.fc(results[-1].mean((2, 3)))


@contextmanager
def overridden(module: nn.Module, output: Any) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def recorded(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: copy.deepcopy(output)})
        )
        for name in names
    ]
    model(x.clone())
    for handle in handles:
        handle.remove()
    return outputs


def passes_everything(model: nn.Module, name: str) -> bool:
    """Whether the logits are those of X if only the module's output is, and the image another one."""
    output = recorded(model, [name], X)[name]
    with overridden(model.get_submodule(name), output):
        return torch.equal(model(OTHER), model(X.clone()))


@pytest.mark.parametrize("seed", range(25))
def test_cuts_of_random_networks_are_legal_exactly_where_all_information_passes(seed: int) -> None:
    torch.manual_seed(seed)
    model = Wired(seed).eval().requires_grad_()
    names = [f"layers.{number}" for number in range(len(model.layers))]
    with torch.no_grad():
        expected = [name for name in names[:-1] if passes_everything(model, name)]
        outputs = recorded(model, names, OTHER)
    found = list(legal_cuts(model, probe=X))
    assert [name for name in found if name != "layers"] == expected
    assert expected, "nothing to cut"
    chain = split(model, probe=X, cuts=names)
    assert list(chain.names) == [*expected, *(["layers.6"] if len(chain) > len(expected) + 1 else []), "head"]
    assert torch.equal(chain(OTHER), model(OTHER))
    state = OTHER
    for block, name in zip(chain, chain.names[:-1], strict=False):
        state = block(state)
        assert torch.equal(state, outputs[name])
    gradients = []
    for network in (model, chain):
        model.zero_grad()
        network(OTHER).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        # a parameter used in two blocks is added up in another order
        torch.testing.assert_close(gradients[1][name], gradient)


class Planted(nn.Module):
    """Three layers and something that reaches over the second."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.position = nn.Parameter(torch.randn(3, 8, 8))
        self.table: Tensor
        self.register_buffer("table", torch.randn(8), persistent=False)
        self.fc = nn.Linear(3, 5)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        dtype, device = x.dtype, x.device
        a = self.a(x)
        number = a.mean().item() if self.what == "number" else 0
        size, batch = a.shape[-1], a.shape[0]
        # "size" leaves the position unused
        kept = {"skip": a, "image": x, "mean": a.mean(), "position": self.position.cos()}.get(self.what)
        b = self.c(self.b(a))
        if kept is not None:
            b = b + kept
        if self.what == "size":
            b = b * size + batch
        if self.what == "dtype":
            b = b + torch.arange(8, device=device).to(dtype)
        if self.what == "table":
            b = b + torch.arange(size).cos()
        if self.what == "number":
            b = b + number
        if self.what == "buffer":
            b = b + self.table.sin()
        return self.fc(b.mean((2, 3)))


@pytest.mark.parametrize("what", ["skip", "image", "mean", "number"])
def test_a_planted_dependency_is_refused(what: str) -> None:
    model = Planted(what).eval()
    with pytest.raises(RequestError, match="no cut point among b where only one tensor crosses"):
        split(model, probe=X, cuts=["b"])


@pytest.mark.parametrize("what", ["skip", "image", "mean"])
def test_a_planted_dependency_is_carried_where_there_is_no_other_way(what: str) -> None:
    model = Planted(what).eval()
    before = snapshot(model)
    chain = split(model, probe=X, blocks=4)
    assert snapshot(model) == before
    assert len(chain) == 4
    assert "tuple" in {cut.layout for cut in chain.cuts}
    assert all(cut.shape == () and cut.channels == 0 and str(cut) == "tuple" for cut in chain.cuts if not cut.shape)
    x = images(3, 3, 8, 8, seed=2)
    assert torch.equal(chain(x), model(x))


@pytest.mark.parametrize("what", ["position", "size", "dtype", "buffer", "table"])
def test_what_does_not_depend_on_the_image_is_no_obstacle(what: str) -> None:
    model = Planted(what).eval()
    chain = split(model, probe=X, cuts=["a", "b"])
    assert [cut.layout for cut in chain.cuts] == ["NCHW", "NCHW"]
    x = images(5, 3, 8, 8, seed=2)
    assert torch.equal(chain(x), model(x))
    assert state_of(chain).keys() == model.state_dict().keys()
    if what == "dtype":
        assert torch.equal(copy.deepcopy(chain).double()(x.double()), copy.deepcopy(model).double()(x.double()))
    if what == "buffer":
        model.table.mul_(2)
        assert torch.equal(chain(x), model(x))


def test_a_size_that_was_fixed_holds_for_no_other() -> None:
    model = Planted("size").eval()
    chain = split(model, probe=X, cuts=["a", "b"])
    with pytest.raises(RequestError, match=r"this block was cut for 3x8x8 and got 3x6x6; split the model with images"):
        chain(images(2, 3, 6, 6))


class Shared(nn.Module):
    """A table made of weights, with a dropout of its own, is used in several blocks."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.table = nn.Sequential(nn.Linear(8, 8), nn.Dropout(rate))
        self.seed = nn.Parameter(torch.randn(8))
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table(self.seed)
        x = self.a(x) + table
        x = self.b(x) + table
        return self.fc((self.c(x) + table).mean((2, 3)))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_shared_table_is_the_same_in_all_blocks_even_if_chance_makes_it(rate: float) -> None:
    model = Shared(rate).eval()
    if rate:
        with pytest.raises(RequestError, match="no cut point among a, b where only one tensor crosses"):
            split(model, probe=X, cuts=["a", "b"])
    chain = split(model, probe=X, blocks=3)
    assert {cut.layout for cut in chain.cuts} == {"tuple" if rate else "NCHW"}
    for network in (chain, model):
        network.train()
    answers = []
    for network in (chain, model):
        torch.manual_seed(5)
        answers.append(network(OTHER))
    assert torch.equal(*answers)
