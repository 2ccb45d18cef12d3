"""What is frozen is computed once: the outputs of frozen blocks for every view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from typing import Protocol

import torch
from torch import Tensor, nn

from netgraft.reporting import Reporter

Frozen = tuple[nn.Module, ...]
"""Blocks in order, from the image on, none of which changes while its output is cached."""

CHUNK = 256  # views rendered and passed through the teacher at a time


class ViewSource(Protocol):
    """Enumerated views of a few images."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return the views as (B, C, H, W)."""
        ...


def overlap(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules share a module or a parameter, so that training one changes the other."""
    shared_modules = set(first.modules()) & set(second.modules())
    return bool(shared_modules) or not set(first.parameters()).isdisjoint(second.parameters())


def frozen_prefix(model: nn.Sequential, trainable: nn.Module) -> tuple[Frozen, nn.Sequential]:
    """Divide ``model`` in front of the first block that shares a module or a parameter with ``trainable``."""
    blocks = list(model)
    for number, block in enumerate(blocks):
        if overlap(block, trainable):
            return tuple(blocks[:number]), nn.Sequential(*blocks[number:])
    raise ValueError("the trainable part is no part of the model")


@dataclass
class FrozenOutputs:
    """Serves the outputs of frozen blocks for any views, from memory where they fit.

    Attributes:
        views: Where images come from.
        device: Where blocks run and outputs are kept.
        autocast: Gives the context in which blocks run.
        budget: Bytes that may be kept; what doesn't fit is computed again whenever it is asked for.
        dtype: Of what is kept, for maps; logits keep float32.
    """

    views: ViewSource
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    budget: int
    dtype: torch.dtype = torch.float32
    _kept: dict[Frozen, Tensor] = field(default_factory=dict)
    _noted: set[Frozen] = field(default_factory=set)

    def compute(self, wanted: Iterable[Frozen], reporter: Reporter) -> None:
        """Run every view once through all of ``wanted`` that is not kept yet; each shared block runs once.

        Keeps what was asked for, cheapest first, as far as the budget goes, and frees everything else: what is
        kept depends on ``wanted`` alone, so a resumed run reads the same bits as one that never stopped.
        """
        chosen = self._choose(list(dict.fromkeys(wanted)), reporter)
        self.keep_only(chosen)
        missing = [prefix for prefix in chosen if prefix not in self._kept]
        if not missing:
            return
        total = len(self.views)
        starts = range(0, total, CHUNK)
        for start in reporter.track(starts, total=len(starts), name="computing what is frozen"):
            indices = torch.arange(start, min(start + CHUNK, total))
            for prefix, rows in self._run(indices, missing).items():
                if prefix not in self._kept:
                    self._kept[prefix] = self._allocate(total, rows)
                self._kept[prefix][indices] = rows.to(self._kept[prefix].dtype)

    def rows(self, prefix: Frozen, indices: Tensor) -> Tensor:
        """Return the outputs of ``prefix`` for some views, (B, ...)."""
        if prefix in self._kept:
            return self._kept[prefix][indices.to(self.device)]
        return self._run(indices, [prefix])[prefix]

    def keep_only(self, wanted: Iterable[Frozen]) -> None:
        """Free everything that is not in ``wanted``."""
        keep = set(wanted)
        self._kept = {prefix: rows for prefix, rows in self._kept.items() if prefix in keep}

    def _choose(self, wanted: Sequence[Frozen], reporter: Reporter) -> list[Frozen]:
        """Choose what to keep by running one view; the smallest outputs first."""
        samples = self._run(torch.zeros(1, dtype=torch.long), wanted)
        free = self.budget
        kept = []
        for prefix in sorted(wanted, key=lambda candidate: samples[candidate].numel()):
            needed = len(self.views) * samples[prefix].numel() * self._dtype(samples[prefix]).itemsize
            if needed <= free:
                kept.append(prefix)
                free -= needed
            elif prefix not in self._noted:
                self._noted.add(prefix)
                what = f"the output of {len(prefix)} frozen blocks" if prefix else "rendered views"
                reporter.note(
                    f"{what} would take {needed / 2**30:.1f} GiB of the {self.budget / 2**30:.1f} GiB for cached "
                    "outputs: computed again at every step (--cache-memory gives more)"
                )
        return kept

    def _dtype(self, rows: Tensor) -> torch.dtype:
        return self.dtype if rows.dim() == 4 else torch.float32

    def _allocate(self, total: int, rows: Tensor) -> Tensor:
        layout = torch.channels_last if rows.dim() == 4 else torch.contiguous_format
        shape = (total, *rows.shape[1:])
        return torch.empty(shape, dtype=self._dtype(rows), device=self.device, memory_format=layout)

    @torch.no_grad()
    def _run(self, indices: Tensor, wanted: Sequence[Frozen]) -> dict[Frozen, Tensor]:
        """Outputs of each prefix for some views; what two prefixes share runs once."""
        images = self.views.batch(indices).to(self.device).to(memory_format=torch.channels_last)
        done: dict[Frozen, Tensor] = {(): images}
        forks = {_shared(first, second) for first, second in combinations(wanted, 2)}
        with self.autocast():
            for prefix in sorted({*wanted, *forks}, key=len):
                begun = max((p for p in done if p == prefix[: len(p)]), key=len)
                output = done[begun]
                for length in range(len(begun), len(prefix)):
                    # blocks may work in place on what they are given
                    output = prefix[length](output.clone() if length == len(begun) else output)
                done[prefix] = output
        return {prefix: done[prefix] for prefix in wanted}


def _shared(first: Frozen, second: Frozen) -> Frozen:
    """The blocks with which both begin."""
    pairs = takewhile(lambda pair: pair[0] is pair[1], zip(first, second, strict=False))
    return tuple(block for block, _ in pairs)
