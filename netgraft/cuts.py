"""Choose where to cut: behind timm's stages, behind named modules, or so that the blocks cost the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor, nn

from netgraft.crossings import Crossing, Route, named_crossings
from netgraft.errors import RequestError
from netgraft.layouts import candidates
from netgraft.tracing import follow

BLOCKS = 4
"""Of a model without stages, such as a vision transformer."""


@dataclass(frozen=True)
class Place:
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
class Places:
    """Every place where a model can be cut, in the order of its forward.

    Attributes:
        single: Where one tensor crosses.
        any: The same, and where several values cross.
        stages: Those of ``single`` that end a stage.
        macs: Multiply-accumulates of the whole model for one image.
    """

    single: tuple[Place, ...]
    any: tuple[Place, ...]
    stages: tuple[Place, ...]
    macs: int


def places(model: nn.Module, images: Tensor) -> Places:
    """Find the places by following ``model``, which is in eval mode, into its lists of blocks.

    Raises:
        RequestError: It can't be followed.
    """
    named = stages(model)
    route = Route(model, follow(model, named, images, deep=True), images)
    found = {several: _outermost(route, several=several) for several in (False, True)}
    ends = [crossing for crossing in named_crossings(route, named) if not route.is_last(crossing)]
    return Places(
        single=tuple(_place(route, crossing, images) for crossing in found[False]),
        any=tuple(_place(route, crossing, images) for crossing in found[True]),
        stages=tuple(_place(route, crossing, images) for crossing in ends),
        macs=max(route.survey.macs.values(), default=0),
    )


def _outermost(route: Route, *, several: bool) -> list[Crossing]:
    """Legal crossings; of the modules that end at one place the outermost names it, of equals the last."""
    best: dict[int, Crossing] = {}
    for name in route.modules():
        crossing = route.crossing(name, several=several)
        if crossing is None or route.is_last(crossing):
            continue
        rival = best.get(crossing.position)
        if rival is None or name.count(".") <= rival.name.count("."):
            best[crossing.position] = crossing
    return [best[position] for position in sorted(best)]


def _place(route: Route, crossing: Crossing, images: Tensor) -> Place:
    layouts = candidates(crossing.shape, tuple(images.shape[-2:]))
    size = layouts[0].size if layouts else ()
    return Place(crossing.name, crossing.shape, size, route.survey.macs[route.nodes[crossing.position]])


def default(found: Places) -> tuple[Place, ...]:
    """Choose behind the stages; where these are missing or all alike, so that four blocks cost the same.

    Where one tensor crosses at too few places, cuts at which several values cross fill up.
    """
    # a single size everywhere has no stages worth the name, whatever timm calls them
    alike = len({place.shape for place in found.stages}) == 1 and len(found.stages) > 1
    if len(found.stages) >= BLOCKS - 1 and not alike:
        return found.stages
    maps = [place for place in found.single if place.is_map]
    options: list[tuple[Place, ...]] = []
    if not alike:
        options = [found.stages, _last_of_each_size(maps)]
    options.append(balanced(maps, found.macs, BLOCKS))
    # where several values cross, the fewer the further out
    depths = sorted({place.name.count(".") for place in found.any})
    pools = ([place for place in found.any if place.name.count(".") <= depth] for depth in depths)
    options += [balanced(pool, found.macs, BLOCKS) for pool in pools]
    for option in options:
        if len(option) >= BLOCKS - 1 and (option == found.stages or _largest(option, found.macs) <= _TOO_LARGE):
            return option
    return max(options, key=lambda option: (min(len(option), BLOCKS - 1), -_largest(option, found.macs)))


_TOO_LARGE = 0.75
"""Share of the cost in one block above which the others are hardly worth their names."""


def _largest(chosen: Sequence[Place], macs: int) -> float:
    """Share of the largest block."""
    ends = [0, *(place.macs for place in chosen), macs]
    return max(end - start for start, end in pairwise(ends)) / max(macs, 1)


def _last_of_each_size(maps: Sequence[Place]) -> tuple[Place, ...]:
    """Where stages end if a stage is all that works on maps of one size."""
    last = {place.size: place for place in _one_of_each_cost(maps)}
    return tuple(sorted(last.values(), key=maps.index))


def by_number(found: Places, blocks: int, what: str) -> tuple[Place, ...]:
    """Choose cuts for ``blocks`` blocks that cost about the same.

    Raises:
        RequestError: There are too few places.
    """
    if blocks < 2:
        raise RequestError(f"a chain has two blocks or more, not {blocks}")
    for group in (found.single, found.any):
        chosen = balanced(group, found.macs, blocks)
        if len(chosen) == blocks - 1:
            return chosen
    raise RequestError(f"{what} can be cut at {len(found.any)} places, too few for {blocks} blocks")


_Choice = tuple[float, tuple[int, ...]]
"""A sum of squares and the cuts with which it is reached."""


def balanced(found: Sequence[Place], macs: int, blocks: int) -> tuple[Place, ...]:
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
    return tuple(options[number] for number in even(costs, min(blocks, len(ends))))


def even(costs: Sequence[int], parts: int) -> tuple[int, ...]:
    """Numbers of the cuts between ``parts`` runs of ``costs`` whose sums have the least sum of squares.

    Among equals the first cuts. Cut ``k`` lies behind ``costs[k]``.
    """
    sums = list(accumulate(costs))
    # for each end: the least sum of squares of the runs up to it, and the cuts between them
    best: dict[int, tuple[int, tuple[int, ...]]] = {end: (total**2, ()) for end, total in enumerate(sums)}
    for _ in range(parts - 1):
        best = {
            end: min((best[cut][0] + (sums[end] - sums[cut]) ** 2, (*best[cut][1], cut)) for cut in best if cut < end)
            for end in [*best][1:]
        }
    return best[len(sums) - 1][1]


def _one_of_each_cost(found: Sequence[Place]) -> list[Place]:
    """Of places with nothing to compute between them the last that is a map: norms and poolings end a block."""
    chosen: dict[int, Place] = {}
    for place in found:
        if place.macs not in chosen or place.is_map or not chosen[place.macs].is_map:
            chosen[place.macs] = place
    return list(chosen.values())
