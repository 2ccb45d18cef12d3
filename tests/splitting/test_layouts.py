"""Where the picture lies at each cut of real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from netgraft.splitting.split import split
from tests.support.random_models import build, images

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
