"""Grids on a Ray cluster: the same results as here, whatever happens to its nodes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from netgraft.cli.main import run

import netgraft
from benchmarks.ray_grid.stand_in import StandIn
from netgraft.errors import RequestError
from netgraft.experiments import cell_process
from netgraft.experiments.cell_process import INTERRUPTED, LEASHED, CellRun, Message
from netgraft.experiments.results import ResultStore
from netgraft.experiments.scheduler import Compute, Grid
from netgraft.experiments.specification import Cell
from tests.experiments.test_scheduler import SMALL, Notes, never
from tests.support.held_runs import gate_at

NEEDS = "needs the extra netgraft[ray]"

ray = pytest.importorskip("ray", reason=NEEDS)
cluster_utils = pytest.importorskip("ray.cluster_utils", reason=NEEDS)
ray_cluster = pytest.importorskip("netgraft.experiments.ray_cluster", reason=NEEDS)

KD = f"{SMALL}subsets = [0, 1]\nsettings = {{ steps = 40 }}\n"

BROKEN = """
[[run]]
name = "broken"
method = "none"
teacher = "digits_vgg7_bn"
teacher_weights = "no-such-file.safetensors"
"""

TIMES = ("seconds", "train_seconds", "frozen_seconds")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, the first of which computes nothing and holds the tests' end of the connection."""
    # Ray's nodes set a handler of their own, which other tests of this process would meet
    former = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as environment:
        # otherwise Ray kills workers where other programs have taken the memory of the machine
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")
        started = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        started.add_node(num_cpus=1)
        signal.signal(signal.SIGTERM, former)
        yield started
        started.shutdown()
    signal.signal(signal.SIGTERM, former)


def opened(folder: Path, text: str) -> tuple[ResultStore, tuple[Cell, ...]]:
    folder.mkdir(exist_ok=True)
    source = folder / "asked.toml"
    source.write_text(text)
    results = ResultStore(folder / "results")
    results.claim(source)
    return results, results.experiment().cells


@contextmanager
def on(cluster: Any, results: ResultStore) -> Iterator[Grid]:
    with ray_cluster.connected(cluster.address):
        nodes = ray_cluster.RayCluster(results.scratch / ".mark")
        yield Grid(results, nodes.places(), threads=1, executor=nodes.executor)


