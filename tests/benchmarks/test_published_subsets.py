"""The published subset files are what a run draws with the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from netgraft.data.sources import data_root, open_data
from netgraft.data.subsets import FewShotSubset

FILES = sorted((Path(__file__).parents[2] / "benchmarks" / "subsets").glob("*.json"))


def test_there_are_files_for_every_shot_of_the_experiments() -> None:
    names = {path.stem for path in FILES}
    for shots in (*range(1, 11), 20, 50):
        assert {f"cifar10-jpeg-{shots}shot-seed{seed}" for seed in range(5)} <= names
    for shots in (1, 5, 10, 50):
        assert {f"tinyimagenet100-{shots}shot-seed{seed}" for seed in range(3)} <= names


@pytest.mark.parametrize("name", ["cifar10-jpeg", "tinyimagenet100"])
def test_they_are_drawn_from_the_labels(name: str) -> None:
    if not list(data_root().glob(f"{name}-train*")):
        pytest.skip(f"no {name}-train archive in {data_root()}; set NETGRAFT_DATA to the folder that holds it")
    labels = open_data(name).train.labels
    assert labels is not None
    for path in FILES:
        written = FewShotSubset.load(path)
        if written.dataset == name:
            assert written.shots is not None
            assert path.stem == f"{name}-{written.shots}shot-seed{written.seed}"
            assert written == FewShotSubset.draw(labels, shots=written.shots, seed=written.seed, dataset=name)
            counts = [sum(labels[index] == label for index in written.indices) for label in set(labels)]
            assert set(counts) == {written.shots}
