"""How much memory is free, and where large tensors can lie: on the device, in main memory, in a file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch import Tensor

from netgraft.files import UNNAMED

SHARE = 0.5  # of what is free that caches may take by default

DISK_RESERVE = 2**30  # bytes that a cache leaves free on a disk

# limit and use of a container's memory, which psutil doesn't look at
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``; on the CPU within the limit of the container, if there is one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [psutil.virtual_memory().available]
    for limit, usage in _CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(0, min(free))


class Storage(Protocol):
    """Somewhere that large tensors can lie."""

    def allocate(self, shape: Sequence[int], dtype: torch.dtype, taken: int) -> Tensor | None:
        """Return a tensor with any values, in channels-last order where it is a map; None if there is no room.

        ``taken`` is how many bytes the caller has here already.
        """
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class MemoryStorage:
    """The memory of a device, up to a limit in bytes."""

    device: torch.device
    limit: int

    def allocate(self, shape: Sequence[int], dtype: torch.dtype, taken: int) -> Tensor | None:
        """Take memory of the device."""
        if taken + _bytes(shape, dtype) > self.limit:
            return None
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(tuple(shape), dtype=dtype, device=self.device, memory_format=layout)

    def __str__(self) -> str:
        where = "memory" if self.device.type == "cpu" else f"the memory of {self.device}"
        return f"{where} (up to {amount(self.limit)})"


@dataclass(frozen=True)
class DiskStorage:
    """Memory-mapped files in a folder, which no process can leave behind: they have no name once they are open."""

    folder: Path

    def allocate(self, shape: Sequence[int], dtype: torch.dtype, taken: int) -> Tensor | None:
        """Take space on the disk, all of it now: a page that finds none later would kill the process."""
        needed = _bytes(shape, dtype)
        try:
            if shutil.disk_usage(self.folder).free - needed < DISK_RESERVE:
                return None
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=UNNAMED) as file:
                _reserve(file.fileno(), needed)
                flat = torch.from_file(file.name, shared=True, size=needed // dtype.itemsize, dtype=dtype)
        except OSError:  # full, read-only, a quota
            return None
        if len(shape) != 4:
            return flat.view(*shape)
        count, channels, height, width = shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)

    def __str__(self) -> str:
        return f"memory-mapped files in {self.folder}"


def storages(device: torch.device, limit: int | None, folder: Path | None, sharing: int = 1) -> list[Storage]:
    """List where tensors that ``device`` reads may lie, fastest first.

    Args:
        device: Reads them.
        limit: Bytes in each memory; half of what is free if None.
        folder: For files; None allows none.
        sharing: Processes that share main memory, each of which takes its part of the default.
    """
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]

    def bound(where: torch.device) -> int:
        return int(SHARE * free_memory(where)) // (sharing if where.type == "cpu" else 1) if limit is None else limit

    found: list[Storage] = [MemoryStorage(where, bound(where)) for where in devices]
    return [*found, DiskStorage(folder)] if folder is not None else found


def amount(count: int) -> str:
    """Say a number of bytes."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros, left = bytes(2**24), size
    while left:
        left -= os.write(file, zeros[:left])
