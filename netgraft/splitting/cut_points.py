"""Choose where to cut: behind timm's stages, behind named modules, or so that the blocks cost the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.splitting.balance import balanced_partition
from netgraft.splitting.boundaries import Boundary, TracedForward, named_boundaries
from netgraft.splitting.layouts import candidates
from netgraft.splitting.tracing import trace

BLOCKS = 4

"""Of a model without stages, such as a vision transformer."""


@dataclass(frozen=True)
class CutPoint:
    """Where a model can be cut.

    Attributes:
        name: Of the module to cut behind.
        shape: Of the tensor that crosses, without the batch dimension; empty where several values cross.
        size: Height and width of the map that can be in it; empty where none can.
        macs: Multiply-accumulates for one image in front of the cut.
    """

    name: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    macs: int

    @property
    def is_map(self) -> bool:
        """Whether a picture of more than one pixel can be in what crosses."""
        return max(self.size, default=0) > 1


def stages(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that end timm's stages; none where timm names none or wrong ones."""
    info = getattr(model, "feature_info", None) or ()
    known = dict(model.named_modules())
    names = [stage.get("module") if isinstance(stage, dict) else None for stage in info]
    return tuple(name for name in names if name) if all(name in known for name in names) else ()


@dataclass(frozen=True)
class CutPoints:
    """Every place where a model can be cut, in the order of its forward.

    Attributes:
        single: Where one tensor crosses.
        any: The same, and where several values cross.
        stages: Those of ``single`` that end a stage.
        macs: Multiply-accumulates of the whole model for one image.
    """

    single: tuple[CutPoint, ...]
    any: tuple[CutPoint, ...]
    stages: tuple[CutPoint, ...]
    macs: int


def find_cut_points(model: nn.Module, images: Tensor) -> CutPoints:
    """Find the places by following ``model``, which is in eval mode, into its lists of blocks.

    Raises:
        RequestError: It can't be followed.
    """
    named = stages(model)
    route = TracedForward(model, trace(model, named, images, deep=True), images)
    found = {several: _outermost(route, several=several) for several in (False, True)}
    ends = [crossing for crossing in named_boundaries(route, named) if not route.is_last(crossing)]
    return CutPoints(
        single=tuple(_cut_point(route, crossing, images) for crossing in found[False]),
        any=tuple(_cut_point(route, crossing, images) for crossing in found[True]),
        stages=tuple(_cut_point(route, crossing, images) for crossing in ends),
        macs=max(route.survey.macs.values(), default=0),
    )


def _outermost(route: TracedForward, *, several: bool) -> list[Boundary]:
    """Legal crossings; of the modules that end at one place the outermost names it, of equals the last."""
    best: dict[int, Boundary] = {}
    for name in route.modules():
        crossing = route.crossing(name, several=several)
        if crossing is None or route.is_last(crossing):
            continue
        rival = best.get(crossing.position)
        if rival is None or name.count(".") <= rival.name.count("."):
            best[crossing.position] = crossing
    return [best[position] for position in sorted(best)]


def _cut_point(route: TracedForward, crossing: Boundary, images: Tensor) -> CutPoint:
    layouts = candidates(crossing.shape, tuple(images.shape[-2:]))
    size = layouts[0].size if layouts else ()
    return CutPoint(crossing.name, crossing.shape, size, route.survey.macs[route.nodes[crossing.position]])


def default_cut_points(found: CutPoints) -> tuple[CutPoint, ...]:
    """Choose behind the stages; where these are missing or all alike, so that four blocks cost the same.

    Where one tensor crosses at too few places, cuts at which several values cross fill up.
    """
    # a single size everywhere has no stages worth the name, whatever timm calls them
    alike = len({place.shape for place in found.stages}) == 1 and len(found.stages) > 1
    if len(found.stages) >= BLOCKS - 1 and not alike:
        return found.stages
    maps = [place for place in found.single if place.is_map]
    options: list[tuple[CutPoint, ...]] = []
    if not alike:
        options = [found.stages, _last_of_each_size(maps)]
    options.append(balanced_cut_points(maps, found.macs, BLOCKS))
    # where several values cross, the fewer the further out
    depths = sorted({place.name.count(".") for place in found.any})
    pools = ([place for place in found.any if place.name.count(".") <= depth] for depth in depths)
    options += [balanced_cut_points(pool, found.macs, BLOCKS) for pool in pools]
    for option in options:
        if len(option) >= BLOCKS - 1 and (option == found.stages or _largest(option, found.macs) <= _TOO_LARGE):
            return option
    return max(options, key=lambda option: (min(len(option), BLOCKS - 1), -_largest(option, found.macs)))


_TOO_LARGE = 0.75

"""Share of the cost in one block above which the others are hardly worth their names."""


def _largest(chosen: Sequence[CutPoint], macs: int) -> float:
    """Share of the largest block."""
    ends = [0, *(place.macs for place in chosen), macs]
    return max(end - start for start, end in pairwise(ends)) / max(macs, 1)


def _last_of_each_size(maps: Sequence[CutPoint]) -> tuple[CutPoint, ...]:
    """Where stages end if a stage is all that works on maps of one size."""
    last = {place.size: place for place in _one_of_each_cost(maps)}
    return tuple(sorted(last.values(), key=maps.index))


def cut_points_for(found: CutPoints, blocks: int, what: str) -> tuple[CutPoint, ...]:
    """Choose cuts for ``blocks`` blocks that cost about the same.

    Raises:
        RequestError: There are too few places.
    """
    if blocks < 2:
        raise RequestError(f"a chain has two blocks or more, not {blocks}")
    for group in (found.single, found.any):
        chosen = balanced_cut_points(group, found.macs, blocks)
        if len(chosen) == blocks - 1:
            return chosen
    raise RequestError(f"{what} can be cut at {len(found.any)} places, too few for {blocks} blocks")


def balanced_cut_points(found: Sequence[CutPoint], macs: int, blocks: int) -> tuple[CutPoint, ...]:
    """Choose up to ``blocks`` - 1 places so that the sum of the blocks' squared costs is least.

    Args:
        found: In order.
        macs: Of the whole model.
        blocks: Asked for; fewer where there are too few places.
    """
    options = _one_of_each_cost(found)
    if len(options) < blocks - 1:
        options = list(found)
    ends = [*(place.macs for place in options), macs]
    costs = [end - start for start, end in pairwise([0, *ends])]
    return tuple(options[number] for number in balanced_partition(costs, min(blocks, len(ends))))


def _one_of_each_cost(found: Sequence[CutPoint]) -> list[CutPoint]:
    """Of places with nothing to compute between them the last that is a map: norms and poolings end a block."""
    chosen: dict[int, CutPoint] = {}
    for place in found:
        if place.macs not in chosen or place.is_map or not chosen[place.macs].is_map:
            chosen[place.macs] = place
    return list(chosen.values())
