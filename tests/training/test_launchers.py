"""Processes that torchrun or srun has started are told from a shell of an allocation, where nobody has started any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning_fabric.plugins.environments import SLURMEnvironment

from netgraft.errors import RequestError
from netgraft.training.launchers import Launch, is_first_process
from netgraft.training.runner import Runner
from tests.support.processes import HANGS, call

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}

# as sbatch --ntasks 4 sets them for its script, and salloc for its shell
ALLOCATION = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NAME": "train.sh",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}

STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*TORCHRUN, *STEP]:
        monkeypatch.delenv(name, raising=False)


def say(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch("torchrun", count=4, nodes=2, rank=3)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        # torchrun in a step of SLURM has the last word
        ({**STEP, **TORCHRUN}, Launch("torchrun", count=4, nodes=2, rank=3)),
        (ALLOCATION, None),
        (STEP, Launch("srun", count=4, nodes=2, rank=2)),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**STEP, "SLURM_JOB_NAME": "bash"}, None),
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, None),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "4(x2)"}, None),
        # left over from something else
        ({"WORLD_SIZE": "4", "RANK": "3"}, None),
    ],
)
def test_what_a_launcher_has_said(environment: dict[str, str], expected: Launch | None) -> None:
    assert Launch.of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        (TORCHRUN, False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, True),
        # the first of its node, not of all
        ({**TORCHRUN, "RANK": "2", "LOCAL_RANK": "0"}, False),
        (ALLOCATION, True),
        (STEP, False),
        ({**STEP, "SLURM_PROCID": "0"}, True),
        # a process that Fabric has started
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({**ALLOCATION, "LOCAL_RANK": "1"}, False),
    ],
)
def test_which_process_speaks(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    say(monkeypatch, environment)
    assert is_first_process() is first


@pytest.mark.parametrize(("environment", "by"), [(TORCHRUN, "torchrun"), (STEP, "srun")])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_number_of_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], by: str, devices: int
) -> None:
    say(monkeypatch, environment)
    said = f"expected devices 4, as many as {by} has started processes, got {devices}; give --devices 4, or start one"
    with pytest.raises(RequestError, match=said):
        _ = Runner(accelerator="cpu", devices=devices).fabric


def test_a_plain_run_in_an_allocation_is_a_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, ALLOCATION)
    # Fabric by itself takes this for a start by SLURM
    assert SLURMEnvironment.detect()
    before = dict(os.environ)
    fabric = Runner(accelerator="cpu").fabric
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
    assert dict(os.environ) == before


def test_processes_that_srun_has_started_find_one_another(tmp_path: Path) -> None:
    process = call("started_by_srun", script=tmp_path / "run.py")
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 0, error
