"""Names and paths of data sets -> images with labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from netgraft.data.image_files import (
    FolderFiles,
    ImageFiles,
    Partition,
    TarFiles,
    arrange,
    broken,
    is_tar,
)
from netgraft.data.image_set import (
    ArrayStore,
    DataSource,
    FileStore,
    ImageSet,
    ReaderStore,
    TorchvisionStore,
)
from netgraft.errors import RequestError

DATA_FOLDER = "NETGRAFT_DATA"  # environment variable

DIGITS_TRAIN = 1197


def data_root() -> Path:
    """Return the folder that ``NETGRAFT_DATA`` names, ``~/.cache/netgraft`` by default.

    Raises:
        RequestError: It lies in a home folder, and there is none.
    """
    return _expanded(os.environ.get(DATA_FOLDER) or "~/.cache/netgraft")


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(
            f"expected a home folder for {path}, got none; set HOME, or {DATA_FOLDER} to the folder of the data sets"
        ) from None


def open_data(spec: str, *, root: Path | None = None, download: bool = False, skip_broken: bool = False) -> DataSource:
    """Open a data set by its name or path.

    Classes are numbered in alphabetical order.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, ``cifar10-jpeg``, ``cifar100-q95``, ``tinyimagenet100``,
            ``imagenet1000``, ``imagenet``;
            ``timm:NAME`` for one that ``timm.data.create_dataset`` opens by the name ``torch/...`` or ``hfds/...``;
            or the path of a folder or a tar archive that holds ``train/`` beside ``test/``, ``val/`` or
            ``validation/``, or class folders, or images without classes, in folders or not.
        root: Where the data sets lie; ``data_root()`` by default.
        download: Whether ``cifar10``, ``cifar100`` and torchvision's sets may be fetched.
        skip_broken: Read every file of a folder or an archive once, and leave those out that hold no image; without it
            the first broken one that is asked for is refused.

    Returns:
        The training set, and the test set if there is one; images are read when they are asked for. Its ``remarks``
        count and name what was left out.

    Raises:
        RequestError: There is no such data set, or it is empty or unreadable.

    Examples:
        >>> source = open_data("digits")
        >>> len(source.train), len(source.test), source.train.classes
        (1197, 600, 10)
        >>> source.train.load(0).size, source.train.labels[0]
        ((8, 8), 0)
    """
    if spec in _NAMED:
        return _NAMED[spec](spec, root, download)
    if spec.startswith("timm:"):
        return _open_timm(spec.removeprefix("timm:"), root, download)
    path = _expanded(spec)
    try:
        kind = "folder" if path.is_dir() else "file" if path.is_file() else "other" if path.exists() else ""
    except OSError as error:
        raise RequestError(
            f"expected a folder or an archive of images, got {spec[:200]!r}: {error.strerror}; check the path"
        ) from None
    if kind == "folder":
        return _open_files(path.resolve().name, FolderFiles(path), skip_broken=skip_broken)
    if kind == "file" and is_tar(path):
        return _open_files(path.name.partition(".")[0], TarFiles(path), skip_broken=skip_broken)
    if kind:
        raise RequestError(
            f"expected a folder or a .tar, .tar.gz or .tgz archive of images, got {spec}; name one of these"
        )
    close = difflib.get_close_matches(spec, _NAMED, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise RequestError(
        f"expected a folder, a tar archive, timm:NAME or one of {', '.join(_NAMED)}, got {spec!r}, which does not "
        f"exist; {hint}check the name or path"
    )


def is_public(spec: str) -> bool:
    """Whether a data set's name says the same to others: it is none of a folder or an archive on this disk."""
    return spec in _NAMED or spec.startswith("timm:")


def open_all(location: str | Path, *, skip_broken: bool = False) -> DataSource:
    """Return all images in a folder and below, or in a tar archive, without classes; their names are relative to it.

    Args:
        location: Of the folder or archive.
        skip_broken: As in :func:`open_data`.

    Raises:
        RequestError: There is none, or it holds no image or can't be read.
    """
    path = _expanded(str(location))
    if not path.is_dir() and not (path.is_file() and is_tar(path)):
        raise RequestError(f"expected a folder or a tar archive of images, got {location}; check the path")
    files: ImageFiles = FolderFiles(path) if path.is_dir() else TarFiles(path)
    name = path.name or str(location)
    every = Partition(tuple(range(len(files.names))), None)
    damaged = _broken_among(files, every.positions) if skip_broken else set()
    images = _from_files(name, files, every.without(damaged), None)
    return DataSource(name, images, None, remarks=tuple(_left_out(name, files, damaged, len(files.names))))


