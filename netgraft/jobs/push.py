"""``netgraft push``: a student's folder, with its card, to the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from netgraft.data.text_files import read_text
from netgraft.errors import RequestError, RunError
from netgraft.files import CHECKSUMS, check_checksums
from netgraft.jobs.run_folder import RunFolder
from netgraft.models.card import CARD, published
from netgraft.models.descriptions import OWN, TIMM
from netgraft.models.downloads import reaches
from netgraft.models.folders import AGAIN, in_a_line, weights_file
from netgraft.models.students import IN_A_RUN, WEIGHTS

MAIN = "main"


def push_student(
    folder: str,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> dict[str, Any]:
    """Upload the student of a folder, in one commit: weights, description, checksums and card, and nothing else.

    The card's lines open the student from the hub then; the folder stays as it is.

    Args:
        folder: Of a run, a student or a trained model.
        repository: ``OWNER/NAME``; made if it isn't there.
        private: Whether only its owner sees a repository that is made.
        revision: Branch to commit to, made if it isn't there; the main one if None.
        dry_run: Say what would be uploaded, without a network.
        api: The hub; that of ``HF_ENDPOINT``, with the token of ``HF_TOKEN`` or of ``hf auth login``, if None.

    Returns:
        ``repository``, ``revision``, ``private``, ``files`` (``name`` and ``bytes`` of each), ``uploaded``, and ``url``
        of the commit, None where nothing was uploaded.

    Raises:
        RequestError: No such student or name, no card, a card that names places on this machine, or no token.
        RunError: The hub can't be reached, or refuses.
    """
    _check_name(repository)
    contents = _contents(Path(folder), repository, revision)
    result: dict[str, Any] = {
        "repository": repository,
        "revision": revision or MAIN,
        "private": private,
        "files": [{"name": name, "bytes": len(content)} for name, content in contents.items()],
        "uploaded": not dry_run,
        "url": None,
    }
    if dry_run:
        return result
    api = api or _hub()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in contents.items()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision not in {None, MAIN}:
            api.create_branch(repository, branch=str(revision), exist_ok=True)
        commit = api.create_commit(
            repository, operations, commit_message="Student and card, by netgraft", revision=revision or MAIN
        )
    except Exception as error:  # of the hub, of its client and of the network, of many kinds
        raise RunError(
            f"could not upload to {repository}: {in_a_line(error)}; see to it, then push again: the files go in one "
            "commit or not at all"
        ) from error
    return {**result, "url": str(commit.commit_url)}


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
        whole = repository.count("/") == 1
    except HFValidationError:
        whole = False
    if not whole:
        raise RequestError(f"expected OWNER/NAME, as the hub allows them, got {repository!r}; give another name")


def _hub() -> HfApi:
    if constants.HF_HUB_OFFLINE or not reaches(constants.ENDPOINT):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it can't be reached"
        raise RunError(
            f"could not upload to {constants.ENDPOINT}: {why}; connect to the network, or look at what would be "
            "uploaded with --dry-run"
        )
    if get_token() is None:
        raise RequestError(
            f"expected a token that may write to {constants.ENDPOINT}, got none; set HF_TOKEN, or log in with hf auth "
            "login"
        )
    return HfApi(library_name="netgraft")


def _contents(folder: Path, repository: str, revision: str | None) -> dict[str, bytes]:
    """Return what is uploaded, by name."""
    student = next((folder / name for name in IN_A_RUN if (folder / name).is_dir()), folder)
    weights = weights_file(student) if (student / TIMM).is_file() else student / WEIGHTS
    description = TIMM if (student / TIMM).is_file() else OWN
    if weights is None or not all(path.is_file() for path in (weights, student / description)):
        raise RequestError(
            f"expected the folder of a run or of a student, got {folder}, which holds none; check the path"
        )
    check_checksums(student, [description, weights.name], advice=AGAIN)
    if not (student / CARD).is_file():
        raise RequestError(
            f"expected a model card in {student}, got no {CARD}; write one, or have the run write it with --resume"
        )
    try:
        text = published(read_text(student / CARD), repository, revision)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"expected text in {student / CARD}, got something else ({error}); mend it") from error
    contents = {CARD: text.encode(), description: (student / description).read_bytes()}
    for name, content in contents.items():
        _check_nothing_private(name, content.decode(errors="replace"), student, RunFolder(folder).config() or {})
    contents[weights.name] = weights.read_bytes()
    if (student / CHECKSUMS).is_file():
        contents[CHECKSUMS] = (student / CHECKSUMS).read_bytes()
    return contents


def _check_nothing_private(name: str, text: str, student: Path, config: Mapping[str, Any]) -> None:
    """Refuse a text that names a place on this machine: somebody has written it, or an older version has.

    Raises:
        RequestError: It does.
    """
    options = config.get("options")
    asked = [value for value in (options.values() if isinstance(options, dict) else ()) if isinstance(value, str)]
    paths = {value for value in asked if os.sep in value and Path(value).exists()}
    paths |= {str(Path(value).absolute()) for value in paths}
    paths |= {str(student.resolve()), str(Path.home())}
    found = [path for path in sorted(paths, key=len, reverse=True) if len(path) > 2 and path in text]
    if found:
        raise RequestError(
            f"expected nothing in {name} that lies on this machine only, got the path {found[0]}; take it out of "
            f"{student / name}, and push again"
        )
