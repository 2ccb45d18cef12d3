"""Images of any mode and orientation -> upright ones of 8 bits a channel, in a mode that Pillow converts faithfully."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from netgraft.errors import RequestError

FULL_8, FULL_16 = 255, 65535
"""Largest values of 8 and of 16 bits."""

FULL_RANGE_FORMATS = {"PNG", "PPM"}
"""Formats that scale whole numbers to 16 bits, so that a dark image's small values are no 8 bits."""


def to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Return an image upright, as its EXIF data say it is seen, and with 8 bits a channel.

    Of 16 bits the upper 8 are taken, as Pillow does for colours; other whole numbers and floats count up to 1 (floats
    only), 255 or 65,535, the first of these that nothing exceeds. A transparent palette becomes RGBA, LAB sRGB.

    Args:
        image: Of any mode.
        name: Of the file, for people.

    Returns:
        The same object where nothing had to be done; otherwise an image in mode ``L``, ``RGB`` or one that Pillow
        converts to these. Alpha is kept.

    Raises:
        RequestError: Its mode or its values mean no picture that is known; says which file.
    """
    image = _upright(image)
    if image.mode in _CONVERTERS:
        return _CONVERTERS[image.mode](image, name)
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode not in _KNOWN:
        raise RequestError(
            f"expected an image of a known colour mode in {name}, got {image.mode!r}; save it as RGB or grey"
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # the function below would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data raise many kinds, and say nothing of a picture that was decoded
        return image


def _from_integers(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if image.mode != "I":
        return _grey(values >> 8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > FULL_16:
        raise _out_of_range(name, f"{low:,} to {high:,}")
    return _grey(values if high <= FULL_8 and image.format not in FULL_RANGE_FORMATS else values >> 8)


def _from_floats(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= FULL_16:  # nor NaN
        raise _out_of_range(name, f"{low:g} to {high:g}")
    unit = 1 if high <= 1 else FULL_8 if high <= FULL_8 else FULL_16
    return _grey(np.rint(values * (FULL_8 / unit)))


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def _out_of_range(name: str, values: str) -> RequestError:
    return RequestError(
        f"expected grey values from 0 to {FULL_16:,} in {name}, got {values}; save it with 8 or 16 bits a channel"
    )


def _from_lab(image: Image.Image, name: str) -> Image.Image:
    try:
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    except (ImportError, ImageCms.PyCMSError) as error:  # Pillow without its colour library
        raise RequestError(
            f"expected an image that can be converted to RGB, got LAB in {name}: {error}; save it as RGB"
        ) from None
    assert converted is not None  # it is not converted in place
    return converted


def _through(mode: str) -> Callable[[Image.Image, str], Image.Image]:
    return lambda image, name: image.convert(mode)


_CONVERTERS: Mapping[str, Callable[[Image.Image, str], Image.Image]] = {
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N", "I"), _from_integers),
    "F": _from_floats,
    "LAB": _from_lab,
    "La": _through("LA"),
    "RGBa": _through("RGBA"),
    "HSV": _through("RGB"),
    "RGBX": _through("RGB"),
}

_KNOWN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
