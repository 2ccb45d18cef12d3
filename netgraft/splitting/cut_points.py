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
    """A position at which a model can be cut.

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
    """All cut points of a model, in the order of its forward.

    Attributes:
        single: Where one tensor crosses.
        all: The same, and where several values cross.
        stages: Those of ``single`` that end a stage.
        macs: Multiply-accumulates of the whole model for one image.
    """

    single: tuple[CutPoint, ...]
    all: tuple[CutPoint, ...]
    stages: tuple[CutPoint, ...]
    macs: int


def find_cut_points(model: nn.Module, images: Tensor) -> CutPoints:
    """Find the cut points by tracing ``model``, which is in eval mode, into its lists of blocks.

    Args:
        model: A classifier.
        images: (B, C, H, W), to run it on.

    Raises:
        RequestError: It can't be traced.
    """
    named = stages(model)
    traced = TracedForward(model, trace(model, named, images, deep=True), images)
    found = {several: _outermost(traced, several=several) for several in (False, True)}
    if not found[True]:
        # the blocks may lie in a module of a module, as where a network is wrapped
        traced = TracedForward(model, trace(model, named, images, deep=True, through=True), images)
        found = {several: _outermost(traced, several=several) for several in (False, True)}
    ends = [boundary for boundary in named_boundaries(traced, named) if not traced.is_last(boundary)]
    return CutPoints(
        single=tuple(_cut_point(traced, boundary, images) for boundary in found[False]),
        all=tuple(_cut_point(traced, boundary, images) for boundary in found[True]),
        stages=tuple(_cut_point(traced, boundary, images) for boundary in ends),
        macs=max(traced.shapes.macs.values(), default=0),
    )


def _outermost(traced: TracedForward, *, several: bool) -> list[Boundary]:
    """Legal boundaries; of the modules that end at one the outermost names it, of equals the last."""
    best: dict[int, Boundary] = {}
    for name in traced.modules():
        boundary = traced.boundary_behind(name, several=several)
        if boundary is None or traced.is_last(boundary):
            continue
        rival = best.get(boundary.position)
        if rival is None or name.count(".") <= rival.name.count("."):
            best[boundary.position] = boundary
    return [best[position] for position in sorted(best)]


def _cut_point(traced: TracedForward, boundary: Boundary, images: Tensor) -> CutPoint:
    layouts = candidates(boundary.shape, tuple(images.shape[-2:]))
    size = layouts[0].size if layouts else ()
    return CutPoint(boundary.name, boundary.shape, size, traced.shapes.macs[traced.nodes[boundary.position]])


def default_cut_points(found: CutPoints) -> tuple[CutPoint, ...]:
    """Choose behind the stages; where these are missing or all alike, so that four blocks cost the same.

    Where there are too few cut points with one tensor, those where several values cross fill up.
    """
    # a single size everywhere has no stages worth the name, whatever timm calls them
    alike = len({point.shape for point in found.stages}) == 1 and len(found.stages) > 1
    if len(found.stages) >= BLOCKS - 1 and not alike:
        return found.stages
    maps = [point for point in found.single if point.is_map]
    options: list[tuple[CutPoint, ...]] = []
    if not alike:
        options = [found.stages, _last_of_each_size(maps)]
    options.append(balanced_cut_points(maps, found.macs, BLOCKS))
    # where several values cross, the fewer the further out
    depths = sorted({point.name.count(".") for point in found.all})
    pools = ([point for point in found.all if point.name.count(".") <= depth] for depth in depths)
    options += [balanced_cut_points(pool, found.macs, BLOCKS) for pool in pools]
    for option in options:
        if len(option) >= BLOCKS - 1 and (option == found.stages or _largest_share(option, found.macs) <= _TOO_LARGE):
            return option
    return max(options, key=lambda option: (min(len(option), BLOCKS - 1), -_largest_share(option, found.macs)))


_TOO_LARGE = 0.75
"""Share of the cost in one block above which the others are hardly worth their names."""


def _largest_share(chosen: Sequence[CutPoint], macs: int) -> float:
    """Share of the cost in the largest block."""
    ends = [0, *(point.macs for point in chosen), macs]
    return max(end - start for start, end in pairwise(ends)) / max(macs, 1)


def _last_of_each_size(maps: Sequence[CutPoint]) -> tuple[CutPoint, ...]:
    """Where stages end if a stage is all that works on maps of one size."""
    last = {point.size: point for point in _one_of_each_cost(maps)}
    return tuple(sorted(last.values(), key=maps.index))


def cut_points_for(found: CutPoints, blocks: int, what: str) -> tuple[CutPoint, ...]:
    """Choose cuts for ``blocks`` blocks that cost about the same.

    Raises:
        RequestError: There are too few cut points, or fewer than two blocks are asked for.
    """
    if blocks < 2:
        raise RequestError(f"a chain has two blocks or more, not {blocks}")
    for group in (found.single, found.all):
        chosen = balanced_cut_points(group, found.macs, blocks)
        if len(chosen) == blocks - 1:
            return chosen
    raise RequestError(f"{what} has {len(found.all)} cut points, too few for {blocks} blocks")


def balanced_cut_points(found: Sequence[CutPoint], macs: int, blocks: int) -> tuple[CutPoint, ...]:
    """Choose up to ``blocks`` - 1 cut points so that the sum of the blocks' squared costs is least.

    Args:
        found: In order.
        macs: Of the whole model.
        blocks: Asked for; fewer where there are too few cut points.
    """
    options = _one_of_each_cost(found)
    if len(options) < blocks - 1:
        options = list(found)
    ends = [*(point.macs for point in options), macs]
    costs = [end - start for start, end in pairwise([0, *ends])]
    return tuple(options[number] for number in balanced_partition(costs, min(blocks, len(ends))))


def _one_of_each_cost(found: Sequence[CutPoint]) -> list[CutPoint]:
    """Of cut points with nothing to compute between them the last that is a map: norms and poolings end a block."""
    chosen: dict[int, CutPoint] = {}
    for point in found:
        if point.macs not in chosen or point.is_map or not chosen[point.macs].is_map:
            chosen[point.macs] = point
    return list(chosen.values())
