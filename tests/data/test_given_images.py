"""Images as people have them: whatever holds the same pixels gives the same pictures; the rest is refused by type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from netgraft.data.given_images import pictures
from netgraft.data.sources import open_data
from netgraft.errors import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)

LABELS = [2, 0, 1, 1, 2]


def tensors() -> Tensor:
    return torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Pairs(Dataset[Any]):
    """As torchvision's data sets: an image and its class."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], LABELS[index]


class Rows:
    """As Hugging Face's data sets, which don't derive from torch's."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Image.fromarray(PIXELS[index]), "label": LABELS[index]}


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(tensors())


def pil() -> list[Image.Image]:
    return [Image.fromarray(each) for each in PIXELS]


def files(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(len(PIXELS))]
    for path, image in zip(paths, pil(), strict=True):
        image.save(path)
    return paths


def in_float(values: Tensor) -> Tensor:
    return values.float() / 255


GIVEN: dict[str, Any] = {
    "PIL images": pil,
    "a tuple": lambda: tuple(pil()),
    "arrays": lambda: list(PIXELS),
    "a batch of arrays": lambda: PIXELS,
    "tensors": lambda: list(tensors()),
    "a batch of tensors": tensors,
    "floats": lambda: in_float(tensors()),
    "arrays of floats": lambda: PIXELS / 255,
    "halves of a batch": lambda: [tensors()[:2], tensors()[2:]],
    "channels last in memory": lambda: tensors().contiguous(memory_format=torch.channels_last),
    "a TensorDataset": lambda: TensorDataset(tensors()),
    "a loader of one": lambda: DataLoader(TensorDataset(tensors()), batch_size=2),
    "a stream": Stream,
    "a loader of a stream": lambda: DataLoader(Stream(), batch_size=2),
}

LABELED: dict[str, Any] = {
    "pairs": lambda: Pairs(pil()),
    "pairs of tensors": lambda: Pairs(in_float(tensors())),
    "a loader of pairs": lambda: DataLoader(Pairs(tensors()), batch_size=2),
    "a TensorDataset": lambda: TensorDataset(tensors(), torch.tensor(LABELS)),
    "rows": Rows,
    "a loader of rows": lambda: DataLoader(
        [{"pixel_values": image, "labels": label} for image, label in zip(tensors(), LABELS, strict=True)],  # type: ignore[arg-type]
        batch_size=3,
    ),
}


def check(found: Sequence[Image.Image]) -> None:
    assert {image.mode for image in found} == {"RGB"}
    assert np.array_equal(np.stack([np.asarray(image) for image in found]), PIXELS)


@pytest.mark.parametrize("name", GIVEN)
def test_the_same_pixels_are_the_same_pictures(name: str) -> None:
    found, labels = pictures(GIVEN[name]())
    check(found)
    assert labels is None


@pytest.mark.parametrize("name", LABELED)
def test_labels_come_along(name: str) -> None:
    found, labels = pictures(LABELED[name]())
    check(found)
    assert labels == LABELS


def test_paths_folders_and_archives(tmp_path: Path) -> None:
    paths = files(tmp_path)
    for given in (paths, [str(path) for path in paths], tmp_path, str(tmp_path), Pairs(paths)):
        check(pictures(given)[0])
    inside = tmp_path / "deep"
    (inside / "a").mkdir(parents=True)
    (inside / "b" / "c").mkdir(parents=True)
    for number, path in enumerate(paths):
        path.rename(inside / ("a" if number < 2 else "b/c") / path.name)
    found, labels = pictures(inside)
    check(found)
    assert labels is None  # positions among folders are no positions among a model's classes


def test_grey_and_transparent_ones_keep_their_channels() -> None:
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        [image, _] = pictures(torch.full((2, channels, 4, 5), 9, dtype=torch.uint8))[0]
        assert (image.mode, image.size) == (mode, (5, 4))
    assert [image.mode for image in pictures([np.zeros((4, 5), np.uint8)])[0]] == ["L"]


def test_an_image_set_gives_its_labels() -> None:
    digits = open_data("digits").test
    assert digits is not None
    found, labels = pictures(digits)
    assert (len(found), labels) == (600, list(digits.labels or ()))


def test_nothing_is_nothing() -> None:
    assert pictures([]) == ([], None)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "NoneType; convert it"),
        (7, "int; convert it"),
        ({"a": 1}, "dict; convert it"),
        ([b"bytes"], "bytes; convert it"),
        (iter([]), "list_iterator; convert it"),
        ([[1, 2]], "list; convert it"),
        (torch.zeros(2, 5, 4, 4), r"a tensor of shape \(2, 5, 4, 4\); rearrange"),
        (np.zeros((2, 2, 3, 4, 4), np.uint8), r"an array of shape \(2, 2, 3, 4, 4\); rearrange"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "expected bytes or floats, got .* of int64; convert it to uint8"),
        (
            torch.full((1, 3, 4, 4), -2.1),
            "expected floats from 0 to 1, got -2.1 to -2.1 .* leave the normalisation out",
        ),
        (torch.full((1, 3, 4, 4), float("nan")), "expected floats from 0 to 1, got nan"),
        (torch.full((1, 3, 4, 4), 255.0), "got 255 to 255 .*, or divide by 255"),
        (["none.png"], "expected a folder, a tar archive, .* got 'none.png', which does not exist"),
        (Pairs([{"mask": 1}] * 5), "dict; convert it"),
    ],
)
def test_anything_else_is_refused_by_its_type(given: Any, got: str) -> None:
    with pytest.raises(RequestError, match=got):
        pictures(given)


def test_data_sets_that_give_something_else_are_refused() -> None:
    class Rowed(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"mask": 1, "label": 2}

    class Batches(Rows):
        def __getitem__(self, index: int) -> Any:
            return tensors()[:2]

    class Some(Rows):
        def __getitem__(self, index: int) -> Any:
            image = Image.fromarray(PIXELS[index])
            return (image, 1) if index else image

    with pytest.raises(RequestError, match=r"expected images under image or .* got mask, label; rename the entry"):
        pictures(Rowed())
    with pytest.raises(RequestError, match="expected one image an item of the data set, got 2; hand in a DataLoader"):
        pictures(Batches())
    with pytest.raises(RequestError, match="expected a label for each image or none, got 4 labels for 5 images"):
        pictures(Some())
