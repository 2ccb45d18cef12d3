"""Folders and tar archives of images, whole and damaged."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from netgraft.data.image_files import TarFiles, readable_suffixes
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from tests.support.image_data import content, levels, write_files


def write_tar(path: Path, names: Iterable[str], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for value, name in enumerate(names):
            data = content(value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_images_beside_folders_and_all_in_these_belong_together(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/0.png", "b/0.png", "b/deeper/1.png", "stray.png"])
    source = open_data(str(tmp_path))
    assert (len(source.train), source.train.labels, source.train.class_names) == (4, None, None)
    [remark] = source.remarks
    assert "all 4 images in 4 folders of" in remark
    assert remark.endswith("such as stray.png")
    with pytest.raises(
        RequestError, match=r"no class folders \(images such as stray\.png lie beside its folders\), so"
    ):
        source.train_labels("so that is that")
    # in train/ and test/ each part for itself
    split = tmp_path / "split"
    write_files(split, ["train/a/0.png", "train/0.png", "test/a/0.png", "test/b/0.png"])
    opened = open_data(str(split))
    assert opened.train.labels is None
    assert opened.test is not None
    assert opened.test.labels == (0, 1)


def test_broken_files_are_named_and_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    write_files(tmp_path / "folder", [f"{kind}/{number}.png" for kind in "ab" for number in range(4)])
    for name in ("a/1.png", "b/3.png"):
        (tmp_path / "folder" / name).write_bytes(b"no image")
    (tmp_path / "folder" / "b" / "2.png").write_bytes(content(1)[:40])
    with pytest.raises(
        RequestError, match=r"expected an image in .*a/1\.png, got: no known .*or leave broken ones out"
    ):
        open_data(str(tmp_path / "folder")).train.load(1)
    with tarfile.open(tmp_path / "same.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "folder", "folder")
    for path in ("folder", "same.tar.gz"):
        source = open_data(str(tmp_path / path), skip_broken=True)
        assert source.train.names is not None
        kept = [name.removeprefix("folder/") for name in source.train.names]
        assert kept == ["a/0.png", "a/2.png", "a/3.png", "b/0.png", "b/1.png"]
        assert source.train.labels == (0, 0, 0, 1, 1)
        assert len(source.train.load_many(range(5))) == 5
        [remark] = source.remarks
        assert "3 of 8 images of" in remark
        assert re.search(r"broken: (folder/)?a/1\.png, (folder/)?b/2\.png, (folder/)?b/3\.png$", remark)
    write_files(tmp_path / "all", ["0.png"])
    (tmp_path / "all" / "0.png").write_bytes(b"")
    with pytest.raises(RequestError, match=r"expected images in .*all, got 1 broken files; name another place"):
        open_data(str(tmp_path / "all"), skip_broken=True)


def test_of_a_moving_picture_the_first_frame_is_seen(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 6), level) for level in (10, 200, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    [image] = open_data(str(tmp_path)).train.load_many([0])
    assert np.array(image.convert("L")).tolist() == [[10] * 6] * 6


def test_formats_that_can_not_be_read_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    readable_suffixes.cache_clear()
    try:
        write_files(tmp_path, ["a/0.png", "b/0.png"])
        for name in ("a/1.heic", "b/2.HEIF"):
            (tmp_path / name).write_bytes(b"whatever")
        source = open_data(str(tmp_path))
        assert source.train.labels == (0, 1)
        [remark] = source.remarks
        assert "2 of 4 images" in remark
        assert remark.endswith("can't read them (install pillow-heif): a/1.heic, b/2.HEIF")
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "1.heic").write_bytes(b"whatever")
        with pytest.raises(RequestError, match=r"got 1 that this installation can't read, such as 1\.heic; install"):
            open_data(str(tmp_path / "only"))
    finally:
        readable_suffixes.cache_clear()


def test_heic_is_read_where_its_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in registers itself with Pillow as the package does."""
    registered: list[str] = []
    stand_in: Any = types.ModuleType("pillow_heif")
    stand_in.register_heif_opener = lambda: registered.append("heif")
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    readable_suffixes.cache_clear()
    try:
        (tmp_path / "1.heic").write_bytes(content(7))
        assert levels(open_data(str(tmp_path))) == [7]
        assert registered == ["heif"]
    finally:
        readable_suffixes.cache_clear()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_by_pillow(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.avif")
    [image] = open_data(str(tmp_path)).train.load_many([0])
    assert np.abs(np.array(image.convert("RGB")).astype(int) - (200, 100, 50)).max() < 8


@pytest.mark.parametrize("prefix", ["", "./", "data/", "./some/data/", "train/"])
@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_tar_of_class_folders(tmp_path: Path, prefix: str, suffix: str, mode: str) -> None:
    names = [f"{prefix}{name}" for name in ("b/1.png", "a/0.JPG", "b/0.png", "a/._0.png", "b/readme.md")]
    source = open_data(str(write_tar(tmp_path / f"pets.{suffix}", names, mode)))
    assert source.name.startswith("pets")
    assert source.train.labels == (0, 1, 1)
    assert levels(source) == [1, 2, 0]
    assert int(np.array(source.train.load(2)).max()) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"pets.{suffix}"]


