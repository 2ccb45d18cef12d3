"""Image files in folders and tar archives: listing, partitions, classes, reading, decoding.

Nothing is ever extracted to disk.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, features

from netgraft.data.image_modes import to_8_bits
from netgraft.errors import RequestError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

HEIF_SUFFIXES = (".heic", ".heif")

AVIF_SUFFIXES = (".avif",)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

TRAIN = "train"

EVALUATION = ("test", "val", "validation")

KEPT_IN_MEMORY = 256 * 2**20  # bytes of a compressed archive, up to which its files are kept

UNPACKED_IN_MEMORY = 2**30  # bytes, likewise, of what it unpacks to

LARGEST_RATIO = 100  # bytes to which one of a compressed archive may unpack, beyond those above

LARGEST_IMAGE = 2**30  # bytes of an encoded image

LARGEST_HEADER = 2**20  # bytes of a tar's long name or PAX header

LONGEST_PATH = 4096  # characters of a name in an archive, as file systems have it

MOST_FOLDERS = 100_000  # links make any number of them


class BrokenImageError(RequestError):
    """A file that should hold an image holds none that can be decoded."""


@cache
def readable_suffixes() -> tuple[str, ...]:
    """Return the endings of names of images that can be decoded here.

    AVIF needs Pillow 11.3 or pillow-heif; HEIC needs pillow-heif, which registers with Pillow where it is installed.
    """
    found: tuple[str, ...] = IMAGE_SUFFIXES
    own_avif = features.check("avif") if "avif" in features.features | features.modules else False
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found += HEIF_SUFFIXES
        if not own_avif and hasattr(pillow_heif, "register_avif_opener"):
            pillow_heif.register_avif_opener()
            own_avif = True
    return found + AVIF_SUFFIXES if own_avif else found


def broken(files: ImageFiles, positions: Sequence[int]) -> list[int]:
    """Return those of ``positions`` that hold no image that can be decoded; reads all of them once.

    Raises:
        RequestError: A file can't be read at all.
    """
    found = []
    for start in range(0, len(positions), _CHECKED_TOGETHER):
        some = positions[start : start + _CHECKED_TOGETHER]
        for position, content in zip(some, files.read(some), strict=True):
            try:
                decode(content, files.names[position])
            except RequestError:
                found.append(position)
    return found


_CHECKED_TOGETHER = 64


class ImageFiles(Protocol):
    """Encoded images under relative names, in a fixed order."""

    location: Path
    names: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Names of images in formats that this installation can't read."""
    in_any_order: bool
    """Whether any file is read at once, whichever was read before, on several threads too."""

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Return the content of the files at ``positions``."""


def decode(content: bytes, name: str) -> Image.Image:
    """Decode an image: upright, with 8 bits a channel, otherwise in its own mode.

    Args:
        content: An encoded image.
        name: Of the file, for people.

    Raises:
        RequestError: The content is no whole image, or in no mode that is known; says which file.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's plugins raise any kind on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else reason
        raise BrokenImageError(
            f"expected an image in {name}, got: {reason}; repair or remove the file, or leave broken ones out "
            "(--skip-broken)"
        ) from None
    return to_8_bits(image, name)


