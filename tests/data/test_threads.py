"""Pieces of work on several threads: all are done, what goes wrong is said, and the caller's settings stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from netgraft.data.threads import share_out


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_piece_is_done_once_on_a_thread_that_computes_alone(threads: int) -> None:
    done: list[tuple[int, int, bool]] = []
    share_out(lambda piece: done.append((piece, torch.get_num_threads(), torch.is_grad_enabled())), range(40))
    assert sorted(done) == [(piece, 1, False) for piece in range(40)]
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_several_threads_work_at_the_same_time(threads: int) -> None:
    if threads == 1:
        pytest.skip("there is one")
    together = threading.Barrier(2, timeout=300)  # passed by two at once, or by none
    share_out(lambda piece: together.wait(), range(2))


def test_one_thread_can_be_asked_for(threads: int) -> None:
    seen = set()
    share_out(lambda piece: seen.add(threading.get_ident()), range(10), alone=True)
    assert seen == {threading.get_ident()}


def test_what_goes_wrong_is_raised_and_settings_are_restored(threads: int) -> None:
    def work(piece: int) -> None:
        if piece == 3:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        share_out(work, range(8))
    assert torch.get_num_threads() == threads


def test_inference_mode_goes_along(threads: int) -> None:
    with torch.inference_mode():
        filled = torch.zeros(6)

        def work(piece: int) -> None:
            filled[piece] = piece

        share_out(work, range(6))
    assert filled.tolist() == [0, 1, 2, 3, 4, 5]
