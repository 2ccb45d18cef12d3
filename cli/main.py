"""The command ``netgraft``: commands, exit codes, and errors in one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from contextlib import suppress

import click

import netgraft
from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.training.heap import keep_freed_memory
from netgraft.training.launchers import is_first_process

from .benchmark import benchmark
from .distill import distill
from .entry import main
from .evaluate import evaluate
from .export import export
from .methods import methods
from .predict import predict
from .push import push
from .report import report
from .split import split
from .subset import subset
from .suggest import suggest
from .table import table
from .train import train

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EEXIST}
"""What is wrong with a path that was asked for, not with the machine."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(netgraft.__version__, prog_name="netgraft")
def cli() -> None:
    """Few-shot knowledge distillation for timm image classifiers."""


for command in (
    distill,
    train,
    evaluate,
    predict,
    export,
    push,
    split,
    suggest,
    methods,
    subset,
    benchmark,
    table,
    report,
):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code."""
    try:
        return _carry_out(arguments)
    except RequestError as error:
        return _end(WRONG_REQUEST, " ".join(str(error).splitlines()))
    except RunError as error:
        return _end(FAILED, str(error))
    except InterruptedRunError as error:
        return _end(INTERRUPTED, str(error))
    except (KeyboardInterrupt, click.Abort):
        return _end(INTERRUPTED, "interrupted; a run that had begun goes on with --resume")
    except OSError as error:
        if error.errno in UNUSABLE and error.filename:
            path = _shortened(str(error.filename))
            return _end(WRONG_REQUEST, f"expected a path that can be used, got {path}: {error.strerror}; give another")
        where = f" at {error.filename}" if error.filename else ""
        return _end(FAILED, f"{error.strerror or error}{where}; see to it, then go on with --resume")


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}...{path[-50:]}"


def _carry_out(arguments: Sequence[str]) -> int:
    if any("\0" in argument for argument in arguments):  # no shell passes one on, but a program may
        raise RequestError("expected arguments without NUL characters, got one; leave it out")
    try:
        # without click's own way of ending: it returns the code of --help and --version
        code = cli.main(list(arguments), prog_name="netgraft", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # not before click 8.2
            error.show()
            return error.exit_code
        return _end(WRONG_REQUEST, _in_one_sentence(error))
    return code if isinstance(code, int) else DONE


def _in_one_sentence(error: click.ClickException) -> str:
    said = "; ".join(part.strip().rstrip(".") for part in error.format_message().splitlines() if part.strip())
    context = getattr(error, "ctx", None)
    said = re.sub(r"\. (?=[A-Z])", "; ", said[:1].lower() + said[1:])
    return said if context is None else f"{said}; see {context.command_path} --help"


def _end(code: int, message: str) -> int:
    """Say why; a further process of the same command leaves that, and the exit code, to the first.

    Its own code must not tell Fabric's observer that it has died, which would kill the first at once.
    """
    if not is_first_process():
        return DONE
    with suppress(OSError):  # nobody reads it
        click.echo(f"netgraft: {message}", err=True)
    return code


def run_alone(arguments: Sequence[str]) -> int:
    """Carry out the command line of a process that does nothing else, and return its exit code."""
    keep_freed_memory()
    return run(arguments)


if __name__ == "__main__":
    main()
