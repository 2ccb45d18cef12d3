"""How many threads torch computes with, and independent pieces of work on as many, each piece on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with so many threads; the former number comes back."""
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def share_out(work: Callable[[Piece], object], pieces: Iterable[Piece], *, alone: bool = False) -> None:
    """Do ``work`` on each of ``pieces``, on several threads where torch computes with several.

    One operation after another divided among threads waits for the slowest of them each time; whole pieces wait once.
    torch's calls, Pillow's decoders and its resizing let other threads of Python run meanwhile. In ``work`` torch
    computes with a single thread, so what comes out doesn't depend on how many there are.

    Args:
        work: Writes its own result; runs without gradients, in inference mode where the caller does.
        pieces: Independent of one another.
        alone: Take one thread whatever their number.
    """
    mode = torch.is_inference_mode_enabled()

    def do(piece: Piece) -> None:
        with torch.inference_mode(mode), torch.no_grad():
            work(piece)

    pieces = list(pieces)
    workers = 1 if alone else min(torch.get_num_threads(), len(pieces))
    with computing_with(1):  # new threads begin with this number too
        if workers < 2:
            for piece in pieces:
                do(piece)
            return
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(do, piece) for piece in pieces]:
                done.result()
