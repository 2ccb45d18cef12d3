"""Where outputs are kept: the most urgent first, in memory, on the disk or nowhere, and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netgraft.training.cache_storage import DiskStorage
from netgraft.training.frozen_cache import FrozenBlocks, FrozenCache
from tests.support.counting_cache import (
    COUNT,
    PLENTY,
    SOME,
    Pictures,
    blocks,
    cache,
    every_view,
    memory,
    one,
)
from tests.support.tiny_plan import Notebook

MAP, LOGITS = COUNT * 4 * 6 * 6 * 4, COUNT * 5 * 4  # bytes


def renders(outputs: FrozenCache, views: Pictures, prefix: FrozenBlocks) -> bool:
    """Whether a second reading costs anything."""
    one(outputs, prefix, SOME)
    before = len(views.rendered)
    one(outputs, prefix, SOME)
    return len(views.rendered) > before


@pytest.mark.parametrize(
    ("limit", "kept"), [(LOGITS - 1, ""), (LOGITS, "L"), (LOGITS + MAP - 1, "L"), (LOGITS + MAP, "LM")]
)
def test_the_most_urgent_is_kept_first(limit: int, kept: str) -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    outputs, notebook = cache(views, places=[memory(limit)]), Notebook()
    outputs.keep([logits, maps], notebook)
    served = [name for name, prefix in (("L", logits), ("M", maps)) if not renders(outputs, views, prefix)]
    assert "".join(served) == kept
    assert sum("computed again" in note for note in notebook.notes) == 2 - len(kept)


def test_each_place_is_filled_up_for_itself() -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    outputs = cache(views, places=[memory(LOGITS), memory(MAP)])
    outputs.keep([logits, maps], Notebook())
    assert [renders(outputs, views, prefix) for prefix in (logits, maps)] == [False, False]


def test_keep_frees_the_rest_and_only_the_rest() -> None:
    views, chain = Pictures(), blocks()
    first, last = tuple(chain[:1]), tuple(chain)
    outputs, notebook = cache(views, places=[memory(MAP + LOGITS)]), Notebook()
    outputs.keep([first, last], notebook)
    assert not renders(outputs, views, first)
    views.rendered.clear()
    outputs.keep([last], notebook)
    assert not renders(outputs, views, last)
    assert views.rendered == []
    assert renders(outputs, views, first)
    other = (nn.BatchNorm2d(3).eval(), *chain[:1])
    outputs.keep([last, other], notebook)
    assert not renders(outputs, views, other)  # where the first was
    assert not any("computed again" in note for note in notebook.notes)


class Full:
    """A place without room."""

    def allocate(self, shape: Sequence[int], dtype: torch.dtype, taken: int) -> Tensor | None:
        return None

    def __str__(self) -> str:
        return "a full cupboard"


def test_from_memory_to_disk_to_computing_again(tmp_path: Path) -> None:
    views, chain = Pictures(), blocks()
    first, second, last = tuple(chain[:1]), tuple(chain[:2]), tuple(chain)
    wanted = [last, first, second, ()]
    room, disk = memory(LOGITS), DiskStorage(tmp_path)
    outputs, notebook = cache(views, places=[room, disk]), Notebook()
    outputs.keep(wanted, notebook)
    assert [renders(outputs, views, prefix) for prefix in wanted] == [False] * 4
    map_mib, views_mib = MAP / 2**20, COUNT * 3 * 36 * 4 / 2**20
    size = f"{MAP // 4 / 2**20:.3g} MiB"
    ending = f"kept in memory-mapped files in {tmp_path}; --cache-memory gives more memory"
    assert notebook.notes == [
        f"the output of 1 frozen block ({map_mib:.3g} MiB): {ending}",
        f"the output of 2 frozen blocks ({size}): {ending}",
        f"views ({views_mib:.3g} MiB): {ending}",
        f"outputs of frozen blocks for {COUNT} views ({LOGITS / 2**20:.3g} MiB): {room}",
    ]
    notebook.notes.clear()
    outputs.keep([], notebook)
    outputs.keep(wanted, notebook)  # is said once
    assert notebook.notes == []

    outputs = cache(views, places=[Full(), Full()])
    outputs.keep([first, ()], notebook)
    assert [renders(outputs, views, prefix) for prefix in (first, ())] == [True, True]
    nowhere = "computed again at every step: there is no room in a full cupboard, nor in a full cupboard"
    assert notebook.notes == [
        f"the output of 1 frozen block ({map_mib:.3g} MiB): {nowhere}; --cache-memory gives more memory",
        f"views ({views_mib:.3g} MiB): {nowhere}; --cache-memory gives more memory",
    ]


def test_what_lies_where_it_is_best_is_said_once() -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    outputs, notebook = cache(views, places=[memory(PLENTY)]), Notebook()
    outputs.keep([], notebook)
    assert notebook.notes == []
    outputs.keep([logits, maps], notebook)
    outputs.keep([tuple(chain[:2]), maps], notebook)
    size = (MAP + LOGITS) / 2**20
    assert notebook.notes == [f"outputs of frozen blocks for 300 views ({size:.3g} MiB): {memory(PLENTY)}"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_disk_gives_the_bits_of_memory_and_shows_no_file(tmp_path: Path, dtype: torch.dtype) -> None:
    chain = blocks()
    prefixes = [(), *(tuple(chain[:length]) for length in (1, 3, 4))]
    there, here = cache(Pictures(), dtype=dtype), cache(Pictures(), places=[DiskStorage(tmp_path)], dtype=dtype)
    for outputs in (there, here):
        outputs.keep(prefixes, Notebook())
    for batch in every_view():
        for first, second in zip(there.rows(prefixes, batch), here.rows(prefixes, batch), strict=True):
            assert first.dtype == second.dtype
            assert torch.equal(first, second)
            assert first.stride() == second.stride()
        assert list(tmp_path.iterdir()) == []
