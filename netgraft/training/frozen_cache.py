"""Outputs of frozen blocks for every view that a plan shows, computed once.

Blocks are frozen when no phase trains them from here on, until their output has been read for the last time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, takewhile
from typing import Protocol

import torch
from torch import Tensor, nn

from netgraft.modules import shares_parameters
from netgraft.progress import ProgressReporter
from netgraft.training.cache_storage import Storage, amount

FrozenBlocks = tuple[nn.Module, ...]
"""Frozen blocks in order, from the image on; without any, the views themselves."""


PIXELS = 2**18  # of the views that are computed at a time, as far as CHUNKS allows

WORTH_KEEPING = 1.1  # readings of a view, on average

CHUNKS = (32, 256)


class ViewSource(Protocol):
    """Enumerated views of a few images."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return the views as (B, C, H, W)."""
        ...


def split_before_training(model: nn.Sequential, trainable: nn.Module) -> tuple[FrozenBlocks, nn.Sequential]:
    """Divide ``model`` in front of the first block that shares a module or a parameter with ``trainable``.

    Returns:
        The blocks in front, frozen while ``trainable`` is trained, and the rest.

    Raises:
        ValueError: No block shares anything with ``trainable``.
    """
    blocks = list(model)
    for number, block in enumerate(blocks):
        if shares_parameters(block, trainable):
            return tuple(blocks[:number]), nn.Sequential(*blocks[number:])
    raise ValueError("the trainable part is no part of the model")


@dataclass(frozen=True)
class ReadingOrder:
    """The views that are read, in the order of their first reading.

    Rows of a cache follow it, so that filling it row by row computes only what is read, just before it is. It is the
    same for a run that goes on as for one that never stopped, so both compute the same views together.
    """

    numbers: Tensor
    """Of the views, (rows,)."""
    rows: Tensor
    """Row of each view, (views,); -1 where it is never read."""
    repeated: bool
    """Whether views are read again often enough to keep what was computed of them: :data:`WORTH_KEEPING`."""

    @classmethod
    def never_again(cls) -> ReadingOrder:
        """Say that no view is read twice, so that there is nothing to keep."""
        nothing = torch.empty(0, dtype=torch.long)
        return cls(nothing, nothing, repeated=False)

    @classmethod
    def of(cls, readings: Iterable[Tensor], views: int) -> ReadingOrder:
        """Take the order from batches of view numbers."""
        batches = list(readings)
        every = torch.cat(batches) if batches else torch.empty(0, dtype=torch.long)
        first = torch.full((views,), len(every), dtype=torch.long)
        first.scatter_reduce_(0, every, torch.arange(len(every)), "amin")
        numbers = first.argsort(stable=True)[: int((first < len(every)).sum())]
        rows = torch.full((views,), -1, dtype=torch.long)
        rows[numbers] = torch.arange(len(numbers))
        return cls(numbers, rows, repeated=len(every) > WORTH_KEEPING * len(numbers))


@dataclass(frozen=True)
class CachedOutputs:
    """Outputs of some blocks for all views that are read, as far as they have been computed.

    Attributes:
        values: One row for each view, in reading order, (rows, ...).
        storage: Where they lie.
        filled: Of each chunk of rows, whether it has been computed.
        exact: Whether nothing was rounded off in keeping them.
    """

    values: Tensor
    storage: Storage
    filled: list[bool]
    exact: bool


