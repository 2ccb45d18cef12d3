"""Experiments: what a file multiplies out to, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.errors import RequestError
from netgraft.experiments.specification import Experiment
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose

FILES = sorted((Path(__file__).parents[2] / "benchmarks" / "experiments").glob("*.toml"))


def parse(text: str, tmp_path: Path) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return Experiment.load(path)


def test_lists_multiply_and_the_first_subset_comes_first(tmp_path: Path) -> None:
    experiment = parse(
        """
        title = "Two methods"
        [common]
        data = "digits"
        shots = [1, 10]
        subsets = [0, 1]
        [[run]]
        method = ["kd", "at"]
        settings = { steps = 7 }
        [[run]]
        name = "ours"
        settings = { block_steps = [3, 4], whole_epochs = true }
        """,
        tmp_path,
    )
    assert experiment.title == "Two methods"
    names = [cell.name for cell in experiment.cells]
    rows = [f"{row}-{shots}shot" for row in ("kd", "at", "ours") for shots in (1, 10)]
    by_subset = [{f"{row}-subset{subset}" for row in rows} for subset in (0, 1)]
    assert [set(names[:6]), set(names[6:])] == by_subset
    cell = next(cell for cell in experiment.cells if cell.name == "ours-10shot-subset1")
    assert cell.arguments() == (
        "distill --data digits --shots 10 --subset-seed 1 --seed 1 --block_steps 3,4 --whole_epochs true"
    ).replace("_", "-").split(" ")
    assert cell.asked() == {
        "data": "digits",
        "shots": 10,
        "subset_seed": 1,
        "seed": 1,
        "settings": {"block_steps": "3,4", "whole_epochs": "true"},
    }


def test_seeds_vary_apart_from_subsets_where_they_are_named(tmp_path: Path) -> None:
    text = '[common]\nsubsets = [0, 3]\nseeds = [5, 6]\n[[run]]\nmethod = "kd"\n'
    cells = parse(text, tmp_path).cells
    assert [(c.name, c.options["subset_seed"], c.options["seed"]) for c in cells] == [
        ("kd-subset0-seed5", 0, 5),
        ("kd-subset0-seed6", 0, 6),
        ("kd-subset3-seed5", 3, 5),
        ("kd-subset3-seed6", 3, 6),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", [("subset0", 0, 0)]),
        ("subsets = [3, 4]", [("subset3", 3, 3), ("subset4", 4, 4)]),
        ("subsets = [3, 4]\nseeds = 0", [("subset3-seed0", 3, 0), ("subset4-seed0", 4, 0)]),
        ("seeds = [5, 6]", [("subset0-seed5", 0, 5), ("subset0-seed6", 0, 6)]),
    ],
    ids=["neither", "subsets alone", "one training seed for all subsets", "one subset"],
)
def test_the_training_seed_is_the_subsets_unless_it_is_named(
    tmp_path: Path, keys: str, expected: list[tuple[str, int, int]]
) -> None:
    cells = parse(f'[common]\n{keys}\n[[run]]\nmethod = "kd"\n', tmp_path).cells
    assert [(cell.options["subset_seed"], cell.options["seed"]) for cell in cells] == [
        (subset, seed) for _, subset, seed in expected
    ]
    for cell, (place, subset, seed) in zip(cells, expected, strict=True):
        assert cell.name == f"kd-{place}"
        assert cell.arguments() == f"distill --method kd --subset-seed {subset} --seed {seed}".split()


def test_rows_of_pairs_with_the_same_models_are_told_apart_by_the_pairs_names(tmp_path: Path) -> None:
    text = """
    [[pair]]
    name = "kept"
    student_weights = "mine.safetensors"
    [[pair]]
    name = "new"
    [[run]]
    method = ["kd", "at"]
    name = "{pair}, {method}"
    """
    assert [cell.row for cell in parse(text, tmp_path).cells] == ["kept, kd", "kept, at", "new, kd", "new, at"]


def test_pairs_have_folders_of_their_own(tmp_path: Path) -> None:
    text = """
    [[pair]]
    data = "digits"
    [[pair]]
    name = "mine"
    data = "photos"
    teacher = "resnet34"
    student = "resnet18"
    [[run]]
    method = "kd"
    labeled = true
    """
    one, two = parse(text, tmp_path).cells
    assert (one.name, one.pair, two.name, two.pair) == ("digits/kd-subset0", "digits", "mine/kd-subset0", "mine")
    assert two.arguments()[:7] == ["distill", "--data", "photos", "--teacher", "resnet34", "--student", "resnet18"]
    assert "--labeled" in two.arguments()


def test_published_figures_may_stand_in_lists(tmp_path: Path) -> None:
    text = """
    [[run]]
    method = "kd"
    [[published]]
    name = "KD"
    source = "somewhere"
    shots = [1, 5]
    top1 = [50.5, 60]
    teacher_top1 = 70.0
    """
    # what is no list holds for all of them
    first, second = parse(text, tmp_path).published
    assert (first.shots, first.top1, first.teacher_top1) == (1, 50.5, 70.0)
    assert (second.shots, second.top1, second.source) == (5, 60, "somewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"at least one \[\[run\]\]"),
        ("[[run]]\nmethod =", "can't read"),
        ("[[run]]\nmethods = 'kd'", r"\[\[run\]\] has no 'methods'; it takes .*method"),
        ("title = 'x'\nrun = [1]", "expected a table"),
        ("[[run]]\nname = '{init}'", "name '{init}' asks for 'init'; it can hold pair, method"),
        ("[[run]]\ninit = ['slice', 'random']", r"two cells are called netgraft-subset0; .*\{method\}-\{init\}"),
        ("[commen]\n[[run]]\n", "has no 'commen'"),
        ("[[run]]\n[[published]]\nname = 'x'", "needs name, shots, top1 and source"),
        ("[[run]]\n[[published]]\nname = 'x'\nsource = 'y'\nshots = [1, 2]\ntop1 = [1]", "differ in length"),
    ],
)
def test_what_a_file_asks_for_wrongly_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        parse(text, tmp_path)
    assert str(tmp_path / "experiment.toml") in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=re.escape(str(tmp_path / "no.toml"))):
        Experiment.load(tmp_path / "no.toml")


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_committed_experiment_asks_for_methods_and_settings_that_exist(path: Path) -> None:
    experiment = Experiment.load(path)
    assert experiment.title
    for cell in experiment.cells:
        job: Any = cell.job()
        choose(job.method, job.preset, Budget(100, 10), job.settings)
        assert job.views is None or job.views in VIEW_POLICIES


def test_a_cell_names_the_files_and_folders_that_it_is_computed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "student", "digits"):
        Path(name).mkdir()
    Path("weights.safetensors").touch()
    text = """
    [[pair]]
    data = "photos"
    teacher = "resnet18"
    teacher_weights = "weights.safetensors"
    student = "local-dir:student"
    student_weights = "among-the-data-sets.pt"
    [[run]]
    """
    [cell] = parse(text, tmp_path).cells
    assert cell.paths() == {tmp_path / "photos", tmp_path / "weights.safetensors", tmp_path / "student"}
    # a data set's name means that, whatever lies here
    [named] = parse('[[run]]\ndata = "digits"', tmp_path).cells
    assert named.paths() == set()