class FolderFiles:
    """The image files in a folder and its subfolders.

    Args:
        location: The folder; names that start with a dot are left out.

    Raises:
        RequestError: The folder can't be read or holds no image, links lead in circles, or something with the name of
            an image is no file.
    """

    def __init__(self, location: Path) -> None:
        try:
            all_found = list(_image_paths(location))
        except OSError as error:
            raise RequestError(f"expected a readable folder, got: {error}; check its permissions and links") from None
        found = [name for name in all_found if _is_readable(name)]
        if not found:
            raise RequestError(_no_image(location, all_found))
        self.location = location
        self.in_any_order = True
        self.names = tuple(sorted(found, key=_by_folder))
        self.unreadable = tuple(sorted(set(all_found) - set(found)))

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Return the content of the files at ``positions``.

        Raises:
            RequestError: A file can't be read any more; says which.
        """
        contents = []
        for position in positions:
            path = self.location / self.names[position]
            try:
                _check_size(path.stat().st_size, path)
                contents.append(path.read_bytes())
            except OSError as error:
                raise RequestError(
                    f"expected a readable image at {path}, got: {error}; check its permissions"
                ) from None
        return contents


class TarFiles:
    """The image files in a tar archive, plain or compressed by gzip.

    A plain archive is read by offset. Of a small compressed one the files are kept in memory; a large one is read
    from front to back, again from the front only for a file before the last one read. What hostile headers may ask for,
    in time or in memory, is bounded.

    Args:
        location: The archive.
        kept_in_memory: Bytes of a compressed archive, below which its files are kept.

    Raises:
        RequestError: The archive can't be read or holds no image.
    """

    def __init__(self, location: Path, *, kept_in_memory: int = KEPT_IN_MEMORY) -> None:
        self.location = location
        with _whole_archive(location):
            with location.open("rb") as file:
                self._compressed = file.read(2) == b"\x1f\x8b"
            keep = self._compressed and location.stat().st_size < kept_in_memory
            whole = _unpacked(location.read_bytes()) if keep else None
            keep = whole is not None
            entries = _cut(whole) if whole is not None else _listed(location, compressed=self._compressed)
        all_found = [name for name, *_ in entries]
        entries = [entry for entry in entries if _is_readable(entry[0])]
        if not entries:
            raise RequestError(_no_image(location, all_found))
        self.unreadable = tuple(sorted(name for name in all_found if not _is_readable(name)))
        entries.sort(key=lambda entry: _by_folder(entry[0]))
        self.names = tuple(name for name, *_ in entries)
        self._offsets = [position for _, position, _, _ in entries]
        self._sizes = [size for _, _, size, _ in entries]
        self._contents = [content for *_, content in entries] if keep else None
        self.in_any_order = keep or not self._compressed
        self._stream: Iterator[bytes] | None = None
        self._stream_position = 0
        self._process = 0

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Return the content of the files at ``positions``.

        Raises:
            RequestError: The archive has changed or can't be read any more.
        """
        if self._contents is not None:
            return [self._contents[position] for position in positions]
        with _whole_archive(self.location):
            if self._compressed:
                return self._read_stream(positions)
            contents = []
            with self.location.open("rb") as file:
                for position in positions:
                    file.seek(self._offsets[position])
                    contents.append(file.read(self._sizes[position]))
        return contents

    def _read_stream(self, positions: Sequence[int]) -> list[bytes]:
        wanted = {self._offsets[position] for position in positions}
        found: dict[int, bytes] = {}
        # a forked process shares the file's offset with its parent, so it opens its own
        if self._stream is None or self._process != os.getpid() or min(wanted, default=0) < self._stream_position:
            self._stream, self._stream_position, self._process = self._contents_in_order(), 0, os.getpid()
        while len(found) < len(wanted):
            content = next(self._stream, None)
            if content is None:
                raise EOFError("fewer files than when it was opened")
            if self._stream_position in wanted:
                found[self._stream_position] = content
            self._stream_position += 1
        return [found[self._offsets[position]] for position in positions]

    def _contents_in_order(self) -> Iterator[bytes]:
        with tarfile.open(self.location, "r|gz", tarinfo=_BoundedHeader) as archive:
            for _, member in _image_members(archive, _end(self.location, compressed=True)):
                yield _content(archive, member)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}


def is_tar(path: Path) -> bool:
    """Whether the name of ``path`` is a tar archive's."""
    return path.name.lower().endswith(TAR_SUFFIXES)


