"""Images in a fixed order, with or without classes, and where they come from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload

from numpy.typing import NDArray
from PIL import Image

from netgraft.data.image_files import ImageFiles, decode
from netgraft.errors import RequestError

HELD_BYTES = 2**30
"""Of decoded images that are held by default."""


class ImageStore(Protocol):
    """Where the images of a set come from."""

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        name: Of the data set and the partition.
        size: Number of images.
        store: Where they come from.
        labels: Class (0 to K - 1) of each image; None where there are none.
        classes: Number of classes; None where there are no labels.
        names: File name of each image; None where they come from no files.
        class_names: In the order of the labels; None where unknown.
        beside: Name of an image that lies beside folders, which are no class folders therefore; empty where none does.
    """

    name: str
    size: int
    store: ImageStore = field(repr=False, compare=False)
    labels: tuple[int, ...] | None = field(default=None, repr=False)
    classes: int | None = None
    names: tuple[str, ...] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    beside: str = ""

    def __len__(self) -> int:
        return self.size

    def known_labels(self, so: str) -> Sequence[int]:
        """Return the class of each image.

        Args:
            so: What it means that there are none, and what to do.

        Raises:
            RequestError: There are none.
        """
        if self.labels is None:
            why = f" (images such as {self.beside} lie beside its folders)" if self.beside else ""
            raise RequestError(f"{self.name} has no class folders{why}, {so}")
        return self.labels

    def load(self, index: int) -> Image.Image:
        """Return an image, decoded, upright, with 8 bits a channel, otherwise in its own mode.

        Raises:
            IndexError: There is no such image.
            RequestError: The image is broken; says which file.
        """
        return self.load_many([index])[0]

    def load_many(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return several images; one pass through an archive that can only be read from front to back.

        Raises:
            IndexError: There is no such image.
            RequestError: An image is broken; says which file.
        """
        for index in indices:
            if not 0 <= index < self.size:
                raise IndexError(f"{self.name} has images 0 to {self.size - 1}, not {index}")
        return self.store.images(indices)

    def pictures(self, indices: Sequence[int], held_bytes: int = HELD_BYTES) -> Sequence[Image.Image]:
        """Return several images that are decoded when they are asked for, but for the first, which are held.

        Args:
            indices: Which.
            held_bytes: Of decoded images that are held; all of them where files can't be read in any order.

        Raises:
            IndexError: There is no such image.
            RequestError: An image that is held is broken; says which file.
        """
        if not _in_any_order(self.store):
            return self.load_many(indices)
        return HeldPictures(self, indices, held_bytes)

    def part(self, indices: Sequence[int], name: str) -> ImageSet:
        """Return some of the images, in the order given, as a set of their own.

        Args:
            indices: Which.
            name: Of the part.
        """
        return replace(
            self,
            name=name,
            size=len(indices),
            store=PartStore(self.store, tuple(indices)),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            names=None if self.names is None else tuple(self.names[index] for index in indices),
        )

    def without_labels(self) -> ImageSet:
        """Return the same images without what is known of their classes."""
        return replace(self, labels=None, classes=None, class_names=None)


class HeldPictures(Sequence[Image.Image]):
    """Some images of a set: the first are held in memory, the others decoded whenever they are asked for.

    Args:
        images: The set.
        indices: Which of its images.
        held_bytes: Of decoded images that are held.

    Raises:
        IndexError: There is no such image.
        RequestError: An image that is held is broken; says which file.
    """

    def __init__(self, images: ImageSet, indices: Sequence[int], held_bytes: int) -> None:
        self._images, self._indices = images, tuple(indices)
        self._held: dict[int, Image.Image] = {}
        for position, index in enumerate(self._indices):
            picture = images.load(index)
            held_bytes -= picture.width * picture.height * len(picture.getbands())
            if held_bytes < 0:
                break
            self._held[position] = picture

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, positions: Sequence[int]) -> HeldPictures:
        """Return some of the images, of which those that are held anywhere are held here."""
        part = copy.copy(self)
        part._indices = tuple(self._indices[position] for position in positions)
        part._held = {new: self._held[old] for new, old in enumerate(positions) if old in self._held}
        return part

    @overload
    def __getitem__(self, position: int) -> Image.Image: ...

    @overload
    def __getitem__(self, position: slice) -> list[Image.Image]: ...

    def __getitem__(self, position: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        position = range(len(self))[position]
        return self._held[position] if position in self._held else self._images.load(self._indices[position])


def _in_any_order(store: ImageStore) -> bool:
    if isinstance(store, PartStore):
        return _in_any_order(store.whole)
    return isinstance(store, FileStore) and store.files.in_any_order


@dataclass(frozen=True)
class DataSource:
    """A training set, from which the few images are drawn, and a test set.

    Attributes:
        name: Of the data set, as results print it.
        train: What a subset is drawn from.
        test: What is evaluated on; None where there is none.
        hflip: Whether a mirrored image means the same; not so for digits.
        note: What a reader of results must know about the data.
        remarks: What was left out, or taken otherwise than its folders may have meant, a sentence each.
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    hflip: bool = True
    note: str = ""
    remarks: tuple[str, ...] = ()

    def train_labels(self, so: str) -> Sequence[int]:
        """Return the class of each training image.

        Args:
            so: What it means that there are none, and what to do.

        Raises:
            RequestError: There are none.
        """
        return replace(self.train, name=self.name).known_labels(so)

    def test_or_all(self) -> ImageSet:
        """Return the test set, or all images where they lie in no partitions."""
        return self.train if self.test is None else self.test


@dataclass(frozen=True)
class PartStore:
    """Some images of another store."""

    whole: ImageStore
    positions: tuple[int, ...]

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""
        return self.whole.images([self.positions[position] for position in positions])


@dataclass(frozen=True)
class ArrayStore:
    """Images in one array (N, H, W) or (N, H, W, 3) of bytes."""

    pixels: NDArray[Any]

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""
        return [Image.fromarray(self.pixels[position]) for position in positions]


@dataclass(frozen=True)
class PictureStore:
    """Images in memory."""

    pictures: Sequence[Image.Image]

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the images at ``positions``."""
        return [self.pictures[position] for position in positions]


@dataclass(frozen=True)
class FileStore:
    """Encoded images in a folder or an archive, decoded when they are asked for."""

    files: ImageFiles
    positions: tuple[int, ...]

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""
        inside = [self.positions[position] for position in positions]
        names = (str(self.files.location / self.files.names[position]) for position in inside)
        return [decode(content, name) for content, name in zip(self.files.read(inside), names, strict=True)]


@dataclass(frozen=True)
class ReaderStore:
    """Read through timm's reader: its data set would put another image in the place of a broken one."""

    reader: Any
    name: str

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""
        images = []
        for position in positions:
            with self.reader[position][0] as stream:
                images.append(decode(stream.read(), f"{self.name}, image {position}"))
        return images


@dataclass(frozen=True)
class TorchvisionStore:
    """Read through a data set of torchvision, which gives PIL images."""

    dataset: Any

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return the decoded images at ``positions``."""
        return [self.dataset[position][0] for position in positions]


def image_mode(channels: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return the PIL mode of images for a model: ``L`` or ``RGB``.

    Args:
        channels: That the model takes.
        mean: Of each channel.
        std: Of each channel.

    Raises:
        RequestError: Neither one channel nor three, or ``mean`` or ``std`` is of other channels.
    """
    if channels not in {1, 3}:
        raise RequestError(
            f"expected a model for grey (1 channel) or colour (3 channels) images, got {channels} channels; "
            "choose another model"
        )
    if len(mean) != channels or len(std) != channels:
        raise RequestError(
            f"expected as many means and standard deviations as channels, {channels}, got {len(mean)} and "
            f"{len(std)}; correct the model's data config"
        )
    return "L" if channels == 1 else "RGB"
