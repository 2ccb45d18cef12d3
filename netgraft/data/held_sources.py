"""Images that views start from: held in memory as far as they may, made again from their files when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netgraft.data.threads import share_out

HELD_BYTES = 2 * 2**30
"""Of images that are held by default."""

MADE_TOGETHER = 64


class HeldSources(Sequence[Tensor]):
    """Images as uint8 (C, h, w), each made by its number.

    All are made once, on several threads: so a broken file is refused before anything is trained, and what views
    depend on is known, their sizes and a digest of their pixels. The first are held; in epochs that show each image
    once, in another order each time, it makes no difference which.

    Args:
        count: How many images there are.
        make: Makes one; the same one each time.
        held_bytes: How many bytes may be held; nothing that is computed depends on it.

    Raises:
        RequestError: Whatever ``make`` refuses.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor], held_bytes: int = HELD_BYTES) -> None:
        self._count, self._make = count, make
        self._held: list[Tensor] = []
        self._coming: dict[int, Future[Tensor]] = {}
        self._workers: tuple[int, ThreadPoolExecutor] | None = None
        digest, extents, free, is_full = hashlib.sha256(), [], held_bytes, False
        for start in range(0, count, MADE_TOGETHER):
            numbers = range(start, min(start + MADE_TOGETHER, count))
            made: dict[int, Tensor] = {}

            def keep(number: int, made: dict[int, Tensor] = made) -> None:
                made[number] = make(number)

            share_out(keep, numbers)
            for number in numbers:
                image = made[number]
                extents.append(image.shape[1:])
                digest.update(f"{tuple(image.shape)} {image.dtype}\0".encode())
                digest.update(image.contiguous().numpy().tobytes())
                is_full = is_full or image.nbytes > free
                if not is_full:
                    self._held.append(image)
                    free -= image.nbytes
        self.extents: NDArray[np.int64] = np.array(extents, dtype=np.int64).reshape(count, 2)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:  # type: ignore[override]
        if number < len(self._held):
            return self._held[number]
        with suppress(KeyError):
            return self._coming.pop(number).result()
        return self._make(number)

    def several(self, numbers: Sequence[int]) -> list[Tensor]:
        """Return some images, those that aren't held from several threads."""
        found: dict[int, Tensor] = {}

        def find(number: int) -> None:
            found[number] = self[number]

        share_out(find, numbers, alone=max(numbers, default=0) < self.held)
        return [found[number] for number in numbers]

    @property
    def held(self) -> int:
        """How many images are held."""
        return len(self._held)

    @property
    def all_held(self) -> bool:
        """Whether no image is made again."""
        return self.held == self._count

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to make images that will be asked for next, in threads of their own; those of before are forgotten."""
        wanted = {number for number in numbers if number >= self.held}
        self._coming = {number: coming for number, coming in self._coming.items() if number in wanted}
        for number in sorted(wanted - set(self._coming)):
            self._coming[number] = self._pool().submit(self._make, number)

    def _pool(self) -> ThreadPoolExecutor:
        # a forked process has none of its parent's threads
        if self._workers is None or self._workers[0] != os.getpid():
            self._coming = {}
            self._workers = os.getpid(), ThreadPoolExecutor(max(1, torch.get_num_threads()))
        return self._workers[1]
