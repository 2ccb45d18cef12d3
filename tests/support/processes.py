"""Runs in processes of their own: one that is killed, two that share batches or independent phases."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from netgraft.errors import RunError
from netgraft.training.launchers import is_first_process
from netgraft.training.runner import Runner
from tests.support.tiny_plan import LONG, SHARED, Case, IndependentPhases, Squared, make_views

HANGS = 600
"""Seconds after which a process is taken to hang, however much else the machine computes."""


def heed_ctrl_c() -> None:
    """Called in a child before its program: a job in the background of a script inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def die() -> None:
    os.kill(os.getpid(), 9)


def killed_run(folder: str, at: str, seconds: str) -> None:
    """Start a run that ends by SIGKILL inside the objective; a subprocess calls this."""
    torch.set_num_threads(1)
    runner = Runner(accelerator="cpu", precision="32", checkpoint_seconds=float(seconds))
    Case(dropout=0.5, schedules=LONG, objective=Squared(surprise_at=int(at), surprise=die)).run(
        runner=runner, folder=Path(folder)
    )


def call(function: str, *arguments: str, script: Path, module: str = __name__) -> subprocess.Popen[str]:
    """Call a function of a module, of this one by default, in a process of its own."""
    script.write_text(f"import sys\nfrom {module} import {function}\n{function}(*sys.argv[1:])\n")
    command = [sys.executable, str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@contextmanager
def held_port() -> Iterator[int]:
    """Hold a port at which processes can find one another, so that no other program gets it before they do.

    Who listens there may, as PyTorch does, take an address that is bound and not listened at.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def share(case: Case, folder: str) -> None:
    """Run a case on two processes, which Fabric starts; each writes down its student."""
    with held_port() as port:
        os.environ.setdefault("MASTER_PORT", str(port))  # the second process has the first one's
        runner = Runner(accelerator="cpu", precision="32", devices=2)
        case.run(runner=runner, views=make_views(7), folder=Path(folder))
    torch.save(case.student.state_dict(), Path(folder) / f"rank{runner.fabric.global_rank}.pt")


def shared_run(folder: str) -> None:
    """Run the usual case on two processes; a subprocess calls this."""
    share(Case(norm=False, schedules=SHARED), folder)


def two_processes(work: Callable[[], None]) -> list[int]:
    """Do the same in two processes that Fabric takes for its own, forked so that nothing is imported again.

    Returns:
        The exit codes.
    """
    # PyTorch does at the first step, in each process anew
    importlib.import_module("torch._dynamo")
    children = []
    with held_port() as port:
        for rank in range(2):
            child = os.fork()
            if not child:
                signal.alarm(HANGS)  # the other one may never answer
                os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                try:
                    work()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def independent_run(folder: Path, resume: bool = False, deaths: tuple[int, int] = (-1, -1)) -> list[int]:
    """Carry out ``IndependentPhases`` on two processes; each dies at a call of the objective, if one is given."""

    def work() -> None:
        runner = Runner(accelerator="cpu", precision="32", devices=2, checkpoint_seconds=0)
        rank = runner.fabric.global_rank
        case = IndependentPhases(Squared(surprise_at=deaths[rank], surprise=die))
        runner.run(case.plan, make_views(), folder=folder, resume=resume)
        torch.save(case.student.state_dict(), folder / f"rank{rank}.pt")

    return two_processes(work)


def independent_runs(folder: str) -> None:
    """Run them through, killed and resumed, and killed and resumed without what one process had saved."""
    torch.set_num_threads(1)
    root = Path(folder)
    whole, killed, without = (root / name for name in ("whole", "killed", "without"))
    whole.mkdir()
    killed.mkdir()
    assert independent_run(whole) == [0, 0]
    # the first process dies in its second phase, the other one in its first
    assert independent_run(killed, deaths=(17, 13)) == [-9, -9]
    shutil.copytree(killed, without)
    for path in without.glob("*-1.*"):
        path.unlink()
    assert independent_run(killed, resume=True) == [0, 0]
    assert independent_run(without, resume=True) == [0, 0]


def shared_pair(folder: Path, *, resume: bool = False, dies: int = -1) -> list[int]:
    """Carry out the usual case on two processes that share its batches; one is killed in its second phase, if asked.

    Returns:
        The exit codes: 3 of a process that is told of the other one's death.
    """

    def work() -> None:
        runner = Runner(accelerator="cpu", precision="32", devices=2, checkpoint_seconds=0)
        rank = runner.fabric.global_rank
        case = Case(norm=False, schedules=SHARED, objective=Squared(surprise_at=7 * (rank == dies) - 1, surprise=die))
        try:
            runner.run(case.plan, make_views(7), folder=folder, resume=resume)
        except RunError as error:
            assert str(error) == "another process of this run has died; what was saved stays, go on with --resume"  # noqa: PT017
            os._exit(3)
        torch.save(case.student.state_dict(), folder / f"rank{rank}.pt")

    folder.mkdir(exist_ok=True)
    return two_processes(work)


def killed_pairs(folder: str) -> None:
    """Run a pair through, and pairs of which one is killed and that go on; a subprocess calls this."""
    torch.set_num_threads(1)
    root = Path(folder)
    assert shared_pair(root / "whole") == [0, 0]
    assert shared_pair(root / "first", dies=0) == [-9, 3]
    assert shared_pair(root / "second", dies=1) == [3, -9]
    for name in ("first", "second"):
        assert not (root / name / "rank0.pt").exists()
        assert shared_pair(root / name, resume=True) == [0, 0]


def started_by_srun() -> None:
    """Start Fabric in two processes as srun starts them, in a step of a larger allocation; a subprocess calls this."""

    def work() -> None:
        rank = os.environ.pop("LOCAL_RANK")
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "3", "SLURM_JOB_NAME": "fit"}
        seen = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
        os.environ |= {**step, **seen, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        runner = Runner(accelerator="cpu", devices=2)
        assert (runner.fabric.global_rank, runner.fabric.world_size) == (int(rank), 2)
        assert is_first_process() is (rank == "0")
        assert runner.fabric.broadcast(rank) == "0"

    assert two_processes(work) == [0, 0]
