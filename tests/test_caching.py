"""Caching: what comes out of the cache is what the blocks answer, and each block runs once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from netgraft.caching import Frozen, FrozenOutputs, frozen_prefix, overlap

T = TypeVar("T")
COUNT = 300  # more than one chunk, and no multiple of one


class Pictures:
    """Noise images with numbers."""

    def __init__(self, count: int = COUNT) -> None:
        self.pixels = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        self.rendered: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        numbers = torch.as_tensor(indices)
        self.rendered += numbers.tolist()
        return self.pixels[numbers].clone()


@dataclass
class Notebook:
    """Writes down what it is told."""

    notes: list[str] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def phase_started(self, number: int, count: int, name: str, steps: int, done: int) -> None:
        raise AssertionError("a cache starts no phase")

    def progressed(self, done: int, terms: Mapping[str, float]) -> None:
        raise AssertionError("a cache makes no steps")

    def phase_finished(self, seconds: float) -> None:
        raise AssertionError("a cache finishes no phase")

    def track(self, items: Iterable[T], *, total: int, name: str) -> Iterator[T]:
        yield from items


class Counting(nn.Module):
    """Runs another module and counts the views that it has seen."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.views = 0

    def forward(self, x: Tensor) -> Tensor:
        self.views += len(x)
        return self.inner(x)


def blocks() -> list[Counting]:
    """Three blocks and a head with random weights, in eval mode."""
    torch.manual_seed(0)
    chain = [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ]
    return [Counting(block).eval() for block in chain]


def cache(views: Pictures, *, budget: int = 2**30, dtype: torch.dtype = torch.float32) -> FrozenOutputs:
    def plain() -> AbstractContextManager[object]:
        return nullcontext()

    return FrozenOutputs(views, torch.device("cpu"), plain, budget, dtype)


@torch.no_grad()
def direct(views: Pictures, prefix: Frozen, indices: Tensor) -> Tensor:
    """The prefix on the images themselves, in float64 and one image at a time."""
    outputs = []
    for number in indices.tolist():
        image = views.pixels[number : number + 1].double()
        for block in prefix:
            image = block.double()(image.clone())
            block.float()
        outputs.append(image)
    return torch.cat(outputs)


ORDER = torch.tensor([299, 0, 17, 17, 256, 255, 3])


def test_kept_outputs_are_the_blocks_answers() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    outputs = cache(views)
    outputs.compute(prefixes, Notebook())
    for prefix in prefixes:
        # float32 against float64: rounding only
        torch.testing.assert_close(
            outputs.rows(prefix, ORDER).double(), direct(views, prefix, ORDER), atol=1e-5, rtol=1e-5
        )


def test_without_memory_the_same_is_computed_again() -> None:
    views, chain = Pictures(), blocks()
    prefixes = [tuple(chain[:length]) for length in range(5)]
    kept, poor = cache(views), cache(views, budget=0)
    notebook = Notebook()
    for outputs in (kept, poor):
        outputs.compute(prefixes, notebook)
    views.rendered.clear()
    for prefix in prefixes:
        # the batch is another one than the cache's, so a convolution may add in another order
        torch.testing.assert_close(kept.rows(prefix, ORDER), poor.rows(prefix, ORDER), atol=1e-5, rtol=1e-5)
    assert views.rendered == ORDER.tolist() * len(prefixes)
    assert len(notebook.notes) == len(prefixes)
    assert all("computed again at every step" in note for note in notebook.notes)


def test_each_shared_block_runs_once() -> None:
    views, chain = Pictures(), blocks()
    other = Counting(nn.Flatten())
    # two prefixes fork behind a border that nobody asked for
    forked = [tuple(chain[:3]), tuple(chain), (*chain[:2], other)]
    outputs = cache(views)
    outputs.compute(forked, Notebook())
    first_look = 1  # one view is run to learn the sizes
    assert [block.views for block in (*chain, other)] == [COUNT + first_look] * 5
    views.rendered.clear()
    outputs.compute(forked, Notebook())
    assert [block.views for block in (*chain, other)] == [COUNT + 2 * first_look] * 5
    outputs.rows(tuple(chain), ORDER)
    assert len(views.rendered) == first_look
    assert chain[0].views == COUNT + 2 * first_look


