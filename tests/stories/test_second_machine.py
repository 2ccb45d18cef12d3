"""The result goes to a second machine: another folder, a fresh process, nothing of the first one left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from netgraft.cli.main import run
from PIL import Image

from netgraft.models.students import load_student
from netgraft.zoo import DIGITS_MEAN, DIGITS_STD
from tests.support.digit_words import write_digits


def on_the_second_machine(folder: Path, command: Sequence[str]) -> str:
    """Run Python in a folder, in a process that knows nothing of this one's data, home or network."""
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **nowhere}
    done = subprocess.run(
        [sys.executable, "-P", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "student", [["--student", "digits_vgg7_bn_half"], ["--keep", "macs=0.5"]], ids=["named", "derived"]
)
def test_a_moved_run_answers_as_before(
    student: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (second / "home").mkdir(parents=True)
    monkeypatch.chdir(first)
    write_digits(Path("photos"), dict.fromkeys(range(10), "."), each=3)
    request = ["distill", "--data", "photos", "--images", "20", "--teacher", "digits_vgg7_bn", *student]
    assert run([*request, "--steps", "10", "--views", "plain", "--out", "run"]) == 0
    said = capsys.readouterr().out.partition("load the student in Python:\n")[2]
    assert run(["predict", "run", "photos", "--csv", "--quiet"]) == 0
    before = capsys.readouterr().out
    images = sorted(Path("photos").glob("*.png"))
    pixels = (
        torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in images]).astype(np.float32))[:, None] / 255
    )
    with torch.no_grad():
        logits = load_student("run/student")((pixels - DIGITS_MEAN[0]) / DIGITS_STD[0])

    shutil.copytree(first / "run", second / "run")
    shutil.copytree(first / "photos", second / "photos")
    np.save(second / "pixels.npy", ((pixels - DIGITS_MEAN[0]) / DIGITS_STD[0]).numpy())
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(first)

    if "--keep" in student:  # a process starts for seconds
        after = on_the_second_machine(second, ["-m", "netgraft", "predict", "run", "photos", "--csv", "--quiet"])
        assert after == before
    # the lines that the run printed, as they stand
    lines = "\n".join(line.strip() for line in said.splitlines() if line.startswith("  "))
    assert "model = " in lines
    script = f"import torch, numpy\n{lines}\nprint(model.eval()(torch.from_numpy(numpy.load('pixels.npy'))).tolist())"
    answered = torch.tensor(json.loads(on_the_second_machine(second, ["-c", script])))
    torch.testing.assert_close(answered, logits)
