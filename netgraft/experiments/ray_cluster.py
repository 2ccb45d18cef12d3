"""Compute cells on a Ray cluster: each cell is a task, whose process is the same as on this machine.

The command that was given keeps what it keeps without a cluster: the locks of the cells, their result files, the words
about them. Nodes run processes and send back how they ended.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import netgraft
from netgraft.errors import RequestError, RunError
from netgraft.experiments import cell_process
from netgraft.experiments.cell_process import INTERRUPTED, LEASHED, STOP_TIMEOUT, CellRun, Ended, Message, Tell

RETRIES = 3
"""How often a cell runs again whose node or worker was lost."""

CONNECT_TIMEOUT = 5.0  # seconds

LOOK_TIMEOUT = 120.0  # seconds for every node to start a worker and look around

EXCHANGE_INTERVAL = 0.5  # seconds between two messages of a task, as often as processes report

STOP_MARGIN = 15.0  # seconds beyond STOP_TIMEOUT that a task has to say how its process ended

THREADS = "OMP_NUM_THREADS"

GPUS = "CUDA_VISIBLE_DEVICES"

DECISIVE = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that decide bits: a node's processes have them as this machine's do."""

DATA = "NETGRAFT_DATA"


@dataclass(frozen=True)
class Origin:
    """Where the command was given, as far as nodes need to know.

    Attributes:
        folder: Its current folder.
        mark: A file beside the results: a node that sees it shares the folder of results.
        data: Folder of the data sets for nodes that have no ``NETGRAFT_DATA`` of their own.
        decisive: Values of those of :data:`DECISIVE` that are set.
        gpus: Of a cell.
    """

    folder: Path
    mark: Path
    data: str | None
    decisive: Mapping[str, str]
    gpus: float

    @classmethod
    def here(cls, mark: Path, gpus: float) -> Origin:
        """Describe this process."""
        data = os.environ.get(DATA)
        return cls(
            Path.cwd(),
            mark,
            None if data is None else str(Path(data).expanduser().absolute()),
            {name: os.environ[name] for name in DECISIVE if name in os.environ},
            gpus,
        )

    def environment(self, node: Mapping[str, str]) -> dict[str, str]:
        """Return a process's variables on a node, given those of the node's worker.

        Ray hides the GPUs from tasks without any in some versions only, and counts a task's CPUs in
        ``OMP_NUM_THREADS``, which the process gets from its :class:`CellRun` instead.
        """
        kept = {name: value for name, value in node.items() if name not in {*DECISIVE, THREADS}}
        if not self.gpus:
            kept[GPUS] = ""
        if self.data is not None:
            kept.setdefault(DATA, self.data)
        return {**kept, **self.decisive}


class Mailbox:
    """Brings messages of tasks to the command, and its wish to stop to them; an actor beside the command."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []
        self._stopping = False

    async def exchange(self, name: str, messages: Sequence[Message]) -> bool:
        """Take a task's messages about a cell; return whether it is to save its work and leave."""
        self._messages += [(name, message) for message in messages]
        return self._stopping

    async def collect(self, stopping: bool) -> list[tuple[str, Message]]:
        """Return all messages since the last call, and hear whether tasks are to stop."""
        self._stopping = stopping
        collected, self._messages = self._messages, []
        return collected


def compute_cell(run: CellRun, origin: Origin, mailbox: Any) -> Ended | None:
    """Compute a cell on this node: a task. Raises like :func:`netgraft.experiments.cell_process.compute`."""
    leashed = replace(run, module=LEASHED)
    if origin.mark.exists():
        return asyncio.run(_compute_and_report(leashed, origin, mailbox))
    with tempfile.TemporaryDirectory(prefix="netgraft-", ignore_cleanup_errors=True) as scratch:
        alone = replace(leashed, folder=Path(scratch) / "run", answers=None)
        return asyncio.run(_compute_and_report(alone, origin, mailbox))


async def _compute_and_report(run: CellRun, origin: Origin, mailbox: Any) -> Ended | None:
    if await mailbox.exchange.remote(run.name, []):
        return None
    stopping = asyncio.Event()
    messages: list[Message] = []
    computing = asyncio.ensure_future(
        cell_process.compute(
            run,
            messages.append,
            stopping,
            environment=origin.environment(os.environ),
            current=origin.folder if origin.folder.is_dir() else None,
        )
    )
    while True:
        await asyncio.wait({computing}, timeout=EXCHANGE_INTERVAL)
        sent = messages.copy()
        messages.clear()
        if await mailbox.exchange.remote(run.name, sent):
            stopping.set()
        if computing.done():
            return computing.result()


@dataclass(frozen=True)
class Look:
    """What a node has.

    Attributes:
        version: Of netgraft.
        missing: Paths that it doesn't see.
    """

    version: str
    missing: tuple[Path, ...]


