"""The device that is made up for tests notices what it is for; what runs on it runs in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.second_device import NO_HOOK, OWN_PROCESS, MixedDevicesError, second_device

alone = pytest.mark.skipif(OWN_PROCESS not in os.environ, reason="runs in the process that a test here starts")


@pytest.mark.skipif(OWN_PROCESS in os.environ, reason="this is that process")
def test_main_paths_run_on_it_in_a_process_of_their_own() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not cuda", str(here)]
    environment = {**os.environ, OWN_PROCESS: "1"}
    done = subprocess.run(
        command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout
    if NO_HOOK in done.stdout:
        pytest.skip(NO_HOOK)
    assert re.search(r"\b1\d passed", done.stdout), done.stdout


@alone
def test_it_computes_what_the_cpu_does_and_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images = torch.randn(2, 3, 8, 8)
    expected = model.eval()(images).detach()
    with second_device() as device:
        weight = model.get_parameter("0.weight")
        model.to(device)
        assert model.get_parameter("0.weight") is weight
        output = model(images.to(device))
        assert output.device == device
        torch.testing.assert_close(output.detach().cpu(), expected)
        output.square().mean().backward()
        before = weight.detach().cpu().clone()
        torch.optim.Adam(model.parameters()).step()
        assert not torch.equal(weight.detach().cpu(), before)


@alone
def test_it_refuses_what_a_gpu_refuses() -> None:
    with second_device() as device:
        here, there = torch.ones(3), torch.ones(3, device=device)
        with pytest.raises(MixedDevicesError):
            here + there
        with pytest.raises(MixedDevicesError):
            nn.Linear(3, 2).to(device)(here)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there.cpu().numpy() == 1).all()
        assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(TypeError, match="float64"):
            there.double()
