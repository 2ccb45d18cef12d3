"""Data sets by name and path, on generated files, the bundled digits and the real archives."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from sklearn.datasets import load_digits

from netgraft.data.loader import eval_loader
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from tests.support.image_data import CONFIG, levels, write_files


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
