"""What would never end, or fill the memory, is refused: pipes, devices, links in circles, bombs, headers that lie."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import resource
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netgraft.data import image_files
from netgraft.data.image_files import FolderFiles, TarFiles, arrange
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from tests.support.image_data import content, write_files

SECONDS = 120.0
"""Far more than any refusal takes, far less than what is refused would."""


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Let a test that waits for ever, or fills the memory, fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, before[1]))
    began = time.monotonic()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - began < SECONDS


def within_time(action: Callable[[], object]) -> BaseException | None:
    """Return what an action raised; a thread, as a signal would not interrupt all waiting."""
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it doesn't end"
    return raised[0] if raised else None


def refused(path: Path, *words: str) -> None:
    error = within_time(lambda: open_data(str(path)).train.load(0))
    assert isinstance(error, RequestError), error
    said = str(error)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert said.startswith("expected ")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_pipe, "a pipe"),
        (make_socket, "a pipe, socket"),
        (link_to("/dev/zero"), "device"),
        (link_to("/dev/stdin"), "image"),
        (link_to("nowhere"), "a link to nothing"),
        (link_to("z.png"), "symbolic links"),
    ],
)
def test_what_only_has_the_name_of_an_image_is_refused(
    tmp_path: Path, make: Callable[[Path], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    write_files(tmp_path / "d", ["a/0.png"])
    make(Path("d/a/z.png"))
    refused(Path("d"), "z.png", what)


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write_files(tmp_path / "real", ["a/0.png", "b/0.png"])
    (tmp_path / "data").mkdir()
    for name in ("a", "c"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / "a")
    (tmp_path / "data" / "b").mkdir()
    (tmp_path / "data" / "b" / "0.png").symlink_to(tmp_path / "real" / "b" / "0.png")
    assert FolderFiles(tmp_path / "data").names == ("a/0.png", "b/0.png", "c/0.png")


@pytest.mark.parametrize("links", [1, 12])
def test_links_to_folders_above_are_refused(tmp_path: Path, links: int) -> None:
    write_files(tmp_path, ["a/0.png"])
    for number in range(links):
        (tmp_path / "a" / f"again{number}").symlink_to(tmp_path)
    refused(tmp_path, "a link to a folder above it")


def test_links_that_double_at_each_level_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_FOLDERS", 1000)
    folders = [tmp_path / "data", *(tmp_path / f"level{number}" for number in range(20))]
    for folder in folders:
        folder.mkdir()
    for folder, deeper in itertools.pairwise(folders):
        for name in ("left", "right"):
            (folder / name).symlink_to(deeper)
    refused(tmp_path / "data", "more than 1,000 folders")


def test_a_huge_file_with_the_name_of_an_image_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**42)
    refused(tmp_path, "a.png", "4,096.0 GiB")


@pytest.mark.parametrize("name", ["x" * 5000, "d/" * 3000, "x\0y", "~nobody-of-this-name/x", "x" * 300 + ".tar"])
def test_paths_that_no_system_opens_are_refused(name: str) -> None:
    error = within_time(lambda: open_data(name))
    assert isinstance(error, RequestError)


def test_a_pipe_as_archive_is_refused(tmp_path: Path) -> None:
    make_pipe(tmp_path / "data.tar")
    refused(tmp_path / "data.tar", "a folder or a .tar")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a member's header of 512 bytes; sizes that no octal digits hold in base 256, as GNU writes them."""
    member = tarfile.TarInfo(name)
    member.type = kind
    plain = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    plain[124:136] = bytes([0xFF if size < 0 else 0x80, *(size & (2**88 - 1)).to_bytes(11, "big")])
    plain[148:156] = b" " * 8
    plain[148:156] = f"{sum(plain[:512]):06o}\0 ".encode()
    return bytes(plain[:512])


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(number: int) -> bytes:
    record = b"18 comment=" + f"{number:06}".encode() + b"\n"
    return header("p", len(record), tarfile.XHDTYPE) + padded(record)


IMAGE = content(3)

FIRST = header("a/0.png", len(IMAGE)) + padded(IMAGE)

