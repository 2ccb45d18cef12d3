"""What adapters become where they stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.grafting.adapters import Adapter, LinearAdapter, deployed_layer
from netgraft.grafting.folding import fold_with_report


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
