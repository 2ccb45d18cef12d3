"""What holds for any module: freezing leaves it as it was found, and its digest, size and work are told apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from netgraft.modules import (
    eval_mode,
    images_at_once,
    macs_along,
    parameters,
    shares_parameters,
    state_digest,
    without_gradients,
)
from tests.support.random_models import images, randomise, snapshot

# --- freezing


def chain_of_two() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    chain = nn.Sequential(first, second)
    randomise(chain)
    return chain.eval()


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_models_are_left_as_they_were_found(fails: bool) -> None:
    chain = chain_of_two()
    modules = nn.ModuleList([chain, nn.Sequential(chain[0], nn.Dropout())])
    for number, module in enumerate(modules.modules()):
        module.training = number % 3 > 0
    for number, parameter in enumerate(modules.parameters()):
        parameter.requires_grad_(number % 2 > 0)
    before = snapshot(modules)
    objects = list(modules.parameters())

    def body() -> None:
        with without_gradients(modules):
            assert not any(module.training for module in modules.modules())
            assert not any(p.requires_grad for p in modules.parameters())
            weight = chain[1][0].weight  # type: ignore[index]
            assert isinstance(weight, nn.Parameter)
            assert weight.is_contiguous(memory_format=torch.channels_last)
            chain[1].requires_grad_(True).train()
            chain(images(2, 3, 8, 8)).sum().backward()
            assert weight.grad is not None
            chain[1].load_state_dict(copy.deepcopy(saved))
            if fails:
                raise ZeroDivisionError

    saved = copy.deepcopy(chain[1].state_dict())
    if fails:
        with pytest.raises(ZeroDivisionError):
            body()
    else:
        body()
    assert snapshot(modules) == before
    assert [id(p) for p in modules.parameters()] == [id(p) for p in objects]
    assert all(p.is_contiguous() and p.grad is None for p in modules.parameters())


def test_modules_share_a_module_or_a_parameter() -> None:
    first, second, act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
    tied = nn.Conv2d(3, 3, 1)
    tied.weight = first.weight
    assert shares_parameters(first, first)
    assert shares_parameters(nn.Sequential(first), nn.Sequential(nn.Sequential(first)))
    assert shares_parameters(tied, nn.Sequential(first))
    assert shares_parameters(nn.Sequential(act, first), nn.Sequential(act, second))
    assert not shares_parameters(first, second)
    assert not shares_parameters(nn.Sequential(nn.ReLU(), tied), nn.Sequential(nn.ReLU(), second))
    assert not shares_parameters(nn.Identity(), first)


@pytest.mark.parametrize("fails", [False, True])
def test_eval_mode_gives_every_module_its_own_mode_back(fails: bool) -> None:
    chain = chain_of_two()
    for number, module in enumerate(chain.modules()):
        module.training = number % 2 > 0
    before = [module.training for module in chain.modules()]

    def body() -> None:
        with eval_mode(chain):
            assert not any(module.training for module in chain.modules())
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            body()
    else:
        body()
    assert [module.training for module in chain.modules()] == before


# --- size and work


def test_parameters_counts_a_shared_weight_once_and_frozen_ones_too() -> None:
    shared = nn.Linear(3, 3, bias=False)
    frozen = nn.Linear(3, 2)
    frozen.requires_grad_(requires_grad=False)
    assert parameters(nn.Sequential(shared, shared, frozen, nn.BatchNorm1d(2))) == 9 + 8 + 4


class Attending(nn.Module):
    """A linear layer on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, token: Tensor, picture: Tensor) -> Tensor:
        return self.layer(token) + picture.mean()


class WithToken(nn.Module):
    """Hands a parameter to a layer, as class attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 3))
        self.attending = Attending()

    def forward(self, images: Tensor) -> Tensor:
        return self.attending(self.token.expand(2, -1), images)


def test_macs_where_a_parameter_is_an_argument() -> None:
    model = WithToken()
    assert macs_along([model], torch.zeros(1, 3, 4, 4)) == [2 * 3 * 5]
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- digests


class Holder(nn.Module):
    """Registers tensors as buffers, in the order given."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_digest_changes_with_one_bit_of_any_tensor() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    digests = {state_digest(model)}
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    for name in names:
        changed = copy.deepcopy(model)
        tensor = dict([*changed.named_parameters(), *changed.named_buffers()])[name]
        tensor.data.reshape(-1).view(torch.uint8)[0] ^= 1
        digests.add(state_digest(changed))
    assert len(digests) == 1 + len(names) == 8


def test_digest_tells_zero_from_minus_zero() -> None:
    assert state_digest(Holder(a=torch.tensor(0.0))) != state_digest(Holder(a=torch.tensor(-0.0)))


def test_digest_is_independent_of_order_layout_and_mode() -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.arange(3)
    digest = state_digest(Holder(a=a, b=b))
    assert state_digest(Holder(b=b, a=a)) == digest
    assert state_digest(Holder(a=a.contiguous(memory_format=torch.channels_last), b=b)) == digest
    assert state_digest(Holder(a=a.transpose(0, 1).contiguous().transpose(0, 1), b=b).eval()) == digest


def test_digest_tells_names_types_shapes_and_borders_of_equal_bytes_apart() -> None:
    bits = torch.arange(8, dtype=torch.int16)
    holders = [
        Holder(a=bits),
        Holder(b=bits),
        Holder(a=bits.reshape(2, 4)),
        Holder(a=bits.reshape(4, 2)),
        Holder(a=bits.view(torch.float16)),
        Holder(a=bits.view(torch.bfloat16)),
        Holder(a=bits.view(torch.int32)),
        Holder(a=bits[:4], b=bits[4:]),
        Holder(a=bits[:2], b=bits[2:]),
        Holder(a=bits, b=bits[:0]),
    ]
    assert len({state_digest(holder) for holder in holders}) == len(holders)


def test_digest_sees_shared_parameters_under_each_name() -> None:
    shared = nn.Linear(2, 2)
    tied, twins = nn.Sequential(shared, shared), nn.Sequential(shared, copy.deepcopy(shared))
    assert state_digest(tied) == state_digest(twins)


@pytest.mark.parametrize(("side", "on_cpu"), [(8, 64), (32, 64), (96, 64), (128, 32), (224, 16), (256, 8), (384, 4)])
def test_a_processor_takes_as_many_pixels_of_any_size(side: int, on_cpu: int) -> None:
    assert images_at_once((3, side, side), torch.device("cpu")) == on_cpu


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_image_of_any_size_is_run(device: str) -> None:
    assert images_at_once((3, 10_000, 10_000), torch.device(device)) == 1


def test_an_accelerator_takes_more() -> None:
    assert images_at_once((3, 224, 224), torch.device("cuda")) == 128
    assert images_at_once((3, 32, 32), torch.device("cuda")) == 256
