"""Where adapters fold in real models, by the articles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.grafting.adapters import Adapter
from netgraft.grafting.foldability import why_not_foldable
from netgraft.grafting.folding import fold_with_report
from netgraft.splitting.split import split
from tests.support.random_models import build, images


@pytest.mark.parametrize(
    ("name", "foldable"),
    [
        # by the articles: what stands first behind each stage, the head last
        ("resnet18", [False, True, True, True, True]),
        ("resnet18d", [False, True, True, True, True]),
        ("resnet50", [True, True, True, True, True]),
        ("mobilenetv2_100", [True, True, True, True, True]),
        ("densenet121", [False, False, False, False, True]),
        ("cifar_vgg16_bn", [True, True, True, True, True]),
        ("regnetx_002", [True, True, True, True, True]),
    ],
)
def test_where_adapters_fold_in_real_models(name: str, foldable: list[bool]) -> None:
    size = 32
    x = images(1, 3, size, size)
    chain = split(build(name, num_classes=3), probe=x)
    found = {cut.name: why_not_foldable(block) for cut, block in zip(chain.cuts, chain.blocks()[1:], strict=True)}
    assert [reason is None for reason in found.values()] == foldable, found
    for cut, block in zip(chain.cuts, chain.blocks()[1:], strict=True):
        if found[cut.name] is None:
            student = nn.Sequential(Adapter(3, cut.channels), block).double().eval()
            state = images(1, 3, *cut.size).double()
            torch.testing.assert_close(fold_with_report(student).student(state), student(state), rtol=1e-10, atol=1e-10)
