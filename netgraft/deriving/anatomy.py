"""A model taken apart for narrowing: its channels, its proven places, and segments that are run one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from netgraft.deriving.following import ChannelMap, Product, follow_channels
from netgraft.deriving.head_bases import turnable_heads
from netgraft.deriving.head_tracing import find_heads
from netgraft.deriving.heads import Logits, Values
from netgraft.deriving.low_rank import low_rank_layers
from netgraft.deriving.narrowing import proven_blocks, proven_places, tried_heads
from netgraft.deriving.places import Block, Place, find_blocks, find_places
from netgraft.deriving.statistics import capture
from netgraft.deriving.stream_bases import StreamBases, with_stream_norms
from netgraft.errors import RequestError
from netgraft.splitting.split import legal_cuts, split


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is known of a model before anything is narrowed.

    Attributes:
        model: Unchanged; its weights are shared with ``blocks``.
        found: Its channels, on one image.
        places: Where it can become narrower; proven.
        blocks: What can be left out; proven.
        probe: Images that it was followed on.
        cuts: Names of the modules that it can be cut behind; empty where it can't be cut.
        bases: Of its streams, where it isn't the teacher itself but computes the same in other bases.
        turnable: Heads of attention whose bases may be chosen; proven.
    """

    model: nn.Module
    found: ChannelMap
    places: tuple[Place, ...]
    blocks: tuple[Block, ...]
    probe: Tensor
    cuts: tuple[str, ...]
    bases: StreamBases | None = None
    turnable: tuple[Logits | Values, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, probe: Tensor) -> Anatomy:
        """Take a model apart.

        Args:
            model: A classifier, in any mode.
            probe: Images (B, C, H, W), two for instance.

        Raises:
            RequestError: It doesn't run on the probe, or there is nothing that could become narrower.
        """
        return cls._followed(model, _follow(model, probe), probe)

    @classmethod
    def _followed(cls, model: nn.Module, found: ChannelMap, probe: Tensor) -> Anatomy:
        logits, values = find_heads(model, found, probe[:1])
        found = replace(found, logits=logits, values=values, low_rank=frozenset(low_rank_layers(model)))
        candidates = _seen_reading(model, find_places(found), probe)
        found, candidates = tried_heads(model, found, candidates, probe)
        places = proven_places(model, found, candidates, probe)
        blocks = proven_blocks(model, find_blocks(model, found), probe)
        if not places and not blocks:
            raise RequestError(
                f"{type(model).__name__} has nothing that could become narrower: no channels could be followed from "
                "the layers that write them to the layers that read them; give --student, a smaller model"
            )
        try:
            cuts = legal_cuts(model, probe=probe)
        except RequestError:
            cuts = ()
        turnable = turnable_heads(model, found, [place.atom for place in places], probe)
        return cls(model, found, tuple(places), tuple(blocks), probe, cuts, turnable=turnable)

    @classmethod
    def on_noise(cls, model: nn.Module, input_size: Sequence[int]) -> Anatomy:
        """Take a model apart where no images are at hand. Raises RequestError like :meth:`of`.

        Args:
            model: A classifier, in any mode.
            input_size: Channels, height and width of its images.
        """
        return cls.of(model, noise(model, input_size))

    @classmethod
    def with_streams(cls, model: nn.Module, probe: Tensor) -> Anatomy:
        """Take a model apart with norms of streams where it has layer norms, if streams can become narrower then.

        Args:
            model: A classifier, in any mode; unchanged.
            probe: Images (B, C, H, W), two for instance.

        Raises:
            RequestError: Like :meth:`of`.
        """
        found = _follow(model, probe)
        other = with_stream_norms(model, found, probe)
        if other is None:
            return cls._followed(model, found, probe)
        anatomy = cls.of(other, probe)
        if not any(place.is_stream for place in anatomy.places):
            return cls._followed(model, found, probe)
        return replace(anatomy, bases=StreamBases.of(anatomy.found))

    @property
    def all_places(self) -> tuple[Place | Block, ...]:
        """Whatever can become smaller: blocks, then places."""
        return (*self.blocks, *self.places)

    def segments_of(self, model: nn.Module, absent: Collection[str] = ()) -> list[nn.Module]:
        """Return the model, or a narrowed copy, in pieces that share its weights and are run one after another.

        Args:
            model: Of the same names.
            absent: Modules that some copy does without: there it can't be cut behind them.
        """
        cuts = [cut for cut in self.cuts if not any(cut == name or cut.startswith(f"{name}.") for name in absent)]
        if not cuts:
            return [model]
        return split(model, probe=self.probe, cuts=cuts).blocks()

    @property
    def turned_kinds(self) -> list[str]:
        """What is put into other bases before statistics are taken: ``streams``, ``heads``, ``ranks``."""
        has = {"streams": self.bases is not None, "heads": bool(self.turnable), "ranks": bool(self.found.low_rank)}
        return [kind for kind, is_there in has.items() if is_there]

    @cached_property
    def layers(self) -> list[Product]:
        """Convolutions and linear layers in the order of the forward; of one that is called twice the first call."""
        first: dict[str, Product] = {}
        for product in self.found.products:
            if product.layer:
                first.setdefault(product.layer, product)
        return list(first.values())

    @cached_property
    def called_once(self) -> frozenset[str]:
        """Names of the layers that the forward calls no more than once."""
        calls = Counter(product.layer for product in self.found.products)
        return frozenset(layer for layer, count in calls.items() if count == 1)

    def norm_behind(self, model: nn.Module, layer: str) -> nn.modules.batchnorm._BatchNorm | None:
        """Return the batch norm of ``model`` that takes in nothing but a layer's output."""
        name = self.found.norms.get(layer)
        if name is None:
            return None
        norm = model.get_submodule(name)
        return norm if isinstance(norm, nn.modules.batchnorm._BatchNorm) else None


