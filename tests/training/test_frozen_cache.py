"""Caching: what comes out of the cache is what the blocks answer, and each block runs once for each view."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netgraft.training.frozen_cache import FrozenBlocks, ReadingOrder, frozen_prefix
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
    repeated = False
    for batch in batches:
        for view in batch.tolist():
            if view in numbers:
                repeated = True
            else:
                numbers.append(view)
    order = ReadingOrder.of(iter(batches), views)
    assert order.numbers.tolist() == numbers
    assert order.rows.tolist() == [numbers.index(view) if view in numbers else -1 for view in range(views)]
    assert order.repeated == repeated


# --- what comes out


def test_kept_outputs_are_the_blocks_answers() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    outputs = cache(views)
    outputs.keep(prefixes, Notebook())
    answers = outputs.rows(prefixes, SOME)
    for prefix, values in zip(prefixes, answers, strict=True):
        # float32 against float64: rounding only
        torch.testing.assert_close(values.double(), direct(views, prefix, SOME), atol=1e-5, rtol=1e-5)


def test_without_memory_the_same_is_computed_again() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    kept, poor = cache(views), cache(views, places=[memory(0)])
    kept.keep(prefixes, Notebook())
    poor.keep(prefixes, Notebook())
    expected = kept.rows(prefixes, SOME)
    views.rendered.clear()
    for _ in range(2):
        for values, answer in zip(poor.rows(prefixes, SOME), expected, strict=True):
            # the batch is another one than the cache's, so a convolution may add in another order
            torch.testing.assert_close(values, answer, atol=1e-5, rtol=1e-5)
    assert views.rendered == SOME.tolist() * 2


def test_blocks_that_work_in_place_leave_other_outputs_alone() -> None:
    views = Pictures()
    clipping, zeroing = nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Threshold(10.0, 0.0, inplace=True)
    prefixes: list[FrozenBlocks] = [(), (clipping,), (clipping, zeroing), (zeroing,)]
    zeros = torch.zeros(len(SOME), 3, 6, 6)
    expected = [views.pixels[SOME], views.pixels[SOME].clamp(-0.5, 0.5), zeros, zeros]
    for place in (memory(PLENTY), memory(0)):
        outputs = cache(views, places=[place])
        for wanted in (prefixes[:2], prefixes):  # what is kept of the first request starts the second
            outputs.keep(wanted, Notebook())
            for values, answer in zip(outputs.rows(wanted, SOME), expected, strict=False):
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
    maps, logits = outputs.rows([first, last], SOME)
    assert (maps.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    # bfloat16 has eight significant bits
    torch.testing.assert_close(maps.double(), direct(views, first, SOME), rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(logits.double(), direct(views, last, SOME), rtol=1e-5, atol=1e-5)


def test_faster_copies_run_in_place_of_the_blocks_given_and_of_no_other() -> None:
    views, chain = Pictures(), blocks()
    copies: dict[nn.Module, nn.Module] = {
        chain[1]: Counting(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Hardtanh(0.0, 0.1)))
    }
    for place in (memory(PLENTY), memory(0)):
        outputs = cache(views, places=[place], faster=copies)
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
        outputs.rows(forked[:1], batch)  # what is kept along with it is computed along with it
    assert [block.views for block in (*chain, other)] == [COUNT + FIRST_LOOK] * 5
    assert len(views.rendered) == COUNT + FIRST_LOOK
    outputs.keep(forked, Notebook())
    for batch in every_view():
        outputs.rows(forked, batch)
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
        values = through.rows(prefixes, batch)
        if number >= 4:
            for first, second in zip(values, resumed.rows(prefixes, batch), strict=True):
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
        outputs.rows([short, long], batch)
    assert [block.views for block in chain] == [COUNT + 2 * FIRST_LOOK] * 2 + [COUNT + FIRST_LOOK] * 2
    assert len(views.rendered) == COUNT + 2 * FIRST_LOOK
    values = one(outputs, long, SOME)
    # nor does it run again where something else needs the views
    other = (Counting(nn.Flatten()),)
    longer = (*short, Counting(nn.Flatten()))
    outputs.keep([short, other, longer], Notebook())
    for batch in every_view():
        outputs.rows([other, longer], batch)
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
    through.rows([first], some)
    through.keep([first, second], Notebook())
    fresh.keep([second], Notebook())
    assert torch.equal(through.rows([second], some)[0], fresh.rows([second], some)[0])


def test_a_half_filled_start_is_used_as_far_as_it_goes() -> None:
    views, chain = Pictures(), blocks()
    short, long = tuple(chain[:2]), tuple(chain)
    outputs = cache(views)
    outputs.keep([short], Notebook())
    one(outputs, short, outputs.order.numbers[:1])
    outputs.keep([short, long], Notebook())
    before = len(views.rendered)
    for batch in every_view():
        outputs.rows([short, long], batch)
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


def test_frozen_prefix_ends_where_training_begins() -> None:
    chain = blocks()
    model = nn.Sequential(*chain)
    for border in range(4):
        prefix, rest = frozen_prefix(model, chain[border].inner)
        assert list(prefix) == chain[:border]
        assert list(rest) == chain[border:]
    prefix, rest = frozen_prefix(model, nn.ModuleList([chain[3], chain[1]]))
    assert list(prefix) == chain[:1]
    assert list(rest) == chain[1:]


def test_frozen_prefix_sees_shared_parameters() -> None:
    tied, trained = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    tied.weight = trained.weight
    free = nn.Conv2d(3, 3, 1)
    prefix, rest = frozen_prefix(nn.Sequential(free, tied, nn.ReLU(), trained), trained)
    assert list(prefix) == [free]
    assert next(iter(rest)) is tied


def test_frozen_prefix_refuses_what_is_no_part() -> None:
    with pytest.raises(ValueError, match="no part"):
        frozen_prefix(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))