def test_tar_with_partitions_and_with_hostile_names(tmp_path: Path) -> None:
    names = ["train/a/0.png", "train/b/0.png", "val/b/0.png"]
    source = open_data(str(write_tar(tmp_path / "data.tar", names, "w")))
    assert source.test is not None
    assert source.test.labels == (1,)
    hostile = write_tar(tmp_path / "hostile.tar", ["../../a/0.png", "/b/0.png"], "w")
    open_data(str(hostile)).train.load(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.tar", "hostile.tar"]


def test_large_compressed_tar_is_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"c{index % 3}/{index:02}.png" for index in range(30)]
    path = write_tar(tmp_path / "large.tar.gz", sorted(names), "w:gz")
    files = TarFiles(path, kept_in_memory=0)
    values = {name: content(value) for value, name in enumerate(sorted(names))}
    opened = []
    original: Any = tarfile.open

    def counted(*given: Any, **options: Any) -> tarfile.TarFile:
        opened.append(given)
        return original(*given, **options)

    monkeypatch.setattr(tarfile, "open", counted)
    for start in range(0, 30, 7):
        part = range(start, min(start + 7, 30))
        assert files.read(part) == [values[files.names[position]] for position in part]
    assert len(opened) == 1
    assert files.read([25, 3, 3]) == [values[files.names[position]] for position in (25, 3, 3)]
    assert len(opened) == 2
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read([4]) == [values[files.names[4]]]


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz")])
def test_damaged_archives_are_refused(tmp_path: Path, suffix: str, mode: str) -> None:
    path = write_tar(tmp_path / f"data.{suffix}", [f"a/{index}.png" for index in range(40)], mode)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 3], b"", b"no archive" * 200, gzip.compress(b"no archive" * 200)):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=rf"data\.{suffix}"):
            open_data(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM"])
@pytest.mark.parametrize("archive", [False, True])
def test_a_broken_image_is_named(tmp_path: Path, kind: str, archive: bool) -> None:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    whole = content(7, kind)
    for number, data in enumerate((whole, whole[: len(whole) * 2 // 3], b"<html>", b"")):
        (folder / "a" / f"{number}.{kind.lower()}").write_bytes(data)
    if archive:
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            tar.add(folder / "a", "a")
    images = open_data(str(tmp_path / "data.tar" if archive else folder)).train
    assert images.load(0).size == (6, 5)
    for number in (1, 2, 3):
        with pytest.raises(RequestError, match=rf"a/{number}\.{kind.lower()}"):
            images.load(number)


def test_a_tiff_whose_offsets_are_fractions_is_named(tmp_path: Path) -> None:
    data = bytearray(content(7, "TIFF", "L"))
    (entries,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, entries)
    places = [entries + 2 + 12 * number for number in range(count)]
    (strips,) = [place for place in places if struct.unpack_from("<H", data, place) == (273,)]
    struct.pack_into("<HIf", data, strips + 2, 11, 1, 8.5)  # a float, of which there is one
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(
        RequestError, match=r"expected an image in .*a\.tif, got: .*; repair or remove the file"
    ) as said:
        open_data(str(tmp_path)).train.load(0)
    assert "\n" not in str(said.value)


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("none")
    with pytest.raises(RequestError, match="got none"):
        open_data(str(tmp_path))
    with pytest.raises(RequestError, match="expected a folder or a"):
        open_data(str(tmp_path / "a" / "notes.txt"))
    with pytest.raises(RequestError, match="does not exist"):
        open_data(str(tmp_path / "missing"))
    write_tar(tmp_path / "empty.tar", [], "w")
    with pytest.raises(RequestError, match="got none"):
        open_data(str(tmp_path / "empty.tar"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is readable for root")
def test_unreadable_folder_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/0.png", "b/0.png"])
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(RequestError, match="readable folder"):
            open_data(str(tmp_path))
    finally:
        (tmp_path / "b").chmod(0o700)
