"""A run's folder: what it holds, who works in it, and that nobody's run is ever overwritten silently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from netgraft.data.text_files import read_json
from netgraft.errors import RequestError
from netgraft.files import check_checksums, locked, remove_temporaries, write_text, write_with_checksum

CONFIG = "config.json"

ASKED = "config.toml"
"""What was asked for, in the words of the command line; see :mod:`netgraft.jobs.config_file`."""

RESULT = "result.json"

LOCK = ".lock"

_FINISH = f"remove {RESULT}, and --resume finishes the run again"


class RunFolderBusyError(RequestError):
    """Another run is at work in the folder."""


@dataclass(frozen=True)
class RunFolder:
    """A folder of one run: configuration, plan, subset, metrics, checkpoint, student and result."""

    path: Path

    def config(self) -> dict[str, Any] | None:
        """What the folder's run was asked for; None where no run is.

        Raises:
            RequestError: The configuration is damaged.
        """
        return _read(self.path / CONFIG)

    def result(self) -> dict[str, Any] | None:
        """What came out; None while unfinished.

        Raises:
            RequestError: The result is damaged.
        """
        return _read(self.path / RESULT)

    def finished(self) -> dict[str, Any] | None:
        """What came out; None while unfinished, or where the student or model is missing or damaged.

        Raises:
            RequestError: The result is damaged, or another run's.
        """
        from netgraft.models.students import IN_A_RUN, stands  # torch, which who only waits for a run does without

        result = self.result()
        if result is None:
            return None
        check_checksums(self.path, [RESULT], advice=_FINISH)
        expected, found = (self.config() or {}).get("fingerprint"), result.get("fingerprint")
        if expected != found:
            raise RequestError(
                f"{self.path / RESULT} is damaged: expected the result of run {_brief(expected)}, as {CONFIG} says, "
                f"got that of {_brief(found)}; {_FINISH}"
            )
        return result if any(stands(self.path / name) for name in IN_A_RUN) else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other run out of the folder, which is made if need be; the end of the process ends it too.

        Raises:
            RunFolderBusyError: Another run holds it.
            RequestError: The folder can't be made, or the file system can't lock.
        """
        self._make()
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / LOCK))
            except Timeout as error:
                raise RunFolderBusyError(
                    f"another run is at work in {self.path}; wait until it ends, or choose another --out"
                ) from error
            except (OSError, NotImplementedError) as error:
                reason = getattr(error, "strerror", None) or error
                raise RequestError(
                    f"can't lock the folder {self.path}: {reason}; choose another --out, on a file system with locks "
                    "and free space"
                ) from error
            yield

    def is_locked(self) -> bool:
        """Whether a run is at work in the folder. Raises RequestError like :meth:`lock`."""
        if not (self.path / LOCK).exists():
            return False
        try:
            with self.lock():
                return False
        except RunFolderBusyError:
            return True

    def claim(self, config: dict[str, Any], *, resume: bool) -> None:
        """Take the folder for a run, or go on with the run that it holds. The caller holds its lock.

        Raises:
            RequestError: It holds a run and ``resume`` is off, or it holds another run, or something else.
        """
        present = self.config()
        if present is None:
            if self.path.exists() and not _is_free(self.path):
                raise self._foreign()
        elif not resume:
            raise RequestError(
                f"{self.path} already holds a run; add --resume to go on with it, or choose another --out"
            )
        elif present.get("fingerprint") != config["fingerprint"]:
            # what was asked for stands in the others, in the words of the configuration
            keys = [key for key in {**config, **present} if key not in {"fingerprint", "options"}]
            differing = [key for key in keys if present.get(key) != config.get(key)]
            what = ", ".join(
                f"{key} {_brief(present.get(key))} there, {_brief(config.get(key))} now" for key in differing
            )
            asked = self.path / ASKED
            raise RequestError(
                f"{self.path} holds another run ({what or 'its images or weights differ'}); "
                f"give the options of that run{f' (--config {asked})' * asked.is_file()}, or choose another --out"
            )
        self._make()
        remove_temporaries(self.path)
        if present is None:
            self.write(CONFIG, config)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON atomically, a result with its SHA-256 beside it."""
        write = write_with_checksum if name == RESULT else write_text
        write(self.path / name, json.dumps(content, indent=2) + "\n")

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise self._foreign()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"can't make the folder {self.path}: {error.strerror}; choose another --out") from error

    def _foreign(self) -> RequestError:
        return RequestError(f"{self.path} exists and holds no run of netgraft; choose another --out")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _is_free(path: Path) -> bool:
    """Whether nothing lies in the folder but a lock, or the start of a configuration whose writing was cut off."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    return all(name == LOCK or name.startswith(f".{CONFIG}.") for name in names)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({error}); remove the folder or choose another --out") from error
    if not isinstance(content, dict):
        raise RequestError(
            f"{path} is damaged: expected an object, got {type(content).__name__}; remove the folder or choose another "
            "--out"
        )
    return content


def default_folder(name: str, *, resume: bool, fingerprint: str) -> Path:
    """Choose ``runs/name``, or the first free ``runs/name-2``, ``-3``, ...

    With ``resume``, the last of them that holds the run with this fingerprint, so that the same command finds it.
    """

    def numbered() -> Iterator[Path]:
        yield Path("runs") / name
        number = 2
        while True:
            yield Path("runs") / f"{name}-{number}"
            number += 1

    taken = []
    for path in numbered():
        if not path.exists():
            break
        taken.append(path)
    if resume:
        for candidate in reversed(taken):
            config = RunFolder(candidate).config()
            if config is not None and config.get("fingerprint") == fingerprint:
                return candidate
    return path
