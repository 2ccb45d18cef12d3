"""The command ``netgraft push``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


@click.command()
@click.argument("student", metavar="RUN|STUDENT")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="A repository that is made now is seen by its owner alone.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to; it is made if need be.  [main]")
@click.option("--dry-run", is_flag=True, help="List what would be uploaded; no network is needed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(student: str, repository: str, private: bool, revision: str | None, dry_run: bool, as_json: bool) -> None:
    """Upload a student, with its card, to the Hugging Face hub.

    RUN is the folder of a run, STUDENT that of a student. Weights, description, checksums and card are uploaded in one
    commit, and nothing else of the folder. HF_TOKEN, or hf auth login, says as whom.
    """
    from netgraft.jobs.push import push_student

    from .output import emit_json

    result = push_student(student, repository, private=private, revision=revision, dry_run=dry_run)
    if as_json:
        emit_json(result)
    else:
        _show(result)


def _show(result: Mapping[str, Any]) -> None:
    from .output import count, emit, emit_table

    emit_table(["file", "bytes"], [[file["name"], count(file["bytes"])] for file in result["files"]])
    where = f"{result['repository']}, branch {result['revision']}"
    emit(f"uploaded to {where}: {result['url']}" if result["uploaded"] else f"nothing was uploaded to {where}")
