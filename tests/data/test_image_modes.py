"""Images of all modes and orientations become upright ones of 8 bits a channel, or are refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from netgraft.data.image_files import decode
from netgraft.data.image_modes import to_8_bits
from netgraft.data.loader import EvalDataset
from netgraft.data.sources import open_data
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.errors import RequestError
from tests.support.image_data import CONFIG

RAMP = np.linspace(0, 255, 60).round().astype(np.uint8).reshape(6, 10)
"""Grey levels that differ."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.uint16) * 257, "PPM"),
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 257, "TIFF"),
        (RAMP.astype(np.float32) / 255, "TIFF"),
    ],
)
def test_values_of_more_than_8_bits_are_scaled(values: Any, kind: str) -> None:
    image = decode(encoded(Image.fromarray(values), kind), "grey")
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), RAMP)


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_a_dark_image_of_16_bits_is_not_taken_for_one_of_8(kind: str) -> None:
    dark = np.full((4, 4), 200, dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(dark), kind), "dark")).max() == 0


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[-1, 5]], dtype=np.int32),
        np.array([[np.nan, 1]], dtype=np.float32),
        np.array([[0, np.inf]], dtype=np.float32),
        np.array([[-0.5, 0.5]], dtype=np.float32),
    ],
)
def test_values_that_mean_no_grey_are_refused_with_the_files_name(values: Any) -> None:
    with pytest.raises(RequestError, match=r"from 0 to 65,535 in a/strange\.tif, got .*; save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(values), "TIFF"), "a/strange.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_seen_as_its_orientation_says(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.repeat(np.repeat(RAMP, 8, axis=0), 8, axis=1)).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / f"a.{kind.lower()}").write_bytes(encoded(stored, kind, exif=exif))
    image = open_data(str(tmp_path)).train.load(0)
    # the darkest corner is stored at the top on the left
    pixels = np.asarray(image.convert("L")).astype(int)
    corners = {"tl": pixels[0, 0], "tr": pixels[0, -1], "bl": pixels[-1, 0], "br": pixels[-1, -1]}
    expected = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    assert min(corners, key=lambda corner: corners[corner]) == expected[orientation]
    assert image.size == ((80, 48) if orientation < 5 else (48, 80))
    assert np.array_equal(np.asarray(to_8_bits(image, "again")), np.asarray(image))


def test_broken_exif_data_say_nothing() -> None:
    stored = Image.fromarray(RAMP)
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"nothing", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode(encoded(stored, "JPEG", exif=exif), "grey").size == stored.size


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]


@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16L", "I;16B", "I;16N"])
@pytest.mark.parametrize("target", ["L", "RGB"])
def test_every_mode_becomes_grey_and_colour(mode: str, target: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_8_bits(Image.new(mode, (4, 3)), "an image").convert(target).size == (4, 3)


def test_every_mode_that_pillow_knows_is_tried() -> None:
    assert {*Image.MODES} <= {*MODES, "I;16", "I;16L", "I;16B", "I;16N"}


@pytest.mark.parametrize("target", ["L", "RGB"])
def test_a_lab_image_keeps_its_colours(target: str) -> None:
    from PIL import ImageCms

    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
    assert lab is not None
    seen = decode(encoded(lab, "TIFF"), "lab").convert(target)
    assert abs(np.asarray(seen).astype(int) - np.asarray(colours.convert(target))).mean() < 3


def test_a_palette_with_transparency_keeps_its_colours_and_warns_of_nothing() -> None:
    colours = Image.fromarray(RAMP).convert("P")
    content = encoded(colours, "PNG", transparency=bytes(range(60)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = decode(content, "palette").convert("RGB")
    assert np.array_equal(np.asarray(seen), np.asarray(colours.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_what_has_8_bits_and_stands_upright_stays_the_very_object(mode: str) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    assert to_8_bits(image, "an image") is image


@pytest.mark.parametrize("policy", ["rich", "crop", "plain"])
def test_views_and_evaluation_show_images_of_a_program_alike(policy: str) -> None:
    deep, plain = Image.fromarray(RAMP.astype(np.uint16) * 257), Image.fromarray(RAMP)
    shown = [Views.configured([image], VIEW_POLICIES[policy], CONFIG, seed=0).batch([0]) for image in (deep, plain)]
    assert shown[0].equal(shown[1])


def test_evaluation_shows_an_image_of_16_bits_as_one_of_8(tmp_path: Path) -> None:
    for name, values in (("deep", RAMP.astype(np.uint16) * 257), ("plain", RAMP)):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    dataset = EvalDataset(open_data(str(tmp_path)).train, CONFIG)
    assert dataset[0][0].equal(dataset[1][0])
