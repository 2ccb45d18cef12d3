"""What comes out of the cache is what the blocks answer; each block runs once for each view, and outputs lie where
there is room, the most urgent first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netgraft.training.cache_storage import DiskStorage
from netgraft.training.frozen_cache import FrozenBlocks, FrozenCache, ReadingOrder, split_before_training
from tests.support.counting_cache import (
    CHUNK,
    COUNT,
    FIRST_LOOK,
    PLENTY,
    SOME,
    Counting,
    Pictures,
    blocks,
    cache,
    direct,
    every_view,
    memory,
    one,
    several,
)
from tests.support.tiny_plan import Notebook

# --- the order of rows


@pytest.mark.parametrize("seed", range(20))
def test_order_is_that_of_first_reading(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    views = 1 + seed * 3
    sizes = torch.randint(1, 9, (seed % 5,), generator=generator).tolist()
    batches = [torch.randint(0, views, (size,), generator=generator) for size in sizes]
    numbers: list[int] = []
    for batch in batches:
        numbers += [view for view in dict.fromkeys(batch.tolist()) if view not in numbers]
    order = ReadingOrder.of(iter(batches), views)
    assert order.numbers.tolist() == numbers
    assert order.rows.tolist() == [numbers.index(view) if view in numbers else -1 for view in range(views)]
    assert order.repeated == (sum(sizes) > 1.1 * len(numbers))


def test_a_last_batch_that_begins_anew_does_not_make_all_views_worth_keeping() -> None:
    # sixty epochs of fifty thousand views in batches of 128 come to 2,880 readings more than there are views
    rounds = torch.arange(100 * 64 + 30) % (100 * 64)
    assert not ReadingOrder.of(rounds.split(64), 100 * 64).repeated
    views = Pictures()
    outputs = cache(views)
    outputs.order = ReadingOrder.of([torch.arange(len(views)), torch.arange(1)], len(views))
    outputs.keep([()], Notebook())
    for numbers in (torch.arange(3), torch.arange(3)):
        outputs.read([()], numbers)
    assert views.rendered[-6:] == [0, 1, 2, 0, 1, 2]


# --- what comes out


def test_kept_outputs_are_the_blocks_answers() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    outputs = cache(views)
    outputs.keep(prefixes, Notebook())
    answers = several(outputs, prefixes, SOME)
    for prefix, values in zip(prefixes, answers, strict=True):
        # float32 against float64: rounding only
        torch.testing.assert_close(values.double(), direct(views, prefix, SOME), atol=1e-5, rtol=1e-5)


def test_without_memory_the_same_is_computed_again() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    kept, poor = cache(views), cache(views, storages=[memory(0)])
    kept.keep(prefixes, Notebook())
    poor.keep(prefixes, Notebook())
    expected = several(kept, prefixes, SOME)
    views.rendered.clear()
    for _ in range(2):
        for values, answer in zip(several(poor, prefixes, SOME), expected, strict=True):
            # the batch is another one than the cache's, so a convolution may add in another order
            torch.testing.assert_close(values, answer, atol=1e-5, rtol=1e-5)
    assert views.rendered == SOME.tolist() * 2


def test_blocks_that_work_in_place_leave_other_outputs_alone() -> None:
    views = Pictures()
    clipping, zeroing = nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Threshold(10.0, 0.0, inplace=True)
    prefixes: list[FrozenBlocks] = [(), (clipping,), (clipping, zeroing), (zeroing,)]
    zeros = torch.zeros(len(SOME), 3, 6, 6)
    expected = [views.pixels[SOME], views.pixels[SOME].clamp(-0.5, 0.5), zeros, zeros]
    for storage in (memory(PLENTY), memory(0)):
        outputs = cache(views, storages=[storage])
        for wanted in (prefixes[:2], prefixes):  # what is kept of the first request starts the second
            outputs.keep(wanted, Notebook())
            for values, answer in zip(several(outputs, wanted, SOME), expected, strict=False):
                assert torch.equal(values, answer)


def test_what_a_reader_does_to_rows_stays_with_the_reader() -> None:
    views, chain = Pictures(), blocks()
    prefix = tuple(chain[:1])
    outputs = cache(views)
    outputs.keep([prefix], Notebook())
    before = one(outputs, prefix, SOME)
    one(outputs, prefix, SOME).zero_()
    assert before.abs().max() > 0
    assert torch.equal(one(outputs, prefix, SOME), before)


def test_maps_are_kept_in_half_the_bytes_when_asked_and_logits_never() -> None:
    views, chain = Pictures(), blocks()
    first, last = tuple(chain[:1]), tuple(chain)
    outputs = cache(views, dtype=torch.bfloat16)
    outputs.keep([first, last], Notebook())
    maps, logits = several(outputs, [first, last], SOME)
    assert (maps.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    # bfloat16 has eight significant bits
    torch.testing.assert_close(maps.double(), direct(views, first, SOME), rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(logits.double(), direct(views, last, SOME), rtol=1e-5, atol=1e-5)


def test_faster_copies_run_in_place_of_the_blocks_given_and_of_no_other() -> None:
    views, chain = Pictures(), blocks()
    copies: dict[nn.Module, nn.Module] = {
        chain[1]: Counting(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Hardtanh(0.0, 0.1)))
    }
    for storage in (memory(PLENTY), memory(0)):
        outputs = cache(views, storages=[storage], faster=copies)
        prefix = tuple(chain[:3])
        outputs.keep([prefix], Notebook())
        values = one(outputs, prefix, SOME)
        changed = (chain[0], copies[chain[1]], chain[2])
        torch.testing.assert_close(values.double(), direct(views, changed, SOME), atol=1e-5, rtol=1e-5)
        difference = values.double() - direct(views, prefix, SOME)
        assert difference.abs().max() > 1e-2
    assert chain[1].views == 2 * len(SOME)  # of the comparison


# --- what is computed, and when


def test_each_shared_block_runs_once() -> None:
    views, chain = Pictures(), blocks()
    other = Counting(nn.Flatten())
    # two prefixes fork behind a border that nobody asked for
    forked = [tuple(chain[:3]), tuple(chain), (*chain[:2], other)]
    outputs = cache(views)
    outputs.keep(forked, Notebook())
    for batch in every_view():
        several(outputs, forked[:1], batch)  # what is kept along with it is computed along with it
    assert [block.views for block in (*chain, other)] == [COUNT + FIRST_LOOK] * 5
    assert len(views.rendered) == COUNT + FIRST_LOOK
    outputs.keep(forked, Notebook())
    for batch in every_view():
        several(outputs, forked, batch)
    assert [block.views for block in (*chain, other)] == [COUNT + FIRST_LOOK] * 5
    assert len(views.rendered) == COUNT + FIRST_LOOK


def test_rows_are_computed_chunk_by_chunk_in_the_order_of_first_reading() -> None:
    views, chain = Pictures(700), blocks()
    prefix = tuple(chain[:2])
    read = torch.randperm(700, generator=torch.Generator().manual_seed(2))[:600]  # a hundred views are never read
    batches = list(read.split(50)) * 2
    outputs = cache(views, order=batches)
    outputs.keep([prefix], Notebook())
    assert views.rendered == read[:1].tolist()
    views.rendered.clear()
    for number, batch in enumerate(batches, 1):
        one(outputs, prefix, batch)
        needed = min(600, -(-50 * number // CHUNK) * CHUNK)
        assert views.rendered == read[:needed].tolist()
        assert chain[1].views == FIRST_LOOK + needed


def test_the_ragged_end_is_computed_alone() -> None:
    views, chain = Pictures(), blocks()
    prefix = tuple(chain[:1])
    outputs = cache(views)
    outputs.keep([prefix], Notebook())
    views.rendered.clear()
    last = outputs.order.numbers[-1:]
    torch.testing.assert_close(one(outputs, prefix, last).double(), direct(views, prefix, last), atol=1e-5, rtol=1e-5)
    assert views.rendered == outputs.order.numbers[CHUNK:].tolist()
    one(outputs, prefix, outputs.order.numbers[:1])
    assert sorted(views.rendered) == list(range(COUNT))


@pytest.mark.parametrize(("side", "expected"), [(4, 256), (32, 256), (48, 113), (64, 64), (224, 32)])
def test_chunks_shrink_with_the_images(side: int, expected: int) -> None:
    views = Pictures(300, side=1)
    views.size = (3, side, side)
    shown = torch.arange(300)
    outputs = cache(views, order=[shown, shown])
    outputs.keep([()], Notebook())
    views.rendered.clear()
    one(outputs, (), shown[:1])
    assert views.rendered == shown[:expected].tolist()


def test_a_run_that_starts_in_the_middle_reads_the_same_bits() -> None:
    chain = blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    through, resumed = cache(Pictures()), cache(Pictures())
    through.keep(prefixes, Notebook())
    resumed.keep(prefixes, Notebook())
    for number, batch in enumerate(every_view(cycles=3)):
        values = several(through, prefixes, batch)
        if number >= 4:
            for first, second in zip(values, several(resumed, prefixes, batch), strict=True):
                assert torch.equal(first, second)


def test_what_is_kept_is_the_start_of_a_longer_prefix() -> None:
    chain = blocks()
    short, long = tuple(chain[:2]), tuple(chain)
    views = Pictures()
    outputs, alone = cache(views), cache(Pictures())
    outputs.keep([short], Notebook())
    for batch in every_view():
        one(outputs, short, batch)
    assert chain[1].views == COUNT + FIRST_LOOK
    outputs.keep([short, long], Notebook())
    for batch in every_view():
        several(outputs, [short, long], batch)
    assert [block.views for block in chain] == [COUNT + 2 * FIRST_LOOK] * 2 + [COUNT + FIRST_LOOK] * 2
    assert len(views.rendered) == COUNT + 2 * FIRST_LOOK
    values = one(outputs, long, SOME)
    # nor does it run again where something else needs the views
    other = (Counting(nn.Flatten()),)
    longer = (*short, Counting(nn.Flatten()))
    outputs.keep([short, other, longer], Notebook())
    for batch in every_view():
        several(outputs, [other, longer], batch)
    assert chain[1].views == COUNT + 3 * FIRST_LOOK
    assert len(views.rendered) == 2 * COUNT + 3 * FIRST_LOOK
    alone.keep([long], Notebook())
    assert torch.equal(values, one(alone, long, SOME))


def test_nothing_goes_on_from_what_was_rounded_in_keeping() -> None:
    chain, some = blocks(), torch.arange(7)
    first, second = tuple(chain[:1]), tuple(chain[:3])
    # these blocks answer in float32, and maps are kept in bfloat16
    through, fresh = (cache(Pictures(), dtype=torch.bfloat16) for _ in range(2))
    through.keep([first], Notebook())
    several(through, [first], some)
    through.keep([first, second], Notebook())
    fresh.keep([second], Notebook())
    assert torch.equal(several(through, [second], some)[0], several(fresh, [second], some)[0])


def test_a_half_filled_start_is_used_as_far_as_it_goes() -> None:
    views, chain = Pictures(), blocks()
    short, long = tuple(chain[:2]), tuple(chain)
    outputs = cache(views)
    outputs.keep([short], Notebook())
    one(outputs, short, outputs.order.numbers[:1])
    outputs.keep([short, long], Notebook())
    before = len(views.rendered)
    for batch in every_view():
        several(outputs, [short, long], batch)
    assert views.rendered[before:] == outputs.order.numbers[CHUNK:].tolist()
    torch.testing.assert_close(one(outputs, long, SOME).double(), direct(views, long, SOME), atol=1e-5, rtol=1e-5)


def test_nothing_is_kept_when_no_view_is_read_twice() -> None:
    views, chain = Pictures(), blocks()
    prefix = tuple(chain[:2])
    notebook = Notebook()
    outputs = cache(views, order=every_view(cycles=1))
    outputs.keep([prefix], notebook)
    assert views.rendered == []
    for batch in every_view(cycles=1):
        views.rendered.clear()
        one(outputs, prefix, batch)
        assert views.rendered == batch.tolist()
    assert notebook.notes == []


# --- what is frozen


def test_a_model_is_split_where_training_begins() -> None:
    chain = blocks()
    model = nn.Sequential(*chain)
    for border in range(4):
        prefix, rest = split_before_training(model, chain[border].inner)
        assert list(prefix) == chain[:border]
        assert list(rest) == chain[border:]
    prefix, rest = split_before_training(model, nn.ModuleList([chain[3], chain[1]]))
    assert list(prefix) == chain[:1]
    assert list(rest) == chain[1:]


def test_splitting_before_training_sees_shared_parameters() -> None:
    tied, trained = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    tied.weight = trained.weight
    free = nn.Conv2d(3, 3, 1)
    prefix, rest = split_before_training(nn.Sequential(free, tied, nn.ReLU(), trained), trained)
    assert list(prefix) == [free]
    assert next(iter(rest)) is tied


def test_splitting_before_training_refuses_what_is_no_part() -> None:
    with pytest.raises(ValueError, match="no part"):
        split_before_training(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))


# --- where outputs are kept

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
    outputs, notebook = cache(views, storages=[memory(limit)]), Notebook()
    outputs.keep([logits, maps], notebook)
    served = [name for name, prefix in (("L", logits), ("M", maps)) if not renders(outputs, views, prefix)]
    assert "".join(served) == kept
    assert sum("computed again" in note for note in notebook.notes) == 2 - len(kept)


def test_each_storage_is_filled_up_for_itself() -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    outputs = cache(views, storages=[memory(LOGITS), memory(MAP)])
    outputs.keep([logits, maps], Notebook())
    assert [renders(outputs, views, prefix) for prefix in (logits, maps)] == [False, False]


def test_keep_frees_the_rest_and_only_the_rest() -> None:
    views, chain = Pictures(), blocks()
    first, last = tuple(chain[:1]), tuple(chain)
    outputs, notebook = cache(views, storages=[memory(MAP + LOGITS)]), Notebook()
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
    """A storage without room."""

    def allocate(self, shape: Sequence[int], dtype: torch.dtype, taken: int) -> Tensor | None:
        return None

    def __str__(self) -> str:
        return "a full cupboard"


def test_from_memory_to_disk_to_computing_again(tmp_path: Path) -> None:
    views, chain = Pictures(), blocks()
    first, second, last = tuple(chain[:1]), tuple(chain[:2]), tuple(chain)
    wanted = [last, first, second, ()]
    room, disk = memory(LOGITS), DiskStorage(tmp_path)
    outputs, notebook = cache(views, storages=[room, disk]), Notebook()
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

    outputs = cache(views, storages=[Full(), Full()])
    outputs.keep([first, ()], notebook)
    assert [renders(outputs, views, prefix) for prefix in (first, ())] == [True, True]
    nowhere = "computed again at every step: there is no room in a full cupboard, nor in a full cupboard"
    assert notebook.notes == [
        f"the output of 1 frozen block ({map_mib:.3g} MiB): {nowhere}; --cache-memory gives more memory",
        f"views ({views_mib:.3g} MiB): {nowhere}; --cache-memory gives more memory",
    ]


def test_what_lies_in_the_fastest_storage_is_said_once() -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    outputs, notebook = cache(views, storages=[memory(PLENTY)]), Notebook()
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
    there, here = cache(Pictures(), dtype=dtype), cache(Pictures(), storages=[DiskStorage(tmp_path)], dtype=dtype)
    for outputs in (there, here):
        outputs.keep(prefixes, Notebook())
    for batch in every_view():
        for first, second in zip(several(there, prefixes, batch), several(here, prefixes, batch), strict=True):
            assert first.dtype == second.dtype
            assert torch.equal(first, second)
            assert first.stride() == second.stride()
        assert list(tmp_path.iterdir()) == []