@dataclass(frozen=True)
class Partition:
    """Files of one partition.

    Attributes:
        positions: In the ``ImageFiles``.
        folders: Class folder of each file; None where the files lie in no class folder, or some of them beside folders.
        beside: An image that lies beside folders; empty where none does.
    """

    positions: tuple[int, ...]
    folders: tuple[str, ...] | None
    beside: str = ""

    def without(self, positions: Collection[int]) -> Partition:
        """Return the partition without some of its files."""
        kept = [place for place, position in enumerate(self.positions) if position not in positions]
        folders = None if self.folders is None else tuple(self.folders[place] for place in kept)
        return Partition(tuple(self.positions[place] for place in kept), folders, self.beside)


def arrange(names: Sequence[str]) -> tuple[Partition, Partition | None]:
    """Find the training and the evaluation partition in relative file names.

    Understood are ``train/`` with or without ``test/``, ``val/`` or ``validation/`` (the first of them that has
    class folders) beside it; class folders; and files in no folder. Folders that hold everything are skipped.
    Images beside folders, and all in these, belong together and have no classes.

    Args:
        names: Paths inside a folder or an archive, parts joined by ``/``.

    Returns:
        The training partition, or all images; the evaluation partition if there is one.
    """
    parts = [name.split("/") for name in names]
    for skipped in itertools.count():
        tops = {path[skipped] for path in parts if len(path) > skipped + 1}
        evaluation = [top for top in EVALUATION if top in tops]
        labelled_apart = TRAIN in tops and (evaluation or tops == {TRAIN})
        if labelled_apart or len(tops) > 1 or any(len(path) < skipped + 3 for path in parts):
            break
    paths = {position: path[skipped:] for position, path in enumerate(parts)}
    if not labelled_apart:
        return _partition(paths), None
    inside = {
        top: _partition({p: path[1:] for p, path in paths.items() if len(path) > 1 and path[0] == top})
        for top in (TRAIN, *evaluation)
    }
    labelled = [inside[top] for top in evaluation if inside[top].folders is not None]
    return inside[TRAIN], labelled[0] if labelled else None


def _partition(paths: dict[int, list[str]]) -> Partition:
    flat = [path for path in paths.values() if len(path) == 1]
    folders = None if flat else tuple(path[0] for path in paths.values())
    return Partition(tuple(paths), folders, flat[0][0] if flat and len(flat) < len(paths) else "")


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith((*IMAGE_SUFFIXES, *HEIF_SUFFIXES, *AVIF_SUFFIXES))


def _is_readable(name: str) -> bool:
    return name.lower().endswith(readable_suffixes())


def _by_folder(name: str) -> list[str]:
    return name.split("/")


def _no_image(location: Path, unreadable: Sequence[str]) -> str:
    kinds = ", ".join(suffix[1:] for suffix in readable_suffixes())
    if unreadable:
        return (
            f"expected images ({kinds}) in {location}, got {len(unreadable):,} that this installation can't read, such "
            f"as {min(unreadable)}; install pillow-heif"
        )
    return f"expected images ({kinds}) in {location}, got none; name another place"


def _image_paths(location: Path) -> Iterator[str]:
    """Yield the images below a folder, by their paths inside it. Raises OSError where a folder can't be read."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(Path(), frozenset())]
    folders = 0
    while waiting:
        inside, above = waiting.pop()
        here = location / inside
        status = here.stat()
        own = (status.st_dev, status.st_ino)
        folders += 1
        if own in above or folders > MOST_FOLDERS:
            what = "a link to a folder above it" if own in above else f"more than {MOST_FOLDERS:,} folders"
            raise RequestError(f"expected folders of images in {location}, got {what}, {here}; remove it")
        above_it = f"{inside.as_posix()}/" if inside.parts else ""  # a path for each of many files takes the longer
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((inside / entry.name, above | {own}))
                elif _is_image(entry.name):
                    _check_is_file(entry)
                    yield above_it + entry.name


def _check_is_file(entry: os.DirEntry[str]) -> None:
    """Make sure that reading it will end."""
    if not entry.is_file():
        broken = entry.is_symlink() and not Path(entry).exists()
        what = "a link to nothing" if broken else "a pipe, socket or device"
        raise RequestError(f"expected an image file at {entry.path}, got {what}; remove it")


def _check_size(size: int, name: Path | str) -> None:
    if size > LARGEST_IMAGE:
        most, got = (f"{count / 2**30:,.1f} GiB" for count in (LARGEST_IMAGE, size))
        raise RequestError(f"expected an image of at most {most} at {name}, got {got}; make it smaller or remove it")


class _BoundedHeader(tarfile.TarInfo):
    """A member's header, refused where its size would make ``tarfile`` go back or read without bounds."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        header = super().frombuf(buf, encoding, errors)
        describes_next = header.type in {
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        }
        if header.size < 0 or (describes_next and header.size > LARGEST_HEADER):
            # not a HeaderError: tarfile would take that for the end of the archive
            raise tarfile.ReadError(f"a header that gives a size of {header.size:,} bytes")
        return header


