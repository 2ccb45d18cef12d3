from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.grafting.adapters import Adapter, AdapterForm, LinearAdapter, projection
from netgraft.grafting.pairing import Pairing, inherit, pair
from netgraft.grafting.scions import Scion, assemble, graft, join, make_scions
from netgraft.splitting.split import split
from tests.support.random_models import build, images, snapshot

X = images(3, 1, 8, 8)


def digits(use_inherit: bool = False) -> tuple[Pairing, nn.Module, nn.Module]:
    """Stages 64, 128, 128 wide (teacher) and 32, 64, 64 wide (student) behind an equal first one."""
    teacher, student = build("digits_vgg7_bn"), build("digits_vgg7_bn_half", seed=1)
    pairing = pair(split(teacher, probe=X), split(student, probe=X))
    return (inherit(pairing) if use_inherit else pairing), teacher, student


def mixed(adapter: nn.Module, x: Tensor) -> Tensor:
    """What a 1x1 convolution is: a matrix at each place."""
    assert isinstance(adapter.weight, Tensor)
    return torch.einsum("oi,bihw->bohw", adapter.weight[:, :, 0, 0], x)


def test_adapters_stand_where_widths_differ() -> None:
    pairing, _, _ = digits()
    assert pairing.widths == [(32, 32), (64, 32), (128, 64)]
    scions = make_scions(pairing)
    shapes = [[tuple(adapter.weight.shape[:2]) for adapter in scion.adapters()] for scion in scions]
    # equal widths at the first cut, where an exit folds into the student's next convolution
    assert shapes == [[(32, 32)], [(64, 32)], [(32, 64), (128, 64)], [(64, 128)]]
    for number, scion in enumerate(scions):
        assert pairing.student[number] in list(scion)
        assert all(adapter.bias is None for adapter in scion.adapters())
    identity = scions[0].adapters()[0]
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(identity(x), x)


def test_no_adapter_where_widths_are_equal_and_nothing_folds() -> None:
    x = images(2, 3, 32, 32)
    teacher, student = build("resnet34", num_classes=4), build("resnet18", seed=1, num_classes=4)
    pairing = pair(split(teacher, probe=x), split(student, probe=x))
    # layer1 starts with an identity shortcut; layer2 to 4 with convolutions on both paths, the head with a pool
    assert [len(scion.adapters()) for scion in make_scions(pairing)] == [0, 1, 1, 1, 1, 0]
    assert [len(scion) for scion in make_scions(inherit(pairing))] == [2, 2, 2, 2, 1]


def test_grafted_network_is_the_composition_by_hand() -> None:
    pairing, teacher, student = digits()
    scions = make_scions(pairing)
    t, s = pairing.teacher.blocks(), pairing.student.blocks()
    before = snapshot(teacher), snapshot(student)

    grafted = graft(pairing.teacher, scions[2], range(2, 3))
    enter, exit_ = scions[2].adapters()
    expected = t[3](mixed(exit_, s[2](mixed(enter, t[1](t[0](X))))))
    torch.testing.assert_close(grafted(X), expected, rtol=1e-5, atol=1e-6)

    joined = graft(pairing.teacher, join(scions[1:3]), range(1, 3))
    [exit_1], (enter_2, exit_2) = scions[1].adapters(), scions[2].adapters()
    expected = t[3](mixed(exit_2, s[2](mixed(enter_2, mixed(exit_1, s[1](t[0](X)))))))
    torch.testing.assert_close(joined(X), expected, rtol=1e-5, atol=1e-6)

    whole = graft(pairing.teacher, join(scions), range(4))
    assert torch.equal(whole(X), assemble(pairing, scions)(X))
    assert (snapshot(teacher), snapshot(student)) == before


def test_grafting_shares_modules_and_leaves_the_stock_alone() -> None:
    pairing, teacher, student = digits()
    scions = make_scions(pairing)
    stock = pairing.teacher.blocks()
    grafted = graft(pairing.teacher, scions[1], range(1, 2))
    assert grafted is not pairing.teacher
    assert list(grafted) == [stock[0], scions[1], stock[2], stock[3]]
    assert pairing.teacher.blocks() == stock
    own = {id(p) for p in teacher.parameters()} | {id(p) for p in student.parameters()}
    adapters = {id(adapter.weight) for adapter in scions[1].adapters()}
    assert {id(p) for p in grafted.parameters()} <= own | adapters
    grafted(X).square().sum().backward()
    assert all(p.grad is not None for p in scions[1].parameters())
    logits = teacher(X)
    with torch.no_grad():
        for parameter in scions[1].parameters():
            parameter.add_(1)
    assert torch.equal(teacher(X), logits)
    assert not torch.equal(grafted(X), logits)


def test_join_keeps_the_order() -> None:
    pairing, _, _ = digits()
    scions = make_scions(pairing)
    joined = join(scions)
    assert list(joined) == [layer for scion in scions for layer in scion]
    assert joined.adapters() == [adapter for scion in scions for adapter in scion.adapters()]
    kinds = "".join("a" if isinstance(layer, Adapter) else "b" for layer in joined)
    assert kinds == "babaabaab"


