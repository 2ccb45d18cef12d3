"""Data sets by name and path, on generated files, the bundled digits and the real archives."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform

from netgraft.data.image_files import TarFiles
from netgraft.data.image_set import DataSource
from netgraft.data.loader import eval_loader
from netgraft.data.sources import open_data
from netgraft.errors import RequestError

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.49, 0.48, 0.45),
    "std": (0.25, 0.24, 0.26),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def content(value: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Return an encoded image whose pixels all have the grey level `value`."""
    stream = io.BytesIO()
    Image.new("L", (6, 5), value).convert(mode).save(stream, kind)
    return stream.getvalue()


def write_files(folder: Path, names: Iterable[str]) -> Path:
    """Write an image a name; its grey level is its place in the list."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(value))
    return folder


def write_tar(path: Path, names: Iterable[str], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for value, name in enumerate(names):
            data = content(value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def levels(source: DataSource) -> list[int]:
    """Return the grey level of each training image."""
    return [int(np.array(image).max()) for image in source.train.load_many(range(len(source.train)))]


def test_class_folders_are_numbered_in_alphabetical_order(tmp_path: Path) -> None:
    names = [
        "zebra/b.PNG",
        "zebra/a.jpeg",
        "ant/deep/c.png",
        "ant/d.WebP",
        "ant/.hidden.png",
        ".git/e.png",
        "ant/no.txt",
    ]
    source = open_data(str(write_files(tmp_path / "animals", names)))
    assert source.name == "animals"
    assert source.train.names == ("ant/d.WebP", "ant/deep/c.png", "zebra/a.jpeg", "zebra/b.PNG")
    assert source.train.labels == (0, 0, 1, 1)
    assert source.train.class_names == ("ant", "zebra")
    assert (source.train.classes, len(source.train), source.test) == (2, 4, None)
    assert source.test_or_all() is source.train
    assert levels(source) == [3, 2, 1, 0]
    with pytest.raises(IndexError):
        source.train.load(4)
    with pytest.raises(IndexError):
        source.train.load(-1)


@pytest.mark.parametrize("evaluation", ["val", "test", "validation"])
def test_partitions(tmp_path: Path, evaluation: str) -> None:
    names = ["train/b/0.png", "train/a/0.png", "train/c/0.png", f"{evaluation}/c/0.png", "extra/x.png"]
    source = open_data(str(write_files(tmp_path / "data", names)))
    assert source.train.labels == (0, 1, 2)
    assert source.test is not None
    # numbered as in training although only one class is there
    assert (source.test.labels, source.test.classes) == ((2,), 3)
    assert source.test_or_all() is source.test
    assert int(np.array(source.test.load(0)).max()) == 3


def test_test_folder_without_classes_gives_way_to_a_labelled_one(tmp_path: Path) -> None:
    source = open_data(str(write_files(tmp_path, ["train/a/0.png", "train/b/0.png", "test/0.png", "val/b/1.png"])))
    assert source.test is not None
    assert source.test.labels == (1,)


def test_unknown_test_class_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["train/a/0.png", "train/b/0.png", "val/other/0.png"])
    with pytest.raises(RequestError, match="'other'"):
        open_data(str(tmp_path))


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = open_data(str(write_files(tmp_path / "photos", ["b.jpg", "a.png", "notes.txt"])))
    assert source.train.names == ("a.png", "b.jpg")
    assert (source.train.labels, source.train.classes) == (None, None)
    assert levels(source) == [1, 0]
    [(_, labels)] = eval_loader(source.train, CONFIG)
    assert labels.tolist() == [-1, -1]


def test_unlabelled_training_folder_beside_a_labelled_test_folder(tmp_path: Path) -> None:
    source = open_data(str(write_files(tmp_path, ["train/0.png", "train/1.png", "val/b/0.png", "val/a/0.png"])))
    assert source.train.labels is None
    assert len(source.train) == 2
    assert source.test is not None
    assert source.test.labels == (0, 1)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/0.png", "b/0.png", "stray.png"])
    with pytest.raises(RequestError, match=r"got both \(such as stray\.png\)"):
        open_data(str(tmp_path))


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

    def counted(*given: Any) -> tarfile.TarFile:
        opened.append(given)
        return original(*given)

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


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1", "RGBA"])
def test_images_keep_their_mode_and_the_loader_converts(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(content(255, mode=mode))
    images = open_data(str(tmp_path)).train
    assert images.load(0).mode == mode
    [(batch, _)] = eval_loader(images, CONFIG)
    expected = (1 - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    assert torch.allclose(batch, expected.view(1, 3, 1, 1).expand(1, 3, 32, 32), atol=1e-5)
    grey = {**CONFIG, "input_size": (1, 32, 32), "mean": (0.0,), "std": (1.0,)}
    [(batch, _)] = eval_loader(images, grey)
    assert torch.equal(batch, torch.ones(1, 1, 32, 32))


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


def test_unknown_names_get_the_list_and_a_close_one() -> None:
    with pytest.raises(RequestError, match=r"digits, cifar10, cifar100.*did you mean cifar10-jpeg\?"):
        open_data("cifar10-jpg")
    with pytest.raises(RequestError, match="check the name or path") as caught:
        open_data("qqqqqq")
    assert "did you mean" not in str(caught.value)


def test_digits_are_the_bundled_scans() -> None:
    source = open_data("digits")
    bunch = load_digits()
    assert source.test is not None
    assert (len(source.train), len(source.test), source.hflip) == (1197, 600, False)
    assert source.train.labels == tuple(bunch.target[:1197])
    assert source.test.labels == tuple(bunch.target[1197:])
    for images, scans in ((source.train, bunch.images[:1197]), (source.test, bunch.images[1197:])):
        for index in (0, 7, len(images) - 1):
            image = images.load(index)
            assert image.mode == "L"
            assert np.array_equal(np.array(image), np.round(scans[index] * 255 / 16))


@pytest.mark.parametrize("spec", ["cifar10", "cifar100", "imagenet", "cifar10-jpeg", "tinyimagenet100"])
def test_absent_data_sets_say_what_to_do(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETGRAFT_DATA", str(tmp_path))
    advice = "add --download" if spec in {"cifar10", "cifar100"} else "set NETGRAFT_DATA"
    with pytest.raises(RequestError, match=advice) as caught:
        open_data(spec)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write a CIFAR-10 of two images a file in the original format; the images are returned."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *given: True)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    for number, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        entry = {"data": pixels[number].reshape(2, -1), "labels": [number, 9 - number]}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return pixels


@pytest.mark.parametrize("spec", ["cifar10", "timm:torch/cifar10"])
def test_cifar10_in_its_original_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    source = open_data(spec, root=tmp_path)
    assert source.test is not None
    assert source.train.labels == (0, 9, 1, 8, 2, 7, 3, 6, 4, 5)
    assert (source.test.labels, source.train.classes, source.hflip) == ((5, 4), 10, True)
    assert np.array_equal(np.array(source.train.load(3)), pixels[1, 1].transpose(1, 2, 0))
    assert np.array_equal(np.array(source.test.load(0)), pixels[5, 0].transpose(1, 2, 0))


def test_imagenet_lies_in_two_folders(tmp_path: Path) -> None:
    write_files(tmp_path, [f"imagenet/{part}/n{number}/x.JPEG" for part in ("train", "val") for number in (2, 1)])
    source = open_data("imagenet", root=tmp_path)
    assert source.test is not None
    assert source.test.class_names == ("n1", "n2")
    assert int(np.array(source.test.load(0)).max()) == 3


def test_timm_reader_in_the_place_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, ["train/a/0.png", "train/b/0.png", "test/b/0.png"])
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"broken")
    original = timm.data.create_dataset

    def create(name: str, root: str, split: str, download: bool) -> Any:
        if split == "validation":
            raise ValueError('Unknown split "validation". Should be one of ["train", "test"].')
        return original("", root=f"{root}/{split}", split=split)

    monkeypatch.setattr(timm.data, "create_dataset", create)
    source = open_data("timm:hfds/owner/name", root=tmp_path)
    assert source.train.labels == (0, 1, 1)
    assert int(np.array(source.train.load(1)).max()) == 1
    assert source.test is not None
    assert len(source.test) == 1
    with pytest.raises(RequestError, match="hfds/owner/name, image 2"):
        source.train.load(2)


@pytest.mark.parametrize("name", ["folder", "tfds/mnist", "torch/folder", "torch/nothing", "torch/mnist"])
def test_timm_data_sets_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"got timm:{name}"):
        open_data(f"timm:{name}", root=tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_timms_evaluation_images_in_order(tmp_path: Path, workers: int) -> None:
    generator = np.random.default_rng(0)
    originals = [generator.integers(0, 256, (40 + n, 50, 3), dtype=np.uint8) for n in range(5)]
    for number, pixels in enumerate(originals):
        folder = tmp_path / f"c{number // 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    batches = list(eval_loader(open_data(str(tmp_path)).train, CONFIG, batch_size=2, workers=workers))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    transform = create_transform(**CONFIG)
    expected = torch.stack([transform(Image.fromarray(pixels)) for pixels in originals])
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1, 1, 2]


def test_data_config_of_other_channels_is_refused() -> None:
    with pytest.raises(RequestError, match="as channels, 1, got 3 and 3"):
        eval_loader(open_data("digits").train, {**CONFIG, "input_size": (1, 8, 8)})


def test_cifar10_jpeg(shared_data: Path) -> None:
    source = open_data("cifar10-jpeg", root=shared_data)
    assert source.test is not None
    assert Counter(source.train.labels) == dict.fromkeys(range(10), 5000)
    assert Counter(source.test.labels) == dict.fromkeys(range(10), 1000)
    assert source.train.names is not None
    assert list(source.train.names) == sorted(source.train.names)
    assert source.train.class_names is not None
    assert source.train.class_names[::9] == ("airplane", "truck")
    assert source.train.load(0).size == (32, 32)
    # mean and standard deviation of the originals; JPEG moves them little
    sample = source.train.load_many(range(0, 50_000, 50))
    pixels = np.stack([np.array(image) for image in sample]) / 255
    assert np.allclose(pixels.mean((0, 1, 2)), (0.4914, 0.4822, 0.4465), atol=0.015)
    assert np.allclose(pixels.std((0, 1, 2)), (0.2470, 0.2435, 0.2616), atol=0.015)


def test_tinyimagenet100(shared_data: Path) -> None:
    source = open_data("tinyimagenet100", root=shared_data)
    assert source.test is not None
    assert Counter(source.train.labels) == dict.fromkeys(range(100), 500)
    assert Counter(source.test.labels) == dict.fromkeys(range(100), 50)
    grey = [index for index, image in enumerate(source.test.load_many(range(5000))) if image.mode == "L"]
    assert 0.005 < len(grey) / 5000 < 0.03
    source_labels = source.test.labels
    assert source_labels is not None
    config = {**CONFIG, "input_size": (3, 64, 64), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    batch, label = eval_loader(source.test, config).dataset[grey[0]]
    expected = torch.from_numpy(np.array(source.test.load(grey[0]))) / 255
    assert torch.equal(batch, expected.expand(3, 64, 64))
    assert label == source_labels[grey[0]]
