"""What adapters become where they stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netgraft.grafting.adapters import Adapter, AdapterForm, LinearAdapter, check_widths, deployed_layer
from netgraft.grafting.folding import fold_with_report
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.pairing import Pairing
from netgraft.grafting.preparation import cut_and_pair
from netgraft.grafting.scions import make_scions
from netgraft.splitting.chain import BlockChain, Cut
from tests.support.method_pairs import networks


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (2, 3, 4, 5)), ("NHWC", (2, 4, 5, 3)), ("tokens", (2, 9, 3))])
def test_a_deployed_layer_mixes_channels_where_they_stand(layout: str, shape: tuple[int, ...], bias: bool) -> None:
    layer = deployed_layer(layout, 3, 7, bias=bias)
    assert type(layer) is (nn.Conv2d if layout == "NCHW" else LinearAdapter)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 7 + 7 * bias
    assert layer(torch.randn(shape)).shape == tuple(7 if size == 3 else size for size in shape)


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_that_nothing_takes_in_stays_with_its_bias(bias: bool) -> None:
    for adapter, x in (
        (Adapter(3, 7, bias=bias), torch.randn(2, 3, 4, 5)),
        (LinearAdapter(3, 7, "NHWC", bias=bias), torch.randn(2, 4, 5, 3)),
        (LinearAdapter(3, 7, "tokens", bias=bias), torch.randn(2, 9, 3)),
    ):
        if adapter.bias is not None:
            nn.init.normal_(adapter.bias)
        student = nn.Sequential(nn.Identity(), adapter).double()
        folding = fold_with_report(student)
        assert folding.kept == {1: "nothing follows"}
        torch.testing.assert_close(folding.student(x.double()), student(x.double()), rtol=0, atol=1e-12)
        assert (folding.student[1].bias is not None) == bias


@pytest.mark.parametrize("widths", [(2.5, 3), (3, "4"), (0, 3), (3, -1)])
def test_what_is_no_number_of_channels_is_refused(widths: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=f"must be integers of at least 1, not {widths[0]!r}, {widths[1]!r}"):
        check_widths(*widths)
    check_widths(1, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_adapters_of_slices_have_a_bias_if_asked(bias: bool) -> None:
    pairing = cut_and_pair(*networks("digits"), PairingOptions("slice", "none"), input_size=(1, 8, 8))
    adapters = [adapter for scion in make_scions(pairing, form=AdapterForm(bias=bias)) for adapter in scion.adapters()]
    assert len(adapters) >= 4
    for adapter in adapters:
        assert isinstance(adapter, Adapter)
        assert (adapter.bias is not None) == bias


def test_between_equal_widths_an_adapter_stands_where_the_layer_behind_takes_it_in() -> None:
    """Also where channels come last, which a linear layer mixes."""

    def chain(behind: nn.Module) -> BlockChain:
        return BlockChain([nn.Identity(), behind], ["a", "head"], [Cut("a", (4, 4, 3), "NHWC")])

    [first, last] = make_scions(Pairing(chain(nn.Linear(3, 5)), chain(nn.Linear(3, 5))))
    [adapter] = first.adapters()
    assert isinstance(adapter, LinearAdapter)
    assert adapter.layout == "NHWC"
    assert not last.adapters()
    [first, _] = make_scions(Pairing(chain(nn.ReLU()), chain(nn.ReLU())))
    assert not first.adapters()
