"""How much memory is free, and tensors that lie in memory or in files that nobody can leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from netgraft.training import cache_storage
from netgraft.training.cache_storage import (
    DISK_RESERVE,
    DiskStorage,
    MemoryStorage,
    Storage,
    amount,
    free_memory,
    storages,
)

CPU = torch.device("cpu")

SHAPES = [(7, 3, 5, 4), (7, 6), (7, 5, 2), (9,)]


def physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_memory_is_a_part_of_what_there_is() -> None:
    assert 0 < free_memory(CPU) < physical()


@pytest.mark.parametrize(
    ("limit", "usage", "expected"),
    [("3000000", "1000000", 2000000), ("1000", "5000", 0), ("max", "1000", None), (str(2**63), "1000", None)],
)
def test_a_container_has_no_more_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, usage: str, expected: int | None
) -> None:
    (tmp_path / "limit").write_text(limit + "\n")
    (tmp_path / "usage").write_text(usage + "\n")
    missing = str(tmp_path / "missing")
    pairs = ((missing, missing), (str(tmp_path / "limit"), str(tmp_path / "usage")))
    monkeypatch.setattr(cache_storage, "_CGROUPS", pairs)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert free_memory(CPU) == (2**40 if expected is None else expected)


def test_without_a_container_all_that_is_available_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_storage, "_CGROUPS", ())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345, free=1, total=10**6))
    assert free_memory(CPU) == 12345


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_tensors_have_the_shape_and_the_order_asked_for(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    storage: Storage = MemoryStorage(CPU, 2**20) if kind == "memory" else DiskStorage(tmp_path)
    tensor = storage.allocate(shape, dtype, 0)
    assert tensor is not None
    assert (tuple(tensor.shape), tensor.dtype, tensor.device) == (shape, dtype, CPU)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    assert tensor.is_contiguous(memory_format=layout)
    values = torch.randn(shape).to(dtype)
    tensor.copy_(values)
    assert torch.equal(tensor, values)


def test_memory_refuses_what_is_above_its_limit() -> None:
    storage = MemoryStorage(CPU, 4 * 100)
    assert storage.allocate((100,), torch.float32, 0) is not None
    assert storage.allocate((101,), torch.float32, 0) is None
    assert storage.allocate((200,), torch.bfloat16, 0) is not None
    assert storage.allocate((50,), torch.float32, 200) is not None
    assert storage.allocate((50,), torch.float32, 201) is None
    assert MemoryStorage(CPU, 0).allocate((1,), torch.float32, 0) is None


def test_storages_say_what_they_are(tmp_path: Path) -> None:
    assert str(MemoryStorage(CPU, 3 * 2**29)) == "memory (up to 1.5 GiB)"
    assert str(MemoryStorage(torch.device("cuda:1"), 2**30)) == "the memory of cuda:1 (up to 1 GiB)"
    assert str(DiskStorage(tmp_path)) == f"memory-mapped files in {tmp_path}"
    assert amount(2**28) == "256 MiB"
    assert amount(5 * 2**29) == "2.5 GiB"


# --- files


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False), (-(2**40), False), (2**40, True)])
def test_a_disk_keeps_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, fits: bool) -> None:
    free = DISK_RESERVE + 4 * 1000 + spare
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**50, 0, free))
    assert (DiskStorage(tmp_path).allocate((10, 100), torch.float32, 0) is not None) == fits
    assert list(tmp_path.iterdir()) == []


def test_no_file_has_a_name(tmp_path: Path) -> None:
    tensors = [DiskStorage(tmp_path).allocate(shape, torch.float32, 0) for shape in SHAPES]
    assert all(tensor is not None for tensor in tensors)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_has_no_room(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (tmp_path / "missing", file):
        assert DiskStorage(folder).allocate((5,), torch.float32, 0) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["tempfile.NamedTemporaryFile", "os.posix_fallocate", "torch.from_file"])
def test_what_the_system_refuses_is_no_room_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    asked: list[str] = []

    def refuse(*given: object, **options: object) -> None:
        asked.append(where)
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(where, refuse, raising=False)
    assert DiskStorage(tmp_path).allocate((5,), torch.float32, 0) is None
    assert list(tmp_path.iterdir()) == []
    assert asked == [where]


@pytest.mark.parametrize("native", [True, False])
def test_all_of_a_file_is_on_the_disk_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    if native and not hasattr(os, "posix_fallocate"):
        pytest.skip("there is no fallocate here")
    if not native:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    found: list[tuple[int, int]] = []
    map_file = torch.from_file

    def looked_at(name: str, **options: object) -> torch.Tensor:
        status = os.stat(name)  # noqa: PTH116
        found.append((status.st_size, status.st_blocks * 512))
        return map_file(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "from_file", looked_at)
    size = 2**24 + 2**22 + 12  # more than is written at a time, and no multiple of it
    tensor = DiskStorage(tmp_path).allocate((size // 4,), torch.float32, 0)
    assert tensor is not None
    assert [size] == [length for length, _ in found]
    assert found[0][1] >= size
    assert float(tensor[-1]) == 0


HOLDER = """
import sys, time
from pathlib import Path
import torch
from netgraft.training.cache_storage import DiskStorage
tensor = DiskStorage(Path(sys.argv[1])).allocate((1000, 3, 8, 8), torch.float32, 0)
tensor.fill_(1.0)
print("held", flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


# --- which storages there are


def test_storages_come_fastest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(cache_storage, "free_memory", lambda device: 4000 if device.type == "cuda" else 1000)
    assert storages(CPU, None, None) == [MemoryStorage(CPU, 500)]
    assert storages(CPU, None, tmp_path, sharing=4) == [MemoryStorage(CPU, 125), DiskStorage(tmp_path)]
    assert storages(cuda, None, tmp_path) == [MemoryStorage(cuda, 2000), MemoryStorage(CPU, 500), DiskStorage(tmp_path)]
    assert storages(CPU, 70, tmp_path, sharing=4) == [MemoryStorage(CPU, 70), DiskStorage(tmp_path)]
    assert storages(cuda, 0, None) == [MemoryStorage(cuda, 0), MemoryStorage(CPU, 0)]
    # each process has a device of its own, and main memory is everybody's
    assert storages(cuda, None, None, sharing=4) == [MemoryStorage(cuda, 2000), MemoryStorage(CPU, 125)]