def test_inherited_blocks_are_no_scions() -> None:
    pairing, _, _ = digits(use_inherit=True)
    assert pairing.inherited == 1
    scions = make_scions(pairing)
    assert len(scions) == 3
    assert not isinstance(scions[0][0], Adapter), "the widths are equal behind what is inherited"
    assembled = list(assemble(pairing, scions))
    assert assembled[0] is pairing.student[0]
    assert assembled[1:] == list(join(scions))


@pytest.mark.parametrize("at", [range(0), range(2, 5), range(-1, 2), range(0, 4, 2), range(3, 2)])
def test_no_run_of_the_stock_is_refused(at: range) -> None:
    pairing, _, _ = digits()
    with pytest.raises(ValueError, match="expected a run of the stock's 4 blocks"):
        graft(pairing.teacher, Scion(nn.Identity()), at)


def test_selecting_and_placing_are_inverse() -> None:
    channels, width = torch.tensor([5, 0, 3]), 7
    selecting, placing = Adapter.selecting(channels, width), Adapter.placing(channels, width)
    narrow, wide = torch.randn(2, 3, 4, 5), torch.randn(2, 7, 4, 5)
    assert torch.equal(selecting(wide), wide[:, [5, 0, 3]])
    assert torch.equal(selecting(placing(narrow)), narrow)
    placed = placing(selecting(wide))
    alive = torch.zeros_like(wide)
    alive[:, [0, 3, 5]] = wide[:, [0, 3, 5]]
    assert torch.equal(placed, alive)


def test_adapter_maps_zero_padding_to_zero_padding() -> None:
    adapter = Adapter(3, 6)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(adapter(F.pad(x, (1, 1, 1, 1))), F.pad(adapter(x), (1, 1, 1, 1)))
    assert not torch.equal(adapter.weight, Adapter(3, 6).weight), "unequal widths start at random"


# --- other forms of adapters


def deviation(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
@pytest.mark.parametrize(("wide", "narrow"), [(512, 256), (256, 512), (256, 256)])
def test_weights_start_with_the_deviation_of_their_form(layout: str, wide: int, narrow: int) -> None:
    """By the formulas: He et al. 2015 over what goes out; PyTorch's uniform on +-1/sqrt(in) over what comes in."""
    torch.manual_seed(0)
    fan_in, fan_out = (projection(layout, wide, narrow, AdapterForm(init=init)) for init in ("fan-in", "fan-out"))
    assert deviation(fan_out.weight) == pytest.approx((2 / narrow) ** 0.5, rel=0.02)
    assert float(fan_out.weight.detach().abs().max()) > 3 * (2 / narrow) ** 0.5, "normal, not uniform"
    if wide == narrow:
        assert torch.equal(fan_in.weight.flatten(1), torch.eye(wide))
    else:
        assert deviation(fan_in.weight) == pytest.approx((3 * wide) ** -0.5, rel=0.02)
    assert fan_in.bias is None
    assert fan_out.bias is None
    assert isinstance(fan_out, Adapter if layout == "NCHW" else LinearAdapter)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
@pytest.mark.parametrize("init", ["fan-in", "fan-out"])
def test_a_bias_starts_at_zero_and_draws_nothing(layout: str, init: str) -> None:
    made = []
    for bias in (False, True):
        torch.manual_seed(0)
        made.append(projection(layout, 6, 4, AdapterForm(bias, init)))
    assert torch.equal(made[0].weight, made[1].weight)
    assert isinstance(made[1].bias, nn.Parameter)
    assert torch.equal(made[1].bias, torch.zeros(4))


def test_an_unknown_start_of_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match="must be fan-in or fan-out, not 'he'"):
        AdapterForm(init="he")


def test_every_adapter_of_the_scions_has_the_form() -> None:
    pairing, _, _ = digits()
    scions = make_scions(pairing, form=AdapterForm(bias=True, init="fan-out"))
    shapes = [[tuple(adapter.weight.shape[:2]) for adapter in scion.adapters()] for scion in scions]
    # none at the first cut, whose widths are equal: its bias would not fold into the padded convolution behind it
    assert shapes == [[], [(64, 32)], [(32, 64), (128, 64)], [(64, 128)]]
    for adapter in (adapter for scion in scions for adapter in scion.adapters()):
        assert isinstance(adapter, Adapter)
        assert isinstance(adapter.bias, nn.Parameter)
        assert deviation(adapter.weight) == pytest.approx((2 / adapter.out_channels) ** 0.5, rel=0.1)


def test_adapters_that_choose_channels_have_a_bias_if_asked() -> None:
    channels = torch.tensor([5, 0, 3])
    for kind, width in ((Adapter.selecting, 3), (Adapter.placing, 7)):
        assert kind(channels, 7).bias is None
        biased = kind(channels, 7, bias=True)
        assert biased.bias is not None
        assert biased.bias.tolist() == [0.0] * width