def look_around(paths: Sequence[Path]) -> Look:
    """Say what this node has: a task."""
    return Look(netgraft.__version__, tuple(path for path in paths if not path.exists()))


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process is connected to.

    Attributes:
        mark: File whose presence tells nodes that they share the folder of results; see :class:`Origin`.
        cpus: That a cell takes.
        gpus: That a cell takes; below 1, cells share one.
    """

    mark: Path
    cpus: int = 1
    gpus: float = 0

    def places(self) -> int:
        """Return how many cells the cluster has room for.

        Raises:
            RequestError: No node has room for one.
        """
        return sum(self._room(node["Resources"]) for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        """Return the nodes with room for a cell."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        roomy = [node for node in alive if self._room(node["Resources"])]
        if not roomy:
            most = ", ".join(
                f"{max((node['Resources'].get(kind, 0) for node in alive), default=0):g} {kind}s"
                for kind in ("CPU", "GPU")
            )
            raise RequestError(
                f"expected a node with {self.cpus} CPUs and {self.gpus:g} GPUs for a cell, got a cluster whose nodes "
                f"have at most {most}; ask for less with --cpus-per-cell and --gpus-per-cell"
            )
        return roomy

    def _room(self, resources: Mapping[str, float]) -> int:
        by_cpus = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(resources.get("GPU", 0) // self.gpus)) if self.gpus else by_cpus

    def check(self, paths: Sequence[Path]) -> None:
        """Make sure that every node has this version of netgraft and sees the paths.

        Raises:
            RequestError: One has another, or none, or doesn't see a path.
        """
        task = ray.remote(look_around)
        looks = {
            node["NodeManagerHostname"]: task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(paths)
            for node in self._nodes()
        }
        for host, reference in looks.items():
            try:
                found = ray.get(reference, timeout=LOOK_TIMEOUT)
            except RayError as error:
                raise RequestError(
                    f"expected netgraft {netgraft.__version__} on every node, got an error on {host}: "
                    f"{_brief(error)}; install it there"
                ) from error
            check_look(host, found)

    @asynccontextmanager
    async def executor(self, stopping: asyncio.Event) -> AsyncIterator[Any]:
        """Run the processes on the nodes. An :data:`netgraft.experiments.scheduler.Executor`."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = (
            ray.remote(Mailbox)
            .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
            .remote()
        )
        task = ray.remote(compute_cell).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        listeners: dict[str, Tell] = {}
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        self.mark.touch()
        origin = Origin.here(self.mark, self.gpus)

        collecting = asyncio.Lock()

        async def collect() -> None:
            async with collecting:
                for name, message in await mailbox.collect.remote(stopping.is_set()):
                    if name in listeners:
                        listeners[name](message)

        async def listen() -> None:
            while True:
                await collect()
                await asyncio.sleep(cell_process.POLL_INTERVAL)

        async def compute(run: CellRun, tell: Tell) -> Ended | None:
            messages: list[Message] = []

            def listener(message: Message) -> None:
                messages.append(message)
                tell(message)

            listeners[run.name] = listener
            try:
                ended = await _await_task(task.remote(run, origin, mailbox), messages, stopping)
                await collect()  # a task sends its last messages before it ends
                return ended
            finally:
                del listeners[run.name]

        listening = asyncio.create_task(listen())
        try:
            # Ray prints there what it notices of nodes; nothing else is printed while a grid is computed
            with redirect_stdout(io.StringIO()):
                yield compute
        finally:
            listening.cancel()
            self.mark.unlink(missing_ok=True)
            ray.kill(mailbox)


async def _await_task(task: ray.ObjectRef, messages: Sequence[Message], stopping: asyncio.Event) -> Ended | None:
    """Return how a cell ended.

    Args:
        task: Computes it.
        messages: That have come from it.
        stopping: See :func:`netgraft.experiments.cell_process.compute`.

    Raises:
        RunError: It was lost with its node again and again, or couldn't start its process.
    """
    ended = asyncio.wrap_future(task.future())
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not messages:
            ray.cancel(task)  # it waits for a place that it may never get
        await asyncio.wait({ended}, timeout=STOP_TIMEOUT + STOP_MARGIN)
        if not ended.done():
            ray.cancel(task, force=True)
            return Ended(INTERRUPTED)
        return ended.result()
    except TaskCancelledError:
        return None
    except RayTaskError as error:
        raise RunError(_brief(error.cause)) from error
    except RayError as error:
        raise RunError(f"its node or worker was lost, {RETRIES + 1} times: {_brief(error)}") from error
    finally:
        asked.cancel()


def check_look(host: str, look: Look) -> None:
    """Make sure of what a node has. Raises RequestError like :meth:`RayCluster.check`."""
    if look.version != netgraft.__version__:
        raise RequestError(
            f"expected netgraft {netgraft.__version__} on every node, got {look.version} on {host}; install the same"
        )
    if look.missing:
        raise RequestError(
            f"expected {look.missing[0]} on every node, as it is here, got no such path on {host}; move it to a folder "
            "that all nodes share, or copy it there"
        )


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect this process to a cluster, quietly.

    Args:
        address: ``HOST:PORT`` of its head, from one of its nodes. If None, what ``RAY_ADDRESS`` names, or a cluster
            that runs on this machine, or else a new one on this machine alone, which ends with the connection.

    Raises:
        RequestError: There is no cluster.
    """
    if address is not None:
        _check_reachable(address)
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # where something else listens: half a minute
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray sets a handler of its own, which would end this process with another exit code
    former = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (RayError, ValueError, OSError, RuntimeError, AssertionError, ImportError) as error:
            raise _no_cluster(address, _brief(error)) from error
        finally:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, former)
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address at which nobody listens: Ray itself asks for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray has words for others
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from error


def _no_cluster(address: str | None, reason: str) -> RequestError:
    where = "on this machine" if address is None else f"at {address}"
    return RequestError(
        f"expected a Ray cluster {where}, got none: {reason}; give the HOST:PORT that ray start --head prints, or "
        "leave the address out"
    )


def _brief(error: BaseException) -> str:
    """Return an error's first line, without a full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