def untimed(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    return {name: value for name, value in content.items() if name not in TIMES and "latency" not in name}


def test_a_grid_that_loses_a_node_ends_with_the_files_of_this_machine(cluster: Any, tmp_path: Path) -> None:
    results, cells = opened(tmp_path / "there", KD)
    victim = cluster.add_node(num_cpus=1)
    notes = Notes()
    killed: list[bool] = []

    def kill_once() -> bool:
        # both nodes have told of a cell, and both cells train
        if not killed and len(notes.events) == 2 and gate.reached == 2:
            killed.append(True)
            cluster.remove_node(victim, allow_graceful=False)
            gate.open()
        return False

    with on(cluster, results) as grid, gate_at(tmp_path / "gate") as gate:
        assert grid.workers == 2  # so that each node has a cell
        replace(grid, executor=gate.executor(grid.executor)).run(cells, notes, kill_once)
    assert killed
    assert not notes.reasons
    names = [cell.name for cell in cells]
    assert sorted(name for event, name in notes.events if event == "finished") == names
    assert sorted(notes.events.count(("started", name)) for name in names) == [1, 2]
    here, _ = opened(tmp_path / "here", KD)
    Grid(here, threads=1).run(cells, Notes(), never)
    for name in names:
        there = untimed(results.folder / f"{name}.json")
        assert there == untimed(here.folder / f"{name}.json")
        assert (there["threads"], there["steps"]) == (1, 40)
    # nothing of the cells or the cluster is left beside them
    assert [path.name for path in results.scratch.iterdir()] == ["answers"]


def test_what_a_cell_has_reported_is_told_before_its_end(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, cells = opened(tmp_path, KD)
    notes = Notes()
    # no look into the mailbox falls into the cell's life
    monkeypatch.setattr(cell_process, "POLL_INTERVAL", 600.0)
    with on(cluster, results) as grid:

        @asynccontextmanager
        async def stand_ins(stopping: asyncio.Event) -> AsyncIterator[Compute]:
            async with grid.executor(stopping) as compute:
                yield lambda cell, tell: compute(StandIn(**vars(cell)), tell)

        replace(grid, executor=stand_ins).run(cells[:1], notes, never)
    assert notes.events == [("started", cells[0].name), ("finished", cells[0].name)]
    assert notes.steps == 1


def test_a_cell_that_fails_is_reported_and_not_retried(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text(KD.partition("[[run]]")[0] + BROKEN)
    started: list[str] = []
    monkeypatch.setattr("netgraft.cli.grid_display.Tally.started", lambda tally, cell: started.append(cell.name))
    command = ["benchmark", "broken.toml", "--out", "out", "--ray", cluster.address]
    assert run(command) == 1
    said = capfd.readouterr()
    # Ray says nothing, neither there nor here
    assert said.out == ""
    reports = [line for line in said.err.splitlines() if "broken-1shot-subset0" in line]
    assert said.err.splitlines()[0] == reports[0]
    assert all("no-such-file.safetensors" in line and "(exit code 2)" in line for line in reports)
    assert "netgraft: 1 of 1 cells failed; the same command tries them again\n" in said.err
    assert started == ["broken-1shot-subset0"]


def test_a_grid_that_is_stopped_goes_on_with_its_cells(cluster: Any, tmp_path: Path) -> None:
    results, cells = opened(tmp_path, KD)
    notes = Notes()
    with on(cluster, results) as grid, gate_at(tmp_path / "gate") as gate:
        # the second cell waits for a place
        assert grid.workers == 1
        held = replace(grid, workers=2, executor=gate.executor(grid.executor))
        held.run(cells, notes, lambda: gate.reached == len(notes.events) == 1)
        [(_, begun), (event, left)] = notes.events
        assert (event, left) == ("left", begun)
        assert "goes on" in notes.reasons[begun]
        [cell] = [cell for cell in cells if cell.name == begun]
        assert (results.work(cell) / "checkpoint.pt").exists()
        again = Notes()
        grid.run([cell], again, never)
    assert again.events == [("started", begun), ("finished", begun)]
    assert again.results[begun]["steps"] == 40
    # it went on behind what was saved
    assert again.steps > 0


def test_a_cluster_is_refused_whose_nodes_see_other_files(cluster: Any, tmp_path: Path) -> None:
    with ray_cluster.connected(cluster.address):
        nodes = ray_cluster.RayCluster(tmp_path / "mark")
        nodes.check([tmp_path])
        with pytest.raises(RequestError, match=r"expected \S+elsewhere on every node"):
            nodes.check([tmp_path, tmp_path / "elsewhere"])


def test_an_address_without_a_cluster_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(KD)
    with socket.socket() as taken:
        # nobody listens there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            assert run(["benchmark", "small.toml", "--out", "out", "--ray", address]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"netgraft: expected a Ray cluster at {address}, got none: Connection refused; ")
            assert len(said.splitlines()) == 1
    assert run(["benchmark", "small.toml", "--out", "out", "--ray", "nonsense"]) == 2
    assert "expected a Ray cluster at nonsense, got none" in capsys.readouterr().err
    assert not Path("out").exists()


NODES = [
    {"Alive": True, "NodeID": "a", "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "NodeID": "b", "Resources": {"CPU": 3.0}},
    {"Alive": False, "NodeID": "c", "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"Alive": True, "NodeID": "d", "Resources": {"memory": 1.0}},
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "places"), [(1, 0, 11), (2, 0, 5), (4, 0, 2), (1, 1, 2), (1, 0.25, 8), (2, 0.25, 4), (1, 2, 1)]
)
def test_places_are_counted_node_by_node(monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: float, places: int) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    assert ray_cluster.RayCluster(Path("mark"), cpus, gpus).places() == places


def test_a_cell_that_no_node_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    with pytest.raises(RequestError, match=r"a node with 4 CPUs and 4 GPUs for a cell, got .* at most 8 CPUs, 2 GPUs"):
        ray_cluster.RayCluster(Path("mark"), 4, 4).places()


def test_a_node_has_the_same_version_and_sees_the_same_files(tmp_path: Path) -> None:
    present, missing = tmp_path / "present", tmp_path / "missing"
    present.touch()
    found = ray_cluster.look_around([present, missing])
    assert found == ray_cluster.Look(netgraft.__version__, (missing,))
    ray_cluster.check_look("one", ray_cluster.look_around([present]))
    with pytest.raises(RequestError, match=r"expected \S+/missing on every node, .*got no such path on one; move it"):
        ray_cluster.check_look("one", found)
    with pytest.raises(RequestError, match=r"expected netgraft \S+ on every node, got 0\.0\.1 on two; install"):
        ray_cluster.check_look("two", ray_cluster.Look("0.0.1", ()))


def test_a_process_of_a_node_has_the_variables_that_decide_bits_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETGRAFT_DATA", "data")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    node = {"OMP_NUM_THREADS": "3", "ATEN_CPU_CAPABILITY": "default", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/home/x"}
    without = ray_cluster.Origin.here(tmp_path / "mark", gpus=0).environment(node)
    assert without == {
        "MKL_CBWR": "COMPATIBLE",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": "/home/x",
        "NETGRAFT_DATA": str(tmp_path / "data"),
    }
    own = {**node, "NETGRAFT_DATA": "/mnt/data"}
    with_gpu = ray_cluster.Origin.here(tmp_path / "mark", gpus=0.5).environment(own)
    assert with_gpu["CUDA_VISIBLE_DEVICES"] == "1"
    assert with_gpu["NETGRAFT_DATA"] == "/mnt/data"


class Post:
    """Stands for a mailbox: keeps messages, and asks to stop after a number of exchanges."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.messages: list[Message] = []
        self.calls = 0
        self.stop_after = stop_after
        self.exchange = SimpleNamespace(remote=self._exchange)

    async def _exchange(self, name: str, messages: Sequence[Message]) -> bool:
        assert name == "cell"
        self.messages += messages
        self.calls += 1
        return self.calls > self.stop_after


STAND_IN = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir()
print(json.dumps({"event": "progressed", "step": 1}), file=sys.stderr, flush=True)
facts = {"folder": str(folder), "threads": os.environ["OMP_NUM_THREADS"], "current": os.getcwd()}
(folder / "result.json").write_text(json.dumps(facts))
"""

PATIENT = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
try:
    print(json.dumps({"event": "progressed", "step": 1}), file=sys.stderr, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    def command(run: CellRun) -> list[str]:
        assert run.module == LEASHED
        return [sys.executable, "-c", program, str(run.folder), str(run.answers)]

    monkeypatch.setattr(CellRun, "command", command)


@pytest.mark.parametrize("shared", [True, False])
def test_a_node_works_in_the_folder_of_results_where_it_sees_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    stand_in(monkeypatch, STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mark = tmp_path / "mark"
    origin = ray_cluster.Origin.here(mark, gpus=0)
    if shared:
        mark.touch()
    before = set(tmp_path.iterdir())
    cell_run = CellRun("cell", (), tmp_path / "cell", tmp_path / "answers", threads=3)
    post = Post()
    ended = ray_cluster.compute_cell(cell_run, origin, post)
    assert ended is not None
    assert ended.result is not None
    assert (ended.result["threads"], ended.result["current"]) == ("3", str(tmp_path))
    assert (ended.result["folder"] == str(tmp_path / "cell")) == shared
    assert post.messages == ["started", {"event": "progressed", "step": 1}]
    # what lies on the node alone is removed
    assert set(tmp_path.iterdir()) - before == ({tmp_path / "cell"} if shared else set())


def test_a_task_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, PATIENT)
    cell_run = CellRun("cell", (), tmp_path / "cell", None, threads=1)
    assert ray_cluster.compute_cell(cell_run, ray_cluster.Origin.here(tmp_path, gpus=0), Post(stop_after=0)) is None

    class Late(Post):
        async def _exchange(self, name: str, messages: Sequence[Message]) -> bool:
            await super()._exchange(name, messages)
            return len(self.messages) == 2  # it sleeps now

    ended = ray_cluster.compute_cell(cell_run, ray_cluster.Origin.here(tmp_path, gpus=0), Late())
    assert ended is not None
    assert ended.code == INTERRUPTED
