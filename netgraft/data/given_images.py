"""Images as people have them in Python -> PIL images, which views are made of, and labels where there are some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from netgraft.data.image_files import decode
from netgraft.data.image_set import HeldPictures, ImageSet
from netgraft.data.sources import open_data
from netgraft.errors import RequestError

EXPECTED = (
    "PIL images, paths of images or of a folder, arrays (H, W, C), uint8 or float tensors (C, H, W), batches of these, "
    "or a torch Dataset or DataLoader of any of them"
)

_IMAGE_KEYS, _LABEL_KEYS = ("image", "images", "pixel_values", "img"), ("label", "labels", "target")
"""Of dictionaries that data sets give, as Hugging Face's do."""

CHANNELS = (1, 3, 4)
"""Of grey, coloured and transparent images."""


def pictures(images: Any) -> tuple[Sequence[Image.Image], list[int] | None]:
    """Return images one by one, and the label of each where all come with one.

    Those of a folder or of an :class:`netgraft.data.image_set.ImageSet` of files are decoded when they are asked for,
    but for the first, which are held.

    Args:
        images: PIL images; paths of image files, of a folder or an archive (all images below, whatever their folders);
            arrays (H, W), (H, W, C) or tensors (C, H, W), of bytes or of floats from 0 to 1; batches of either, with
            one dimension more; a :class:`netgraft.data.image_set.ImageSet`; or a data set or loader of any of them,
            whose items may be pairs of image and label or dictionaries with both.

    Raises:
        RequestError: It is something else, or floats lie outside of 0 to 1, as normalised ones do; says what came.
    """
    if isinstance(images, HeldPictures):
        return images, None
    if isinstance(images, ImageSet):
        return images.pictures(range(len(images))), None if images.labels is None else list(map(int, images.labels))
    if isinstance(images, str | Path):
        return _from_path(images), None
    found: list[Image.Image] = []
    labels: list[int] = []
    for image, label in _each(images):
        found.append(image)
        if label is not None:
            labels.append(label)
    if labels and len(labels) != len(found):
        raise RequestError(
            f"expected a label for each image or none, got {len(labels):,} labels for {len(found):,} images; leave "
            "them out"
        )
    return found, labels or None


def names(images: Any, count: int) -> tuple[str, ...]:
    """Return a name of each image, for people: its file's where they come from files, else its number, from 0.

    Args:
        images: As for :func:`pictures`.
        count: How many images they are.
    """
    found: Sequence[str] = ()
    if isinstance(images, str | Path):
        found = [str(images)] if count == 1 else open_data(str(images)).train.names or ()
    elif isinstance(images, ImageSet):
        found = images.names or ()
    elif isinstance(images, Sequence) and all(isinstance(each, str | Path) for each in images):
        found = [str(each) for each in images]
    # a folder among the paths stands for several
    return tuple(found) if len(found) == count else tuple(f"image {number}" for number in range(count))


Pair = tuple[Image.Image, int | None]


def _each(images: Any) -> Iterator[Pair]:
    if isinstance(images, DataLoader):
        for batch in images:
            yield from _from_batch(batch)
    elif isinstance(images, Dataset) or _is_numbered(images):
        yield from (_from_item(item) for item in _items(images))
    elif isinstance(images, Image.Image | Tensor | np.ndarray):
        yield from ((image, None) for image in _unstacked(images))
    elif isinstance(images, Sequence):
        for image in images:
            yield from ((one, None) for one in _several(image))
    else:
        raise _unknown(images)


def _is_numbered(images: Any) -> bool:
    """Whether it can be asked for item after item, as data sets that don't derive from torch's."""
    plain = isinstance(images, Sequence | Mapping | Image.Image | Tensor | np.ndarray)
    return not plain and hasattr(images, "__len__") and hasattr(images, "__getitem__")


def _labelled(images: Iterable[Image.Image], labels: Sequence[int] | None) -> Iterator[Pair]:
    if labels is None:
        return ((image, None) for image in images)
    return zip(images, map(int, labels), strict=True)