@contextmanager
def _whole_archive(location: Path) -> Iterator[None]:
    """Say that an archive is damaged, whatever ``tarfile`` makes of its bytes.

    Raises:
        RequestError: With what was raised inside.
    """
    try:
        yield
    except RequestError:
        raise
    except RecursionError:
        raise RequestError(
            f"expected a whole tar archive at {location}, got hundreds of headers for one file; fetch it again"
        ) from None
    except Exception as error:  # numbers in headers lead to ValueError, OverflowError, IndexError, ...
        raise RequestError(
            f"expected a whole tar archive at {location}, got: {error or type(error).__name__}; fetch it again"
        ) from None


def _end(location: Path, *, compressed: bool) -> int:
    """Where an archive must have ended, unpacked, in bytes."""
    size = location.stat().st_size
    return max(UNPACKED_IN_MEMORY, LARGEST_RATIO * size) if compressed else size


def _image_members(archive: tarfile.TarFile, end: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # nobody asks for them again
        has_content = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        if member.size < 0 or (has_content and member.offset_data + member.size > end):
            raise tarfile.ReadError(f"{member.name[:100]!r} of {member.size:,} bytes, which can't be")
        if len(member.name) > LONGEST_PATH:
            raise tarfile.ReadError(f"{member.name[:100]!r}... of {len(member.name):,} characters")
        parts = [part for part in member.name.split("/") if part not in {"", "."}]
        if member.isreg() and parts and _is_image(parts[-1]) and not any(p.startswith(".") for p in parts):
            _check_size(member.size, member.name)
            yield "/".join(parts), member


def _unpacked(compressed: bytes) -> bytes | None:
    """Unpack gzip, all its members; None where that is too much for the memory."""
    parts: list[bytes] = []
    left = UNPACKED_IN_MEMORY
    while compressed:
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        parts.append(stream.decompress(compressed, left + 1))
        left -= len(parts[-1])
        if left < 0:
            return None
        if not stream.eof:
            raise EOFError("the end within the compressed data")
        compressed = stream.unused_data.lstrip(b"\0")  # members may be padded
    return b"".join(parts)


def _cut(whole: bytes) -> list[tuple[str, int, int, bytes]]:
    """Name, number, size and content of each image; cut from the whole, which takes half as long as asking for each."""
    entries = []
    with tarfile.open(None, "r:", io.BytesIO(whole), tarinfo=_BoundedHeader) as archive:
        for number, (name, member) in enumerate(_image_members(archive, len(whole))):
            content = whole[member.offset_data : member.offset_data + member.size]
            entries.append((name, number, member.size, content))
    return entries


def _listed(location: Path, *, compressed: bool) -> list[tuple[str, int, int, bytes]]:
    """Name, offset and size of each image; in a stream, which has no offsets, its number instead."""
    with tarfile.open(location, "r|gz" if compressed else "r:", tarinfo=_BoundedHeader) as archive:
        return [
            (name, number if compressed else member.offset_data, member.size, b"")
            for number, (name, member) in enumerate(_image_members(archive, _end(location, compressed=compressed)))
        ]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read()