def _open_digits(name: str, root: Path | None, download: bool) -> DataSource:
    """Open the 1,797 scanned digits, 8x8 pixels in 17 levels, that scikit-learn bundles.

    The first 1,197 train, the last 600 test: UCI lists the scans by writer, so other hands wrote the test set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype("uint8")
    labels = tuple(bunch.target.tolist())
    cut = DIGITS_TRAIN
    return DataSource(
        name,
        _from_arrays(f"{name}/train", pixels[:cut], labels[:cut], tuple("0123456789")),
        _from_arrays(f"{name}/test", pixels[cut:], labels[cut:], tuple("0123456789")),
        hflip=False,
        note="8x8 scans; the first 1,197 train, the last 600, by other writers, test",
    )


def _open_cifar(name: str, root: Path | None, download: bool) -> DataSource:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    root = root or data_root()
    try:
        train, test = (kind(str(root), train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError) as error:
        action = f"downloading it failed: {error}" if download else "add --download to fetch it"
        raise RequestError(f"expected {name} in {root}, got no intact copy; {action}") from None
    names = tuple(train.classes)
    return DataSource(
        name,
        _from_arrays(f"{name}/train", train.data, tuple(train.targets), names),
        _from_arrays(f"{name}/test", test.data, tuple(test.targets), names),
    )


def _open_archives(name: str, root: Path | None, download: bool) -> DataSource:
    archives, note = _ARCHIVES[name]
    root = root or data_root()
    sets: list[ImageSet] = []
    for part, archive in archives.items():
        path = root / archive
        if not path.is_file():
            raise RequestError(f"expected {path.name} in {root}, got no such file; set {DATA_FOLDER} to its folder")
        files = TarFiles(path)
        partition, _ = arrange(files.names)
        sets.append(_from_files(f"{name}/{part}", files, partition, sets[0].class_names if sets else None))
    return DataSource(name, sets[0], sets[1], note=note)


def _open_imagenet(name: str, root: Path | None, download: bool) -> DataSource:
    sets: list[ImageSet] = []
    root = root or data_root()
    for part in ("train", "val"):
        folder = root / name / part
        if not folder.is_dir():
            raise RequestError(f"expected the folder {folder}, got none; set {DATA_FOLDER} to the folder with {name}/")
        files = FolderFiles(folder)
        partition, _ = arrange(files.names)
        sets.append(_from_files(f"{name}/{part}", files, partition, sets[0].class_names if sets else None))
    return DataSource(name, sets[0], sets[1])


def _open_files(name: str, files: ImageFiles, *, skip_broken: bool) -> DataSource:
    train, evaluation = arrange(files.names)
    found = [*train.positions, *(evaluation.positions if evaluation else ())]
    damaged = _broken_among(files, found) if skip_broken else set()
    remarks = _left_out(name, files, damaged, len(found))
    if train.beside:
        folders = len({files.names[position].rpartition("/")[0] for position in train.positions})
        remarks.append(
            f"all {len(train.positions):,} images in {folders:,} folders of {name} are taken alike, for some lie "
            f"beside folders, such as {train.beside}"
        )
    train_set = _from_files(name if evaluation is None else f"{name}/train", files, train.without(damaged), None)
    test_set = None
    if evaluation is not None:
        test_set = _from_files(f"{name}/test", files, evaluation.without(damaged), train_set.class_names)
    return DataSource(name, train_set, test_set, remarks=tuple(remarks))


def _broken_among(files: ImageFiles, positions: Sequence[int]) -> set[int]:
    """Read the files at these positions; return those of the broken ones. Raises RequestError where all are."""
    damaged = set(broken(files, positions))
    if len(damaged) == len(positions):
        raise RequestError(
            f"expected images in {files.location}, got {len(positions):,} broken files; name another place"
        )
    return damaged


def _left_out(name: str, files: ImageFiles, damaged: Iterable[int], found: int) -> list[str]:
    """Count and name what is left out of a place in which ``found`` files would be taken."""
    count = found + len(files.unreadable)
    return [
        f"{len(names):,} of {count:,} images of {name} were left out{why}: {_listed(names)}"
        for names, why in (
            ([files.names[position] for position in sorted(damaged)], ", for they are broken"),
            (files.unreadable, ", for this installation can't read them (install pillow-heif)"),
        )
        if names
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED:,} more"


NAMED = 5
"""Files that a remark names."""


def _open_timm(name: str, root: Path | None, download: bool) -> DataSource:
    kind, _, which = name.partition("/")
    if kind not in {"torch", "hfds"} or which in {"folder", "image_folder"}:
        raise RequestError(
            f"expected timm:torch/NAME or timm:hfds/NAME, got timm:{name}, which is no data set with numbered images "
            "and partitions; give a folder by its path"
        )
    root = root or data_root()
    try:
        train = _from_timm(name, "train", root, download)
        test = None
        for split in ("validation", "test"):
            # Hugging Face raises a ValueError for a split that a data set doesn't have
            with suppress(ValueError):
                test = _from_timm(name, split, root, download)
                break
    # whatever the data set's own library raises
    except Exception as error:
        raise RequestError(
            f"expected a data set that timm opens, got timm:{name}: {error or type(error)}; check its name"
        ) from None
    # a mirrored digit or letter is another sign
    return DataSource(name, train, test, hflip=which not in {"mnist", "qmnist", "kmnist"})


def _from_timm(name: str, split: str, root: Path, download: bool) -> ImageSet:
    from timm.data import create_dataset

    dataset = create_dataset(name, root=str(root), split=split, download=download)
    reader = getattr(dataset, "reader", None)
    if reader is None:
        targets = getattr(dataset, "targets", None)
        labels = [dataset[i][1] for i in range(len(dataset))] if targets is None else targets
    elif hasattr(reader, "iter_targets"):
        labels = list(reader.iter_targets())
    else:
        labels = [reader[index][1] for index in range(len(reader))]
    numbers = tuple(int(label) for label in labels)
    store = TorchvisionStore(dataset) if reader is None else ReaderStore(reader, name)
    return ImageSet(f"{name}/{split}", len(numbers), store, numbers, max(numbers) + 1)


def _from_arrays(name: str, pixels: NDArray[Any], labels: tuple[int, ...], names: tuple[str, ...]) -> ImageSet:
    return ImageSet(name, len(labels), ArrayStore(pixels), labels, len(names), None, names)


def _from_files(name: str, files: ImageFiles, part: Partition, class_names: tuple[str, ...] | None) -> ImageSet:
    """Number the class folders, by the ``class_names`` of the training partition where it has some."""
    names = tuple(files.names[position] for position in part.positions)
    store = FileStore(files, part.positions)
    if part.folders is None:
        return ImageSet(name, len(names), store, names=names, beside=part.beside)
    class_names = class_names or tuple(sorted(set(part.folders)))
    number = {folder: index for index, folder in enumerate(class_names)}
    unknown = sorted(set(part.folders) - set(number))
    if unknown:
        raise RequestError(
            f"expected the class folders of the training set in {name}, got {unknown[0]!r} too; rename or remove it"
        )
    labels = tuple(number[folder] for folder in part.folders)
    return ImageSet(name, len(names), store, labels, len(class_names), names, class_names)


# partition to archive, the training one first
_ARCHIVES = {
    "cifar10-jpeg": (
        {"train": "cifar10-jpeg-train.tar.gz", "test": "cifar10-jpeg-test.tar.gz"},
        "CIFAR-10 encoded as JPEG, quality 75; not comparable with the lossless original",
    ),
    "cifar100-q95": (
        {"train": "cifar100-train.tar.gz", "test": "cifar100-test.tar.gz"},
        "CIFAR-100; training images encoded as JPEG, quality 95, test images lossless",
    ),
    "imagenet1000": (
        {"pool": "imagenet1000-pool.tar", "val": "imagenet1000-val1000.tar"},
        "one photograph of each class of ImageNet, and 1,000 of its validation images, which show 636 of the classes",
    ),
    "tinyimagenet100": (
        {"train": "tinyimagenet100-train.tar.gz", "val": "tinyimagenet100-val.tar.gz"},
        "100 classes of Tiny ImageNet",
    ),
}

_NAMED: dict[str, Callable[[str, Path | None, bool], DataSource]] = {
    "digits": _open_digits,
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    **dict.fromkeys(_ARCHIVES, _open_archives),
    "imagenet": _open_imagenet,
}