HOSTILE = {
    "deep-name": FIRST + header("n", 900_000, tarfile.GNUTYPE_LONGNAME) + padded(b"a/" * 449_997 + b"0.png\0") + FIRST,
    "no-tar": b"no archive at all" * 99,
    "negative": FIRST + header("a/1.png", -512) + FIRST,
    "negative-back-to-itself": FIRST + header("a/1.png", -1024) + bytes(1024),
    "negative-first": header("a/1.png", -512) + FIRST,
    "negative-folder": FIRST + header("a/b", -1024, b"Z") + FIRST,
    "absurd": FIRST + header("a/1.png", 2**62) + FIRST,
    "more-absurd": FIRST + header("a/1.png", 2**80) + FIRST,
    "larger-than-the-archive": FIRST + header("a/1.png", 2**33) + FIRST,
    "absurd-of-no-image": FIRST + header("a/readme", 2**62) + FIRST,
    "absurd-of-an-unknown-kind": FIRST + header("a/x", 2**62, b"Z") + FIRST,
    "absurd-long-name": FIRST + header("n", 2**40, tarfile.GNUTYPE_LONGNAME) + FIRST,
    "absurd-pax": FIRST + header("n", 2**40, tarfile.XHDTYPE) + FIRST,
    "negative-pax": FIRST + header("n", -512, tarfile.XHDTYPE) + FIRST,
    "5000-pax": FIRST + b"".join(map(pax, range(5000))) + FIRST,
    "pax-of-negative-size": FIRST + header("p", 12, tarfile.XHDTYPE) + padded(b"12 size=-9\n\0") + FIRST,
    "pax-of-absurd-size": FIRST + header("p", 28, tarfile.XHDTYPE) + padded(b"28 size=9999999999999999999\n") + FIRST,
    "pax-of-no-number": FIRST
    + header("p", 30, tarfile.XHDTYPE)
    + padded(b"30 GNU.sparse.size=1e999999999\n"[:30])
    + FIRST,
    "sparse-of-absurd-size": FIRST
    + header("p", 33, tarfile.XHDTYPE)
    + padded(b"33 GNU.sparse.realsize=9999999999\n"[:33])
    + FIRST,
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_archives_whose_headers_lie_are_refused_or_read(
    tmp_path: Path, kind: str, compressed: bool, kept: bool
) -> None:
    path = tmp_path / ("data.tar.gz" if compressed else "data.tar")
    whole = HOSTILE[kind] + bytes(1024)
    path.write_bytes(gzip.compress(whole) if compressed else whole)
    error = within_time(lambda: TarFiles(path, kept_in_memory=2**20 if kept else 0).read([0]))
    if kind in {"pax-of-no-number", "sparse-of-absurd-size"}:
        assert error is None or isinstance(error, RequestError)
        return
    assert isinstance(error, RequestError), error
    assert "expected a whole tar archive" in str(error)
    assert "\n" not in str(error)
    assert path.name in str(error)


def bomb(path: Path, head: bytes, size: int) -> None:
    """Write a gzip of ``head`` and then zeros: a thousandth of their size."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(size // 2**24):
            file.write(bytes(2**24))


@pytest.mark.parametrize("name", ["a/0.png", "a/readme"])
def test_a_small_gzip_of_something_huge_is_refused_before_it_is_unpacked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "UNPACKED_IN_MEMORY", 2**24)
    bomb(tmp_path / "data.tar.gz", FIRST + header(name, 2**27), 2**27)
    assert (tmp_path / "data.tar.gz").stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "data.tar.gz", "134,217,728 bytes, which can't be")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # in KiB


def test_many_small_files_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "UNPACKED_IN_MEMORY", 2**22)
    with gzip.open(tmp_path / "data.tar.gz", "wb") as file:
        for number in range(2**12):
            file.write(header(f"a/{number}.png", 2048) + bytes(2048))
    assert image_files.LARGEST_RATIO * (tmp_path / "data.tar.gz").stat().st_size < 2**12 * 2560
    refused(tmp_path / "data.tar.gz", "which can't be")


def test_a_compressed_archive_too_large_for_the_memory_is_read_from_front_to_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(9):
            member = tarfile.TarInfo(f"a/{number}.png")
            data = content(number)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    whole = stream.getvalue()
    # gzip's members may follow one another, with zeros between them
    path = tmp_path / "data.tar.gz"
    path.write_bytes(gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]) + bytes(512))
    assert TarFiles(path).read(range(9)) == [content(number) for number in range(9)]
    path.write_bytes(gzip.compress(whole))
    monkeypatch.setattr(image_files, "UNPACKED_IN_MEMORY", len(whole) - 1)
    monkeypatch.setattr(image_files, "LARGEST_RATIO", 1000)
    assert TarFiles(path).read(range(9)) == [content(number) for number in range(9)]


def test_many_deep_folders_that_hold_everything_are_skipped_in_time() -> None:
    names = [f"{'a/' * 1500}{label}/{number}.png" for number in range(600) for label in "xy"]
    partition, evaluation = arrange(names)
    assert evaluation is None
    assert partition.folders == ("x", "y") * 600
