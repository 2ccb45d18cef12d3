"""Checksums of files and folders, also of those that have no end."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from netgraft.errors import RequestError
from netgraft.files import (
    CHECKSUMS,
    check_checksums,
    check_seal,
    remove_temporaries,
    seal_archive,
    write_checksums,
    write_text,
)
from netgraft.training.checkpoint import Checkpoint
from netgraft.training.metrics_log import MetricsLog

ADVICE = "do something about it"


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "endless": endless,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "to nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_text("first")
    (tmp_path / "b").write_text("second")
    write_checksums(tmp_path, ["b", "a"])
    return tmp_path


def test_checksums_are_lines_of_a_digest_and_a_name(folder: Path) -> None:
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in ("first", "second")]
    assert (folder / CHECKSUMS).read_text() == f"{digests[0]}  a\n{digests[1]}  b\n"
    check_checksums(folder, ["a", "b"], advice=ADVICE)
    check_checksums(folder, [], advice=ADVICE)
    with pytest.raises(
        RequestError, match=r"SHA256SUMS is damaged: .*; do something about it, or remove .*SHA256SUMS if"
    ):
        check_checksums(folder, ["c"], advice=ADVICE)
    (folder / CHECKSUMS).unlink()
    check_checksums(folder, ["c"], advice=ADVICE)


def test_another_content_is_named(folder: Path) -> None:
    (folder / "b").write_text("Second")
    with pytest.raises(RequestError, match=r"/b is damaged: expected SHA-256 [0-9a-f]{12}, got [0-9a-f]{12}; do some"):
        check_checksums(folder, ["a"], advice=ADVICE)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["a", CHECKSUMS])
def test_what_is_no_file_is_not_read(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    ODD[kind](folder / name)
    with pytest.raises(RequestError, match=r"is damaged: .*; do something about it, or remove ") as refusal:
        check_checksums(folder, ["a", "b"], advice=ADVICE)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_checkpoint_or_metrics_that_are_no_file_are_not_read(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "odd")
    with pytest.raises(RequestError, match="is no checkpoint of netgraft, or a damaged one: expected a file"):
        Checkpoint.load(tmp_path / "odd", "f")
    with pytest.raises(RequestError, match="odd is damaged: expected a file"):
        MetricsLog(tmp_path / "odd").rewind(0, 0)


def test_long_checksums_are_not_read(folder: Path) -> None:
    with (folder / CHECKSUMS).open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(RequestError, match="expected a short file"):
        check_checksums(folder, ["a"], advice=ADVICE)


def test_a_seal_is_the_comment_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name", "content")
    with pytest.raises(ValueError, match="expected its SHA-256 at the end, got none"):
        check_seal(path)
    seal_archive(path)
    check_seal(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("name") == b"content"
        assert archive.comment == b"sha256:" + hashlib.sha256(path.read_bytes()[:-71]).hexdigest().encode()
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match="got none"):
        check_seal(path)


def test_a_file_that_was_being_written_when_its_process_died_is_removed_a_day_later(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "first")
    dead, alive, other = (tmp_path / name for name in (".a.01.tmp", ".a.02.tmp", ".b.03.tmp"))
    for path in (dead, alive, other):
        path.write_text("half")
    yesterday = time.time() - 25 * 3600
    os.utime(dead, (yesterday, yesterday))
    os.utime(other, (yesterday, yesterday))
    write_text(tmp_path / "a", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.02.tmp", ".b.03.tmp", "a"]
    remove_temporaries(tmp_path.parent)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "second"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("a" * 255, "\N{SNOWMAN}" * 85):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
