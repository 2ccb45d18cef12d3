"""Which rows of which layers are queries, keys and values, against how the modules lay them out."""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import nn

from netgraft.deriving.axes import Atom
from netgraft.deriving.following import ChannelMap, follow_channels
from netgraft.deriving.head_tracing import find_heads
from tests.support.attention import OfPatches, apart, swin, vit
from tests.support.derivable import images, network, randomised


def found_in(model: nn.Module, side: int = 8) -> ChannelMap:
    probe = images(1, side=side)
    found = follow_channels(model, probe)
    found.logits, found.values = find_heads(model, found, probe)
    return found


def laid_out(heads: int, width: int, offset: int) -> torch.Tensor:
    return offset + torch.arange(heads * width).reshape(heads, width)


def test_rows_of_fused_queries_keys_and_values() -> None:
    for model, side, first in ((vit(), 8, "blocks.0.attn"), (swin(), 16, "layers.0.blocks.0.attn")):
        found = found_in(model, side)
        (logits, *_), (values, *_) = found.logits, found.values
        heads, width = (2, 16) if side == 8 else (2, 8)

        assert (logits.queries.layer, logits.keys.layer, values.written.layer) == (f"{first}.qkv",) * 3
        assert (values.read.layer, logits.module) == (f"{first}.proj", first)
        assert logits.atom is values.atom
        assert logits.atom.size == width
        rows = [logits.queries.numbers, logits.keys.numbers, values.written.numbers, values.read.numbers]
        for number, got in enumerate(rows):
            assert torch.equal(got, laid_out(heads, width, number % 3 * heads * width))


def test_shifted_windows_are_followed_too() -> None:
    assert len(found_in(swin(), 16).logits) == len(found_in(swin(), 16).values) == 3


def test_rows_of_layers_apart() -> None:
    found = found_in(apart())
    [logits], [values] = found.logits, found.values

    assert (logits.queries.layer, logits.keys.layer) == ("attn.q", "attn.k")
    assert (values.written.layer, values.read.layer) == ("attn.v", "attn.proj")
    assert (logits.atom.size, values.atom.size) == (8, 6)
    assert torch.equal(logits.keys.numbers, laid_out(2, 8, 0))
    assert torch.equal(values.read.numbers, laid_out(2, 6, 0))


def test_one_width_that_is_said_for_all_makes_them_one() -> None:
    found = found_in(apart(said=True))
    assert found.logits[0].atom is found.values[0].atom
    axes = found.tensors["attn.v.weight"][0], found.tensors["attn.q.weight"][0]
    atoms: list[list[Atom]] = [axis.atoms() for axis in axes]
    assert atoms[0] == atoms[1]


def test_what_is_rotated_or_shared_among_heads_is_not_known_channel_by_channel() -> None:
    assert not found_in(apart(rotated=True)).logits
    assert not found_in(apart(shared=True)).logits
    assert len(found_in(apart(rotated=True)).values) == 1


def test_gated_values_have_no_basis_of_their_own() -> None:
    found = found_in(randomised(OfPatches(Attention(12, num_heads=2, gated=True))))
    assert len(found.logits) == 1
    assert not found.values


def test_a_network_without_attention_has_no_heads() -> None:
    found = found_in(network("residual"))
    assert found.logits == found.values == ()
