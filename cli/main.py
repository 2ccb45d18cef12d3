"""The command ``netgraft``: commands, exit codes, and errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import netgraft
from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.training.heap import keep_freed_memory

from .benchmark import benchmark
from .distill import distill
from .evaluate import evaluate
from .methods import methods
from .run import is_first_process
from .split import split
from .subset import subset
from .table import table
from .train import train

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(netgraft.__version__, prog_name="netgraft")
def cli() -> None:
    """Few-shot knowledge distillation for timm image classifiers."""


for command in (distill, train, evaluate, split, methods, subset, benchmark, table):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code."""
    try:
        return _carry_out(arguments)
    except RequestError as error:
        return _end(WRONG_REQUEST, str(error))
    except RunError as error:
        return _end(FAILED, str(error))
    except InterruptedRunError as error:
        return _end(INTERRUPTED, str(error))
    except (KeyboardInterrupt, click.Abort):
        return _end(INTERRUPTED, "interrupted; a run that had begun goes on with --resume")
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        return _end(FAILED, f"{error.strerror or error}{where}; see to it, then go on with --resume")


def _carry_out(arguments: Sequence[str]) -> int:
    try:
        # without click's own way of ending: it returns the code of --help and --version
        code = cli.main(list(arguments), prog_name="netgraft", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else DONE


def _end(code: int, message: str) -> int:
    """Say why; a further process of the same command leaves that, and the exit code, to the first.

    Its own code must not tell Fabric's observer that it has died, which would kill the first at once.
    """
    if not is_first_process():
        return DONE
    click.echo(f"netgraft: {message}", err=True)
    return code


def main() -> None:
    """Entry point."""
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
