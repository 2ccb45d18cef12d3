"""Sets of channels that layers write and read, and the widths that are tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netgraft.deriving import places as module
from netgraft.deriving.axes import Atom
from netgraft.deriving.places import Place
from tests.support.derivable import Head, conv, followed, network, randomised


def place(width: int) -> Place:
    return Place("layer", Atom(width), (), ())


@pytest.mark.parametrize(
    ("width", "count", "widths"),
    [
        (32, 8, (8, 16, 24)),
        (64, 3, (8, 32, 56)),
        (20, 8, (8, 16)),
        (5, 8, (1, 2, 3, 4)),
        (12, 3, (1, 6, 11)),
        (64, 1, (8,)),
        (2, 8, (1,)),
    ],
)
def test_widths_are_multiples_of_eight_and_of_one_below_sixteen(
    width: int, count: int, widths: tuple[int, ...]
) -> None:
    assert place(width).widths(count) == widths


def test_a_place_names_who_writes_it_first_who_reads_it_and_all_layers_that_have_it() -> None:
    _, places = followed(network("residual"))
    stream = places[0]

    assert stream.name == "0.0"
    assert [reader.layer for reader in stream.readers] == ["1.conv1.0", "2.conv1.0", "2.down"]
    assert set(stream.layers) == {"0.0", "1.conv1.0", "1.conv2.0", "2.conv1.0", "2.down"}


def test_a_layer_from_a_stream_into_the_same_stream_reads_it() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = conv(3, 8), conv(8, 8), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.inner(x))

    (stream,) = followed(randomised(Adds()))[1]

    assert [reader.layer for reader in stream.readers] == ["inner.0", "head.fc"]


def test_a_depthwise_convolution_hands_channels_on() -> None:
    _, places = followed(network("inverted"))
    wide = next(place for place in places if place.width == 18)

    assert [reader.layer for reader in wide.readers] == ["1.body.2.reduce", "1.body.3"]


def test_products_of_channels_with_themselves_are_no_place() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 4), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2)
            return self.head((x[:, :, None] * x[:, None]).mean(-1).flatten(1))

    assert followed(randomised(Bilinear()))[1] == []


def test_readers_of_too_many_features_leave_a_place_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FEATURES", 127)

    assert [place.name for place in followed(network("flattened"))[1]] == ["3"]


def test_what_two_computed_tensors_sum_over_is_no_place() -> None:
    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2)
            return self.head(F.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1).mean(1))

    assert followed(randomised(Similar()))[1] == []
    assert torch.is_grad_enabled()
