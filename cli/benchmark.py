"""The command that computes a grid: benchmark."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netgraft.errors import InterruptedRunError, RequestError, RunError

from .options import PATH, DeclaredCommand, flag, job_options

if TYPE_CHECKING:
    from netgraft.experiments.ray_cluster import RayCluster
    from netgraft.experiments.results import ResultStore
    from netgraft.experiments.scheduler import Grid
    from netgraft.experiments.specification import Cell


@click.command(cls=DeclaredCommand, declared=lambda: job_options("accelerator"))
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, help="Folder of the result files; results/ with the file's name by default.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Cells side by side; 1 by default, with --ray as many as the cluster has room for.",
)
@click.option(
    "--cpus-per-cell",
    type=click.IntRange(min=1),
    help="Threads of a cell, with --ray also the CPUs that it takes; the workers share this machine's threads by "
    "default, with --ray 1.",
)
@click.option(
    "--gpus-per-cell",
    type=click.FloatRange(min=0),
    help="GPUs that a cell takes of the cluster of --ray, or 0.5 for half of one; 0 by default, with --device cuda 1.",
)
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="",
    metavar="[HOST:PORT]",
    help="Compute the cells on a Ray cluster: that at HOST:PORT, or the one that runs here, or a new one of this "
    "machine alone.",
)
@click.option("--only", multiple=True, metavar="TEXT", help="Only cells with TEXT in their names; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the cells and an estimate of the time.")
@flag("--quiet", "Say nothing but errors.")
def benchmark(
    file: Path,
    out: Path | None,
    workers: int | None,
    cpus_per_cell: int | None,
    gpus_per_cell: float | None,
    address: str | None,
    only: tuple[str, ...],
    dry_run: bool,
    accelerator: str | None,
    quiet: bool | None,
) -> None:
    """Compute the cells of FILE, a TOML file, that are not finished yet.

    Each cell is one run of netgraft distill with a result file of its own. A killed grid goes on where it stopped; a
    cell that fails doesn't stop the others.
    """
    from netgraft.experiments.results import ResultStore
    from netgraft.experiments.scheduler import Grid
    from netgraft.experiments.specification import Experiment, path_component

    experiment = Experiment.load(file)
    results = ResultStore(out or Path("results") / path_component(file.stem))
    extra = () if accelerator is None else ("--device", accelerator)
    grid = Grid(results, workers or 1, extra, cpus_per_cell)
    cells = [cell for cell in experiment.cells if not only or any(text in cell.name for text in only)]
    if not cells:
        names = ", ".join(cell.name for cell in experiment.cells[:5])
        raise click.UsageError(f"no cell's name has {' or '.join(only)} in it; the first are {names}")
    gpus = _gpus(gpus_per_cell, address, accelerator)
    if dry_run:
        _preview(grid, cells, title=experiment.title, quiet=bool(quiet))
        return
    pending = grid.pending(cells)
    experiment.check_methods()
    with ExitStack() as connection:
        if address is not None and pending:
            cluster = connection.enter_context(_cluster(address, results, cpus_per_cell or 1, gpus))
            cluster.check(sorted({path for cell in pending for path in cell.paths()}))
            grid = Grid(results, workers or cluster.places(), extra, cluster.cpus, cluster.executor)
        results.claim(file)
        _compute(grid, cells, pending, title=experiment.title, quiet=bool(quiet))


def _gpus(asked: float | None, address: str | None, accelerator: str | None) -> float:
    """Return how many GPUs a cell takes of a cluster."""
    if address is None:
        if asked is not None:
            raise click.UsageError("--gpus-per-cell is for --ray alone; add that, or leave it out")
        return 0
    gpus = float(accelerator == "cuda") if asked is None else asked
    if gpus > 1 and gpus != int(gpus):
        raise click.UsageError(f"expected a whole number of GPUs, or a part of one, got {gpus:g}; give one of these")
    if not gpus and accelerator == "cuda":
        raise click.UsageError("--device cuda needs GPUs; give more with --gpus-per-cell, or leave it out")
    return gpus


@contextmanager
def _cluster(address: str, results: ResultStore, cpus: int, gpus: float) -> Iterator[RayCluster]:
    """Connect to a cluster."""
    if find_spec("ray") is None:
        raise RequestError(
            "expected the package ray for --ray, got none; install it with pip install 'netgraft[ray]', or leave --ray "
            "out"
        )
    from netgraft.experiments.ray_cluster import RayCluster, connected

    with connected(address or None):
        mark = results.scratch.absolute() / f".ray-{secrets.token_hex(8)}"
        yield RayCluster(mark, cpus, gpus)


def _preview(grid: Grid, cells: Sequence[Cell], *, title: str, quiet: bool) -> None:
    from netgraft.experiments.estimate import Estimate

    from .grid_display import duration
    from .output import emit, emit_table
    from .progress_display import open_reporter

    found = [(cell, grid.results.find(cell)) for cell in cells]
    estimate = Estimate([(cell, result) for cell, result in found if result is not None])
    pending = [cell for cell, result in found if result is None]
    times: dict[str, str] = {}
    total, unknown = 0.0, ""
    with open_reporter(sys.stderr, quiet=quiet) as reporter:
        for cell in reporter.track(pending, total=len(pending), name="estimating the time"):
            try:
                seconds = estimate.seconds(cell)
            except RequestError as error:
                unknown, times[cell.name] = str(error), "unknown"
            else:
                total += seconds
                times[cell.name] = duration(seconds) if estimate.is_measured(cell) else f"~ {duration(seconds)}"
    rows = [[cell.name, shlex.join(cell.arguments()), times.get(cell.name, "finished")] for cell in cells]
    emit_table(["cell", "netgraft ...", "time"], rows, title=title)
    emit(f"{len(cells)} cells, {len(pending)} to compute: about {duration(total / grid.workers)} on this machine")
    if any(time.startswith("~") for time in times.values()):
        emit("~ is a guess from a few forwards of the models; other times are of the row's finished cells here")
    if unknown:
        emit(f"not all could be estimated: {unknown}")


def _compute(grid: Grid, cells: Sequence[Cell], pending: Sequence[Cell], *, title: str, quiet: bool) -> None:
    from .grid_display import open_view
    from .output import emit
    from .signals import interruptible

    done = len(cells) - len(pending)
    with open_view(title, len(cells), done, sys.stderr, quiet=quiet) as tally, interruptible() as interruption:
        grid.run(pending, tally, interruption.requested)
    # another command may have stored what this one has left
    missing = [cell.name for cell in grid.pending(cells)]
    failures = {name: reason for name, reason in tally.failures.items() if name in missing}
    if failures:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise RunError(f"{len(failures)} of {len(cells)} cells failed; the same command tries them again\n{reasons}")
    if missing:
        done = len(cells) - len(missing)
        raise InterruptedRunError(f"{done} of {len(cells)} cells are finished; the same command goes on")
    if not quiet:
        emit(f"{len(cells)} cells in {grid.results.folder}; netgraft table {grid.results.folder} shows them")
