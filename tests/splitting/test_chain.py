from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.errors import RequestError
from netgraft.splitting.chain import BlockChain, Cut, state_of
from netgraft.splitting.split import split
from tests.support.random_models import build, images, randomise, snapshot

# Height of the images, and how many cuts there must be at least.
FAMILIES = {
    "resnet18": (64, 5),
    "resnet50": (64, 5),
    "resnet18d": (64, 5),
    "vgg11_bn": (64, 5),
    "mobilenetv2_100": (64, 5),
    "mobilenetv3_small_100": (64, 5),
    "efficientnet_b0": (64, 5),
    "regnetx_002": (64, 5),
    "regnety_002": (64, 5),
    "densenet121": (64, 4),
    "cifar_vgg16_bn": (32, 5),
    "cifar_vgg16_half": (32, 5),
    "cifar_resnet8": (32, 3),
    "cifar_resnet18": (32, 4),
    "cifar_mobilenetv2": (32, 4),
}


def family(name: str) -> tuple[nn.Module, Tensor]:
    # the hidden layers of VGG's head would take half a gigabyte
    options: dict[str, Any] = {"mlp_ratio": 1 / 64} if name == "vgg11_bn" else {}
    return build(name, num_classes=10, drop_rate=0.3, **options), images(2, 3, FAMILIES[name][0], FAMILIES[name][0])


@pytest.mark.parametrize("name", FAMILIES)
def test_chain_is_the_model(name: str) -> None:
    model, x = family(name)
    chain = split(model, probe=x)
    assert len(chain.cuts) >= FAMILIES[name][1]
    assert len(chain) == len(chain.cuts) + 1
    assert torch.equal(chain(x), model(x))
    assert {id(p) for p in chain.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in chain.buffers()} == {id(b) for b in model.buffers()}
    state = state_of(chain)
    assert state.keys() == model.state_dict().keys()
    assert all(state[key].data_ptr() == value.data_ptr() for key, value in model.state_dict().items())

    reference = copy.deepcopy(model)
    for network in (chain, reference):
        torch.manual_seed(1)
        network.train()
        network(x).square().mean().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), reference.buffers(), strict=True))
    torch.manual_seed(2)
    logits = chain(x)
    torch.manual_seed(2)
    assert torch.equal(logits, reference(x))


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


X = images(2, 3, 8, 8)


def test_cut_under_a_skip_connection_is_left_out() -> None:
    model = Skip().eval()
    chain = split(model, probe=X, cuts=["stem", "a", "b"])
    assert chain.names == ("stem", "head")
    assert torch.equal(chain(X), model(X))
    with pytest.raises(RequestError, match="no place among a, b where only one tensor crosses"):
        split(model, probe=X, cuts=["a", "b"])


class Dropping(nn.Module):
    def __init__(self, drop: Callable[..., Tensor], conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.fc = nn.Linear(8, 4)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x), p=0.4, training=self.training)
        return self.fc(self.drop(x, 0.2, self.training).flatten(2).mean(2))


@pytest.mark.parametrize("drop", [F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout])
@pytest.mark.parametrize("training", [False, True])
def test_functional_dropout_follows_the_mode(drop: Callable[..., Tensor], training: bool) -> None:
    lines = drop is F.dropout1d
    x = X[:, :, 0] if lines else X
    model = Dropping(drop, nn.Conv1d(3, 8, 3) if lines else nn.Conv2d(3, 8, 3)).train(training)
    chain = split(model, probe=x, cuts=["conv"])
    answers = []
    for mode in (None, True, False):
        for network in (chain, model):
            if mode is not None:
                network.train(mode)
            torch.manual_seed(3)
            answers.append(network(x))
    assert all(torch.equal(answers[n], answers[n + 1]) for n in (0, 2, 4))
    assert not torch.equal(answers[2], answers[4])


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, features: bool = False) -> Tensor:
        x = self.conv(x) * scale
        if mask is not None:
            x = x * mask
        return x if features else self.fc(x.mean((2, 3)))


def test_optional_arguments_keep_their_defaults() -> None:
    model = Optional().eval()
    chain = split(model, probe=X, cuts=["conv"])
    assert torch.equal(chain(X), model(X))
    assert not torch.equal(model(X), model(X, scale=1.0))


class Needy(Optional):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(self.conv(x * mask).mean((2, 3)))


class Two(Optional):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.conv(x).mean((2, 3))
        return self.fc(x), x


class Branching(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.conv(x)
        return self.fc((x if x.sum() > 0 else -x).mean((2, 3)))


class Noisy(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.conv(x)
        return self.fc((x + torch.rand_like(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Needy(), "Needy needs 'mask' beside the images"),
        (Two(), "Two returns tuple, not one tensor of logits"),
        (Branching(), "Branching can't be cut at conv: following its forward failed"),
        (Noisy(), "Noisy can't be cut at conv: the chain's logits differ from the model's"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_are_no_chain_are_refused(model: nn.Module, message: str) -> None:
    before = snapshot(model)
    with pytest.raises(RequestError, match=message):
        split(model, probe=X, cuts=["conv"])
    assert snapshot(model) == before


def test_unknown_and_missing_cuts_are_refused() -> None:
    with pytest.raises(RequestError, match="Skip has no module 'layer9' to cut behind"):
        split(Skip(), probe=X, cuts=["stem", "layer9"])


class InPlace(nn.Module):
    """Works in place on the images, right behind a cut with a module, and with a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.act(self.a(x.mul_(2))))
        F.relu(x, inplace=True)
        return self.fc(x.mean((2, 3)))


def test_work_in_place_at_a_cut() -> None:
    model = InPlace().eval()
    probe = X.clone()
    chain = split(model, probe=probe, cuts=["a", "b"])
    assert torch.equal(probe, X)
    assert len(chain) == 3
    assert torch.equal(chain(X.clone()), model(X.clone()))
    first = chain[0](X.clone())
    assert first.min() == 0, "the activation belongs to the block in front of the cut"


class Constants(nn.Module):
    """A constant made of a parameter is needed in both blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.gain = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.exp()
        x = self.conv(x) * gain[:, None, None]
        return self.fc(x.mean((2, 3)) * gain)


def test_constants_are_recomputed_where_they_are_needed() -> None:
    model = Constants().eval()
    chain = split(model, probe=X, cuts=["conv"])
    assert torch.equal(chain(X), model(X))
    gradients = []
    for network in (model, chain):
        model.zero_grad()
        network(X).square().sum().backward()
        assert model.gain.grad is not None
        gradients.append(model.gain.grad.clone())
    torch.testing.assert_close(*gradients)


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


def test_images_that_a_model_can_not_take_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        RequestError, match=r"VisionTransformer can't take images of 3x32x32 .*choose another model or image size"
    ):
        split(build("vit_tiny_patch16_224", 0), probe=images(1, 3, 32, 32, seed=0))
