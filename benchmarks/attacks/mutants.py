"""Images and archives with some bytes that are others, opened under a limit of memory and time."""

from __future__ import annotations

import io
import random
import resource
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.attacks.commands import Forked
from netgraft.data.sources import open_data
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.errors import RequestError

SECONDS = 60
"""After which a batch of mutants is ended."""

MEMORY = 2**30
"""Bytes that opening them may take."""

KINDS = {
    "png": "PNG",
    "jpg": "JPEG",
    "bmp": "BMP",
    "tif": "TIFF",
    "webp": "WEBP",
    "ppm": "PPM",
    "pgm": "PPM",
}
"""Ending of a file -> what Pillow calls it."""

HEADER = 200
"""Bytes at the beginning in which half of the changes are made: sizes, offsets, kinds."""


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a file of which some bytes are others, are missing, are doubled, or in which it ends."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        where = chance.randrange(min(HEADER, len(changed)) if chance.random() < 0.5 else len(changed))
        match chance.randrange(5):
            case 0:
                changed[where] ^= 1 << chance.randrange(8)
            case 1:
                changed[where] = chance.choice([0, 1, 127, 128, 255])
            case 2:
                changed[where : where + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
            case 3:
                changed[where:where] = changed[where : where + chance.randrange(1, 64)]
            case _:
                del changed[where : where + chance.randrange(1, 64)]
        if len(changed) < 2:
            break
    return bytes(changed)


def images() -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of whole images of every kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    for ending, kind in KINDS.items():
        for mode in ("RGB", "L", "P", "CMYK", "I;16"):
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            else:
                image = Image.fromarray(pixels).convert(mode)
            stream = io.BytesIO()
            try:
                image.save(stream, kind)
            except (OSError, KeyError, ValueError):
                continue  # this kind knows no such mode
            yield f"{mode.replace(';', '')}.{ending}", stream.getvalue()


def open_image(path: Path) -> None:
    """Look at an image, alone in its folder, as a run does. Raises RequestError where it can't be."""
    pictures = open_data(str(path.parent)).train.load_many([0])
    Views.configured(pictures, VIEW_POLICIES["plain"], CONFIG, seed=0).batch([0])


CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def open_archive(path: Path) -> None:
    """Look at the images of an archive. Raises RequestError where they can't be."""
    source = open_data(str(path))
    source.train.load_many(range(len(source.train)))


def archives() -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of whole archives, of every kind of header and compression."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), 77).save(picture, "PNG")
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode=mode, format=form) as archive:  # type: ignore[call-overload]
                for number in range(4):
                    member = tarfile.TarInfo(f"train/{'long' * (number % 2 * 20 + 1)}/{number}.png")
                    member.size = len(picture.getvalue())
                    if form == tarfile.PAX_FORMAT:
                        member.pax_headers = {"comment": "c" * 50, "mtime": "1.5"}
                    archive.addfile(member, io.BytesIO(picture.getvalue()))
            yield name, stream.getvalue()


def tried(
    sound: list[tuple[str, bytes]], look: Callable[[Path], None], folder: Path, *, count: int, seed: int
) -> tuple[Counter[str], list[str]]:
    """Open mutants in one process that is bounded.

    Args:
        sound: Names and contents of which mutants are made.
        look: Opens a folder with one image, or an archive.
        folder: An empty one.
        count: Of mutants.
        seed: Of the changes.

    Returns:
        How many were opened and how many refused; and what was wrong otherwise.
    """

    def work() -> int:
        limit = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(count):
            name, content = sound[number % len(sound)]
            chance = random.Random(f"{seed}/{number}")  # nosec B311  # no secret
            path = folder / name
            path.write_bytes(mutated(content, chance))
            try:
                look(path)
                print("opened")
            except RequestError as error:
                print("refused" if "\n" not in str(error) else f"two lines for {name}, {seed}/{number}: {error!r}")
            except BaseException as error:  # MemoryError too
                print(f"{name}, {seed}/{number}: {error!r}"[:500].replace("\n", " "))
            path.unlink()
        return 0

    ended = Forked(work, seconds=SECONDS).wait()
    counted = Counter(ended.printed.splitlines())
    wrong = [line for line in counted if line not in {"opened", "refused"}]
    if ended.code:
        wrong.append(f"the process ended with {ended.code} after {counted.total()} mutants: {ended.said[-500:]}")
    return Counter({name: counted[name] for name in ("opened", "refused")}), wrong