@dataclass
class FrozenCache:
    """Serves the outputs of frozen blocks for any views, from where there is room for them.

    Outputs are known by the very blocks that made them, never by a name, and live as long as this object: they can't
    be another teacher's.

    Attributes:
        views: Where images come from.
        order: Which views will be read.
        device: Where blocks run and outputs are wanted.
        storages: Where outputs may be kept, fastest first; what fits nowhere is computed whenever it is asked for.
        autocast: Gives the context in which blocks run.
        dtype: Of what is kept, for maps and tokens; logits and other vectors keep float32.
        faster: Copies of blocks that compute the same.
        seconds: Spent on filling what is kept.
    """

    views: ViewSource
    order: ReadingOrder
    device: torch.device
    storages: Sequence[Storage]
    autocast: Callable[[], AbstractContextManager[object]]
    dtype: torch.dtype = torch.float32
    faster: Mapping[nn.Module, nn.Module] = field(default_factory=dict)
    seconds: float = 0.0
    _cached: dict[FrozenBlocks, CachedOutputs] = field(default_factory=dict)
    _reported: set[FrozenBlocks] = field(default_factory=set)
    _best_reported: bool = False

    def keep(self, wanted: Sequence[FrozenBlocks], reporter: ProgressReporter) -> None:
        """Make room for ``wanted``, the most urgent first, and free everything else."""
        wanted = list(dict.fromkeys(wanted))
        self._cached = {prefix: cached for prefix, cached in self._cached.items() if prefix in wanted}
        missing = [prefix for prefix in wanted if prefix not in self._cached]
        # what is read once, but for a few, is not worth keeping
        if missing and self.order.repeated:
            samples = self._compute(self.order.numbers[:1], missing)
            for prefix in missing:
                self._make_room(prefix, samples[prefix], reporter)
            self._report_best(missing, reporter)

    def read(self, wanted: Sequence[FrozenBlocks], indices: Tensor) -> dict[FrozenBlocks, Tensor]:
        """Return the outputs of each of ``wanted`` for the views with the numbers ``indices``, (B, ...)."""
        cached = {prefix: self._cached[prefix] for prefix in wanted if prefix in self._cached}
        missing = [prefix for prefix in wanted if prefix not in cached]
        found = self._compute(indices, missing) if missing else {}
        if cached:
            rows = self.order.rows[indices]
            self._fill(list(cached.values()), rows)
            devices = {entry.values.device for entry in cached.values()}
            rows_on = {device: rows.to(device, non_blocking=True) for device in devices}
            for prefix, entry in cached.items():
                chosen = entry.values[rows_on[entry.values.device]]
                found[prefix] = chosen.to(self.device, non_blocking=True)
        return found

    def _fill(self, needed: Sequence[CachedOutputs], rows: Tensor) -> None:
        """Compute the chunks in which ``rows`` lie, of everything that is kept: what is shared runs once."""
        if all(all(cached.filled) for cached in needed):
            return
        for chunk in torch.unique(rows // self._chunk).tolist():
            if all(cached.filled[chunk] for cached in needed):
                continue
            empty = [prefix for prefix, cached in self._cached.items() if not cached.filled[chunk]]
            span = self._span(chunk)
            start = self._now()
            for prefix, values in self._compute(self.order.numbers[span], empty, chunk).items():
                cached = self._cached[prefix]
                cached.values[span] = values.to(cached.values.device, cached.values.dtype)
                cached.filled[chunk] = True
            self.seconds += self._now() - start

    def _span(self, chunk: int) -> slice:
        return slice(chunk * self._chunk, (chunk + 1) * self._chunk)

    @cached_property
    def _chunk(self) -> int:
        """How many views are computed at a time: as many pixels, whatever the size of the images."""
        height, width = self.views.size[1:]
        low, high = CHUNKS
        return max(low, min(high, PIXELS // (height * width)))

    def _make_room(self, prefix: FrozenBlocks, sample: Tensor, reporter: ProgressReporter) -> None:
        count = len(self.order.numbers)
        shape, dtype = (count, *sample.shape[1:]), self.dtype if sample.dim() > 2 else torch.float32
        for storage in self.storages:
            taken = sum(cached.values.nbytes for cached in self._cached.values() if cached.storage is storage)
            values = storage.allocate(shape, dtype, taken)
            if values is not None:
                chunks = -(-count // self._chunk)
                self._cached[prefix] = CachedOutputs(values, storage, [False] * chunks, exact=sample.dtype == dtype)
                where = f"kept in {storage}"
                break
        else:
            where = f"computed again at every step: there is no room in {', nor in '.join(map(str, self.storages))}"
        first_choice = prefix in self._cached and self._cached[prefix].storage is self.storages[0]
        if not first_choice and prefix not in self._reported:
            self._reported.add(prefix)
            blocks = "block" if len(prefix) == 1 else "blocks"
            what = f"the output of {len(prefix)} frozen {blocks}" if prefix else "views"
            size = amount(count * sample.numel() * dtype.itemsize)
            reporter.note(f"{what} ({size}): {where}; --cache-memory gives more memory")

    def _report_best(self, wanted: Sequence[FrozenBlocks], reporter: ProgressReporter) -> None:
        """Say, the first time, what lies in the fastest storage."""
        best = [self._cached[prefix] for prefix in wanted if prefix in self._cached and prefix not in self._reported]
        if best and not self._best_reported:
            self._best_reported = True
            size = amount(sum(cached.values.nbytes for cached in best))
            views = f"{len(self.order.numbers):,} views"
            reporter.note(f"outputs of frozen blocks for {views} ({size}): {self.storages[0]}")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    @torch.no_grad()
    def _compute(
        self, indices: Tensor, wanted: Sequence[FrozenBlocks], chunk: int | None = None
    ) -> dict[FrozenBlocks, Tensor]:
        """Outputs of each prefix for some views; goes on from what is kept of them if they are a chunk."""
        done = {
            prefix: cached.values[self._span(chunk)].to(self.device)
            for prefix, cached in self._cached.items()
            if cached.exact and chunk is not None and cached.filled[chunk] and any(_begins(prefix, p) for p in wanted)
        }
        if not all(any(_begins(start, prefix) for start in done) for prefix in wanted):
            images = self.views.batch(indices).to(self.device, non_blocking=True)
            done[()] = images.to(memory_format=torch.channels_last)
        forks = {_shared(first, second) for first, second in combinations(wanted, 2)}
        with self.autocast():
            for prefix in sorted({*wanted, *forks} - set(done), key=len):
                starts = [start for start in done if _begins(start, prefix)]
                if not starts:
                    continue  # a fork in front of everything that is still to be computed
                begun = max(starts, key=len)
                output = done[begun].clone()  # blocks may work in place on what they are given
                for block in prefix[len(begun) :]:
                    output = self.faster.get(block, block)(output)
                done[prefix] = output
        return {prefix: done[prefix] for prefix in wanted}


def _begins(start: FrozenBlocks, prefix: FrozenBlocks) -> bool:
    return prefix[: len(start)] == start


def _shared(first: FrozenBlocks, second: FrozenBlocks) -> FrozenBlocks:
    """The blocks with which both begin."""
    pairs = takewhile(lambda pair: pair[0] is pair[1], zip(first, second, strict=False))
    return tuple(block for block, _ in pairs)