def _items(dataset: Any) -> Iterator[Any]:
    if not hasattr(dataset, "__len__"):
        yield from dataset  # an IterableDataset
        return
    for index in range(len(dataset)):
        yield dataset[index]


def _split(item: Any) -> tuple[Any, Any]:
    """Take an item or a batch of a data set apart: images, and labels or None."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            got = ", ".join(map(str, item))
            keys = " or ".join(_IMAGE_KEYS)
            raise RequestError(f"expected images under {keys} in what the data set gives, got {got}; rename the entry")
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list) and len(item) == 2 and _is_label(item[1]):
        return item[0], item[1]
    return item, None


def _is_label(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim <= 1 and not _is_float(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_is_label(each) for each in value)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _from_item(item: Any) -> Pair:
    image, label = _split(item)
    found = _several(image)
    if len(found) != 1:
        raise RequestError(
            f"expected one image an item of the data set, got {len(found)}; hand in a DataLoader of batches"
        )
    return found[0], None if label is None else int(label)


def _from_batch(batch: Any) -> Iterator[Pair]:
    images, labels = _split(batch)
    if isinstance(images, tuple | list) and len(images) == 1 and labels is None:
        images = images[0]  # of a TensorDataset without labels
    if isinstance(images, tuple | list):
        found = [one for image in images for one in _several(image)]
    else:
        found = _several(images)
    return _labelled(found, None if labels is None else [int(label) for label in labels])


def _several(image: Any) -> list[Image.Image]:
    """Return an image, those of a batch, or those at a path."""
    if isinstance(image, tuple | list) and len(image) == 1:
        [image] = image
    if isinstance(image, str | Path):
        return list(_from_path(image))
    if isinstance(image, Image.Image | Tensor | np.ndarray):
        return _unstacked(image)
    raise _unknown(image)


def _from_path(path: str | Path) -> Sequence[Image.Image]:
    if Path(path).is_file() and not str(path).lower().endswith((".tar", ".tgz", ".tar.gz")):
        return [decode(Path(path).read_bytes(), str(path))]
    train = open_data(str(path)).train
    return train.pictures(range(len(train)))


def _unstacked(images: Image.Image | Tensor | NDArray[Any]) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return _from_array(_channels_last(images.detach().cpu()), f"a tensor of shape {tuple(images.shape)}")
    return _from_array(images, f"an array of shape {images.shape}")


def _channels_last(images: Tensor) -> NDArray[Any]:
    values = images.float() if images.dtype in {torch.bfloat16, torch.float16} else images
    return np.asarray(values.movedim(-3, -1) if images.ndim in {3, 4} else values)


def _from_array(values: NDArray[Any], what: str) -> list[Image.Image]:
    """Return the images of (H, W), (H, W, C) or (B, H, W, C)."""
    if values.ndim == 2:
        values = values[None, :, :, None]
    elif values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in CHANNELS:
        raise RequestError(
            f"expected images of 1, 3 or 4 channels, (B, C, H, W) as tensors or (B, H, W, C) as arrays, got {what}; "
            "rearrange its dimensions"
        )
    pixels = _as_bytes(values, what)
    return [Image.fromarray(each[..., 0] if values.shape[-1] == 1 else each) for each in pixels]


def _is_float(values: Tensor | NDArray[Any]) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else np.issubdtype(values.dtype, np.floating)


def _as_bytes(values: NDArray[Any], what: str) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if not _is_float(values):
        raise RequestError(f"expected bytes or floats, got {what} of {values.dtype}; convert it to uint8")
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # nor NaN
        raise RequestError(
            f"expected floats from 0 to 1, got {low:.3g} to {high:.3g} in {what}; leave the normalisation out (the "
            "model's own is applied), or divide by 255"
        )
    return np.rint(values * 255).astype(np.uint8)


def _unknown(value: Any) -> RequestError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return RequestError(f"expected {EXPECTED}, got {kind}; convert it")
