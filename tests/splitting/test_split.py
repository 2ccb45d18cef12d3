"""Any proven chain is its model: random networks, planted dependencies and odd models, with oracles made of hooks."""

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
from netgraft.splitting.chain import BlockChain, Cut, state_of
from netgraft.splitting.split import legal_cuts, split
from tests.support.random_models import build, images, randomise, snapshot

X = images(2, 3, 8, 8)

OTHER = images(2, 3, 8, 8, seed=1)


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
    with pytest.raises(RequestError, match="no place among b where only one tensor crosses"):
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


class Modal(nn.Module):
    """Asks for its mode in the forward: another head, or an auxiliary one in the middle."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head, self.distilled = nn.Linear(4, 5), nn.Linear(4, 5)
        self.auxiliary = auxiliary

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        early = self.distilled(x.mean((2, 3))) if self.auxiliary and self.training else None
        x = F.dropout(self.b(x), 0.3, self.training).mean((2, 3))
        if self.training:
            return self.head(x), early if self.auxiliary else self.distilled(x)
        return self.head(x) if self.auxiliary else (self.head(x) + self.distilled(x)) / 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_forward_that_asks_for_its_mode(auxiliary: bool, training: bool) -> None:
    model = Modal(auxiliary).train(training)
    before = snapshot(model)
    chain = split(model, probe=X, cuts=["a", "b"])
    assert snapshot(model) == before
    assert len(chain) == 3
    assert torch.equal(chain.eval()(OTHER), model.eval()(OTHER))
    answers = []
    for network in (chain.train(), model.train()):
        torch.manual_seed(1)
        answers.append(network(OTHER))
    if auxiliary:
        assert torch.equal(answers[0], answers[1][0])
    else:
        assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))
    torch.manual_seed(2)
    assert not torch.equal(chain(OTHER)[0], answers[0][0]), "dropout is frozen"


class SkipInTraining(Modal):
    """In train mode alone, what leaves the first layer is needed in the head."""

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        x = self.b(a).mean((2, 3))
        return self.head(x + a.mean((2, 3)) if self.training else x)


def test_a_dependency_of_train_mode_alone_makes_a_cut_illegal() -> None:
    model = SkipInTraining(auxiliary=False).eval()
    chain = split(model, probe=X, cuts=["a", "b"])
    assert chain.names == ("a", "head")
    for training in (False, True):
        assert torch.equal(chain.train(training)(OTHER), model.train(training)(OTHER))
    with pytest.raises(RequestError, match="goes another way in train mode, where more than one tensor crosses at b"):
        split(model, probe=X, cuts=["b"])


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
        with pytest.raises(RequestError, match="no place among a, b where only one tensor crosses"):
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


def test_a_cache_of_the_mode_is_dropped_as_the_model_drops_it() -> None:
    """LeViT keeps attention biases for eval mode; training after a split must not leave them behind."""
    model = build("levit_128s", num_classes=5).train()
    x = images(2, 3, 224, 224)
    chain = split(model, probe=x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.add_(torch.linspace(0, 2, parameter.numel()).view_as(parameter))
    fresh = build("levit_128s", num_classes=5)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), fresh(x))
    assert torch.equal(chain.eval()(x), fresh(x))


# Height of the images, and what the cuts must be: layout, map, prefix tokens.
LAYOUTS: dict[str, tuple[int, list[tuple[str, tuple[int, ...], int]]]] = {
    "vit_tiny_patch16_224": (224, [("tokens", (14, 14), 1)] * 3),
    "deit_tiny_distilled_patch16_224": (224, [("tokens", (14, 14), 2)] * 3),
    "vit_small_patch16_dinov3": (64, [("tokens", (4, 4), 5)] * 3),
    "mixer_s32_224": (224, [("tokens", (7, 7), 0)] * 3),
    "swin_tiny_patch4_window7_224": (224, [("NHWC", (side, side), 0) for side in (56, 28, 14, 7)]),
    "hiera_tiny_224": (224, [("other", (), 0)] * 3 + [("tokens", (7, 7), 0)]),
    "crossvit_tiny_240": (96, [("tuple", (), 0)] * 3),
    "resnet10t": (64, [("NCHW", (side, side), 0) for side in (16, 16, 8, 4, 2)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_cut_says_where_the_picture_lies(name: str) -> None:
    side, expected = LAYOUTS[name]
    model, x = build(name, num_classes=5), images(2, 3, side, side)
    chain = split(model, probe=x)
    assert [(cut.layout, cut.size, cut.prefix_tokens) for cut in chain.cuts] == expected
    assert torch.equal(chain(x), model(x))
    state: Any = x
    for cut, block in zip(chain.cuts, chain, strict=False):
        state = block(state)
        if cut.layout == "tokens":
            assert cut.size[0] * cut.size[1] + cut.prefix_tokens == state.shape[1]
        if cut.layout in {"tokens", "NHWC"}:
            assert cut.channels == state.shape[-1]
        if cut.layout == "NCHW":
            assert cut.channels == state.shape[1]


def test_a_number_of_blocks_is_met_with_equal_costs() -> None:
    model = build("vit_tiny_patch16_224", num_classes=5)
    x = images(2, 3, 224, 224)
    chain = split(model, probe=x, blocks=6)
    # the twelve blocks of a vision transformer cost the same, embedding and head next to nothing
    assert chain.names == ("blocks.1", "blocks.3", "blocks.5", "blocks.7", "blocks.9", "head")
    with pytest.raises(RequestError, match="a chain has two blocks or more, not 1"):
        split(model, probe=x, blocks=1)
    with pytest.raises(RequestError, match=r"can be cut at .* places, too few for 99 blocks"):
        split(model, probe=x, blocks=99)
    with pytest.raises(RequestError, match="names of modules to cut behind or a number of blocks, not both"):
        split(model, probe=x, blocks=2, cuts=["blocks.1"])


def test_a_model_without_anything_to_cut_is_refused() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.sum() > 0 else -self.net(x)

    with pytest.raises(RequestError, match="Whole can't be cut: following its forward failed in eval mode"):
        split(Whole(), probe=X)


def test_a_plain_sequence_needs_no_names() -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 5),
        )
    ).eval()
    chain = split(model, probe=X)
    assert isinstance(chain, BlockChain)
    assert torch.equal(chain(OTHER), model(OTHER))
    assert chain.cuts[:2] == (Cut("2", (4, 3, 3), "NCHW"), Cut("4", (6, 3, 3), "NCHW"))
