"""The command that writes subset files."""

from __future__ import annotations

from pathlib import Path

import pytest
from netgraft.cli.main import run
from PIL import Image

from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset


def test_subset_files_are_what_a_run_draws(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["subset", "--data", "digits", "--shots", "1", "--shots", "3", "--seed", "0", "--seed", "5"]
    assert run([*command, "--out", "files"]) == 0
    labels = open_data("digits").train.labels
    assert labels is not None
    for shots in (1, 3):
        for seed in (0, 5):
            written = FewShotSubset.load(Path(f"files/digits-{shots}shot-seed{seed}.json"))
            assert written == FewShotSubset.draw(labels, shots=shots, seed=seed, dataset="digits")
            assert sorted(labels[index] for index in written.indices) == sorted(list(range(10)) * shots)
    assert capsys.readouterr().out.count("\n") == 4
    # again: nothing changes; another subset is never overwritten
    assert run([*command, "--out", "files"]) == 0
    FewShotSubset.draw(labels, shots=3, seed=9, dataset="digits").save(Path("files/digits-3shot-seed5.json"))
    assert run([*command, "--out", "files"]) == 2
    assert "digits-3shot-seed5.json holds another subset" in capsys.readouterr().err


def test_images_without_classes_have_no_shots(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Image.new("L", (8, 8)).save("photos/0.png")
    assert run(["subset", "--data", "photos", "--shots", "1"]) == 2
    assert "no class folders" in capsys.readouterr().err
