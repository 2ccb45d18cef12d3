"""Files that can be believed: written whole or not at all, and with a SHA-256 that a damaged one doesn't have."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from netgraft.errors import RequestError, RunError

_ABANDONED = 24 * 3600  # seconds without a change, after which nobody writes a temporary file any more


def write_atomically(
    path: Path, write: Callable[[Path], None], *, advice: str = "free some space and go on with --resume"
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place.

    The temporary file is this call's own, so that several processes may write the same file: one of them wins. What a
    killed one leaves is removed a day later by the next that writes the same file, or by :func:`remove_temporaries`.

    Args:
        path: Of the file.
        write: Takes the path that it is to fill.
        advice: What to do where the file can't be written.

    Raises:
        RunError: The file could not be written, a full disk for instance; what stood there before still does.
    """
    # a part of the name: the whole one may be as long as the file system allows
    start = f".{path.name[:40]}."
    temporary = path.with_name(f"{start}{secrets.token_hex(8)}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        # torch and safetensors don't name a full disk, so say how much is left of it
        left = f"; {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are left there" if path.parent.is_dir() else ""
        raise RunError(f"could not write {path}: {error}{left}; {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    _remove_abandoned(path.parent, start)


def _remove_abandoned(folder: Path, start: str) -> None:
    now = time.time()
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(start) and path.suffix == ".tmp":
                with suppress(OSError):  # another process was quicker
                    if now - path.lstat().st_mtime > _ABANDONED:
                        path.unlink()


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left of files in ``folder`` and below that they were writing.

    The caller has made sure, by a lock for instance, that nobody writes there now.
    """
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(f"{UNNAMED}*")]:
        with suppress(OSError):
            path.unlink()


UNNAMED = ".outputs-"
"""How files begin that lose their name as soon as they are open; a kill in between leaves it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is made and removed again; the end of the process ends that too.

    Nothing is held where nothing can be written, as on a read-only medium.

    Raises:
        Timeout: Another process, or another thread, holds it (filelock's error).
        OSError, NotImplementedError: The file system can't lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, Timeout) or os.access(path.parent, os.W_OK):
            raise
    try:
        yield
    finally:
        # removed while it is held: whoever opened it before finds it gone and makes another; Windows keeps it
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


CHECKSUMS = "SHA256SUMS"
"""In a folder: the SHA-256 of each other file, as ``sha256sum`` writes and checks them."""


_MOST_CHECKSUMS = 2**16


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 of files in ``folder``. Raises OSError, or RunError like :func:`write_text`."""
    write_text(folder / CHECKSUMS, "".join(f"{_digest(folder / name)}  {name}\n" for name in sorted(names)))


def write_with_checksum(path: Path, text: str) -> None:
    """Write ``text``, with its SHA-256 beside it, the only one there; a kill in between leaves no text.

    Raises:
        RunError: It can't be written.
    """
    with suppress(OSError):
        path.unlink()  # an earlier one has another SHA-256
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path.parent / CHECKSUMS, f"{digest}  {path.name}\n")
    write_text(path, text)


def check_checksums(folder: Path, names: Iterable[str], *, advice: str) -> None:
    """Compare the files of ``folder`` with their SHA-256; where none are written down, nothing is known.

    Args:
        folder: Of models, for instance.
        names: Of files that must be among those that are written down.
        advice: What to do about a damaged file.

    Raises:
        RequestError: A file is missing or another than it was.
    """
    path = folder / CHECKSUMS
    if not os.path.lexists(path):
        return
    advice = f"; {advice}, or remove {path} if you changed the files yourself"
    try:
        if not path.is_file() or path.stat().st_size > _MOST_CHECKSUMS:
            raise RequestError(f"{path} is damaged: expected a short file{advice}")
        text = path.read_text(encoding="ascii")
        known = {line[66:]: line[:64] for line in text.splitlines()}
        if not re.fullmatch(r"([0-9a-f]{64}  [^/\\\n]+\n)+", text) or not known.keys() >= set(names):
            raise RequestError(f"{path} is damaged: expected a SHA-256 and a name in each line{advice}")
        for name, expected in known.items():
            found = _digest(folder / name)
            if found != expected:
                raise RequestError(
                    f"{folder / name} is damaged: expected SHA-256 {expected[:12]}, got {found[:12]}{advice}"
                )
    except UnicodeError as error:
        raise RequestError(f"{path} is damaged: expected text, got something else{advice}") from error
    except OSError as error:
        raise RequestError(f"{folder} is damaged: can't read {error.filename}: {error.strerror}{advice}") from error


def _digest(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))  # a pipe or a device may have no end
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SEAL = re.compile(rb"sha256:[0-9a-f]{64}")

_SEAL_LENGTH = 71


def seal_archive(path: Path) -> None:
    """Append the SHA-256 of a zip archive that has no comment as its comment, which every reader passes over.

    Raises:
        OSError: It can't be written.
    """
    with path.open("r+b") as file:
        # the last field of an archive is the length of its comment
        file.seek(-2, os.SEEK_END)
        file.write(_SEAL_LENGTH.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        file.seek(0, os.SEEK_END)
        file.write(b"sha256:" + digest.hexdigest().encode())


def write_sealed(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write a zip archive, and seal it; like :func:`write_atomically`."""

    def write_and_seal(temporary: Path) -> None:
        write(temporary)
        seal_archive(temporary)

    write_atomically(path, write_and_seal)


def check_seal(path: Path) -> None:
    """Compare an archive with the SHA-256 that :func:`seal_archive` appended.

    Raises:
        ValueError: They differ, or it has none.
        OSError: It can't be read.
    """
    if not path.is_file():
        raise ValueError("expected a file, got something else")
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END) - _SEAL_LENGTH
        file.seek(max(0, length))
        seal = file.read()
        if not _SEAL.fullmatch(seal):
            raise ValueError("expected its SHA-256 at the end, got none")
        digest, left = hashlib.sha256(), length
        file.seek(0)
        while left:
            chunk = file.read(min(left, 2**20))
            digest.update(chunk)
            left -= len(chunk)
    expected, found = seal[7:].decode(), digest.hexdigest()
    if expected != found:
        raise ValueError(f"expected SHA-256 {expected[:12]}, got {found[:12]}")