def test_blocks_that_work_in_place_leave_other_outputs_alone() -> None:
    views = Pictures()
    doubling, zeroing = nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Threshold(10.0, 0.0, inplace=True)
    prefixes: list[Frozen] = [(), (doubling,), (doubling, zeroing), (zeroing,)]
    for budget in (2**30, 0):
        outputs = cache(views, budget=budget)
        outputs.compute(prefixes, Notebook())
        expected = [
            views.pixels[ORDER],
            views.pixels[ORDER].clamp(-0.5, 0.5),
            torch.zeros(len(ORDER), 3, 6, 6),
            torch.zeros(len(ORDER), 3, 6, 6),
        ]
        for prefix, values in zip(prefixes, expected, strict=True):
            assert torch.equal(outputs.rows(prefix, ORDER), values)


def test_what_a_reader_does_to_rows_stays_with_the_reader() -> None:
    views, chain = Pictures(), blocks()
    outputs = cache(views)
    outputs.compute([tuple(chain[:1])], Notebook())
    before = outputs.rows(tuple(chain[:1]), ORDER)
    outputs.rows(tuple(chain[:1]), ORDER).zero_()
    assert before.abs().max() > 0
    assert torch.equal(outputs.rows(tuple(chain[:1]), ORDER), before)


def test_the_smallest_outputs_are_kept_first() -> None:
    views, chain = Pictures(), blocks()
    maps, logits = tuple(chain[:1]), tuple(chain)
    map_bytes, logit_bytes = COUNT * 4 * 6 * 6 * 4, COUNT * 5 * 4
    for budget, kept in [
        (logit_bytes - 1, []),
        (logit_bytes, [logits]),
        (logit_bytes + map_bytes - 1, [logits]),
        (logit_bytes + map_bytes, [logits, maps]),
    ]:
        outputs, notebook = cache(views, budget=budget), Notebook()
        outputs.compute([maps, logits], notebook)
        views.rendered.clear()
        served = [prefix for prefix in (logits, maps) if not _renders(outputs, views, prefix)]
        assert served == kept
        assert len(notebook.notes) == 2 - len(kept)


def _renders(outputs: FrozenOutputs, views: Pictures, prefix: Frozen) -> bool:
    before = len(views.rendered)
    outputs.rows(prefix, ORDER)
    return len(views.rendered) > before


def test_what_is_kept_depends_on_the_last_request_alone() -> None:
    chain = blocks()
    first, last = tuple(chain[:1]), tuple(chain[:3])
    budget = COUNT * 4 * 6 * 6 * 4  # the first map alone, or the last one and something
    views = Pictures()
    through, fresh = cache(views, budget=budget), cache(views, budget=budget)
    through.compute([first], Notebook())
    through.compute([first, last], Notebook())
    fresh.compute([first, last], Notebook())
    for outputs in (through, fresh):
        assert _renders(outputs, views, first)
        assert not _renders(outputs, views, last)


def test_keep_only_frees_the_rest() -> None:
    views, chain = Pictures(), blocks()
    first, last = tuple(chain[:1]), tuple(chain)
    outputs = cache(views)
    outputs.compute([first, last], Notebook())
    outputs.keep_only([last])
    assert _renders(outputs, views, first)
    assert not _renders(outputs, views, last)


def test_maps_are_kept_in_half_the_bytes_when_asked_and_logits_never() -> None:
    views, chain = Pictures(), blocks()
    first, last = tuple(chain[:1]), tuple(chain)
    outputs = cache(views, dtype=torch.bfloat16)
    outputs.compute([first, last], Notebook())
    assert outputs.rows(first, ORDER).dtype == torch.bfloat16
    assert outputs.rows(last, ORDER).dtype == torch.float32
    # bfloat16 has eight significant bits
    torch.testing.assert_close(outputs.rows(first, ORDER).double(), direct(views, first, ORDER), rtol=2**-8, atol=1e-5)


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
    assert overlap(tied, trained)
    assert not overlap(free, trained)


def test_frozen_prefix_refuses_what_is_no_part() -> None:
    with pytest.raises(ValueError, match="no part"):
        frozen_prefix(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))