def _follow(model: nn.Module, probe: Tensor) -> ChannelMap:
    _refuse_broken(model)
    # on one image: what is computed once a batch, such as position embeddings, counts once then
    return follow_channels(model, probe[:1])


def noise(model: nn.Module, input_size: Sequence[int]) -> Tensor:
    """Return two images of noise, (2, C, H, W), where a model finds them and in its precision."""
    probe = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    return probe.to(next(model.parameters()))


def segment_of_layers(segments: list[nn.Module], model: nn.Module) -> dict[str, int]:
    """Return the number of the segment that each layer of ``model`` stands in, the first one of several."""
    numbers: dict[int, int] = {}
    for number, segment in enumerate(segments):
        for parameter in segment.parameters():
            numbers.setdefault(id(parameter), number)
    return {
        name: numbers[id(layer.weight)]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer.weight) in numbers
    }


def _refuse_broken(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    broken = [name for name, tensor in tensors if tensor.isnan().any()]
    if broken:
        raise RequestError(
            f"{type(model).__name__} can't become narrower: its weights hold values that are no numbers, "
            f"first in {broken[0]}; load them from an undamaged file"
        )


def _seen_reading(model: nn.Module, places: Sequence[Place], probe: Tensor) -> list[Place]:
    """Return the places whose layers are seen at work: a fused kernel, for instance, hides what its layers take in."""
    names = {place: {each.layer for each in place.readers} for place in places}
    for place in places:
        names[place] |= {rows.layer for logits in place.logits for rows in (logits.queries, logits.keys)}
    layers = {name: model.get_submodule(name) for of_place in names.values() for name in of_place}
    seen: set[str] = set()
    capture(model, probe, layers, lambda name, _: seen.add(name))
    return [place for place in places if names[place] <= seen]


@torch.no_grad()
def states_in_front(segments: list[nn.Module], images: Tensor) -> list[Tensor]:
    """Return what each segment takes in, and at last what the last one gives."""
    states = [images]
    for segment in segments:
        # it may work in place
        states.append(segment(states[-1].clone()))
    return states
