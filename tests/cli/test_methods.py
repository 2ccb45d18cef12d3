"""What the command line says of methods, and the two tracks as its users meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from netgraft.cli.main import run
from PIL import Image

from netgraft.methods.registry import METHODS, find
from netgraft.options import declared
from tests.support.cli import fails

DISTILL = ["distill", "--shots", "1", "--views", "plain", "--batch-size", "8", "--device", "cpu", "--precision", "32"]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a wrong request, which leaves nothing behind."""
    said = fails(capsys, *arguments)
    assert said.count("\n") == 1
    return said


def result(*arguments: str) -> dict[str, Any]:
    assert run([*DISTILL, *arguments, "--out", "run", "--quiet"]) == 0
    return dict(json.loads(Path("run/result.json").read_text()))


def test_all_methods_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys, "methods")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in listed.splitlines() if line.startswith("|")]
    found = {row[0]: row[1:] for row in rows if row[0] in METHODS}
    assert len(METHODS) == len(found) == 16
    facts = {
        "netgraft": ["offline", "logits", "each block, then each join", "none"],
        "kd": ["offline", "logits", "1", "classes"],
        "at-gradient": ["offline", "attention", "1", "classes"],
        "nst": ["offline", "sparsity", "1", "classes"],
        "fsp": ["offline", "relations", "2: flows, then classes", "classes"],
        "dml": ["online", "logits", "1", "classes"],
        "one": ["online", "logits", "1", "classes"],
        "byot": ["self", "logits and features", "1", "classes"],
        "supervised": ["reference", "labels", "1", "classes"],
        "none": ["reference", "nothing", "1", "none"],
    }
    for name, expected in facts.items():
        assert found[name][:4] == expected
    years = {name: row[-1] for name, row in found.items()}
    assert (years["kd"], years["rkd"], years["ban"], years["none"]) == ("2015", "2019", "2018", "-")
    assert all(row[4] for row in found.values())
    assert "kd+at" in listed


@pytest.mark.parametrize("name", ["rkd", "kd+at", "fitnets+rkd", "ban", "none"])
def test_a_method_shows_its_hyper_parameters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "methods", name)
    assert told.startswith(f"{name}: ")
    for field, option in declared(find(name)).items():
        default = option.default
        [line] = [line for line in told.splitlines() if f"--{field.replace('_', '-')} " in line]
        assert f"{default:g}" in line if isinstance(default, int | float) else default in line
    assert "default" in told


def test_a_method_tells_its_article_and_its_presets(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "methods", "rkd")
    assert "arXiv 1904.05068" in told
    assert all(f"\n  {preset}: " in told for preset in ("default", "repdistiller"))
    assert "doesn't teach" not in told
    assert "the teacher doesn't teach" in shown(capsys, "methods", "dml")
    both = shown(capsys, "methods", "kd+at")
    assert "arXiv 1503.02531" in both
    assert "arXiv 1612.03928" in both


@pytest.mark.parametrize("command", [["methods"], ["distill", "--method"]])
@pytest.mark.parametrize("name", ["kdd", "kd+att"])
def test_an_unknown_method_is_refused_with_a_list(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *command, name)
    assert f"there is no method {name.split('+')[-1]!r}" in said
    assert all(known in said for known in METHODS)


def test_what_can_not_be_combined_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "netgraft can't be combined" in refused(capsys, "methods", "kd+netgraft")
    assert "dml can't be combined" in refused(capsys, "distill", "--method", "dml+kd")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "at", "--at-power", "0.5"], "power must be a finite number of at least 1, not 0.5"),
        (["--method", "ban", "--steps", "2"], "2 steps can't be shared out among 3 generations"),
        (["--method", "ft", "--paraphraser-steps", "0"], "paraphraser_steps must be at least 1"),
        (["--method", "at", "--at-form", "other"], "at_form must be one of paper, code"),
        (["--method", "kd+at", "--preset", "paper"], "kd+at has no preset 'paper'; choose from default"),
    ],
)
def test_impossible_settings_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "distill", *arguments, "--out", "out")


@pytest.mark.parametrize(
    ("method", "labeled", "labels"),
    [
        ("kd", True, "real: labeled track"),
        ("kd", False, "the teacher's answers: unlabeled track"),
        ("none", True, "none: labeled track"),
        ("none", False, "none: unlabeled track"),
    ],
)
def test_a_result_names_its_track(method: str, labeled: bool, labels: str) -> None:
    written = result("--method", method, "--steps", "2", *(["--labeled"] if labeled else []))
    assert written["labels"] == labels
    assert written["method"] == method
    assert written["category"] == find(method).about.category
    assert written["steps"] == 2
    assert written["opens_with_timm"]


def test_labels_are_a_term_of_their_own() -> None:
    def terms(*arguments: str) -> set[str]:
        result("--method", "kd", "--steps", "2", *arguments)
        rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        Path("run").rename("unlabeled" if not arguments else "labeled")
        return set(rows[-1]) - {"phase", "step", "lr"}

    assert terms() == {"kd"}
    assert terms("--labeled") == {"kd", "classes"}


def test_a_view_of_the_labeled_track_shows_one_image() -> None:
    unlabeled = result("--method", "supervised", "--steps", "1", "--views", "rich")
    assert "mixup" in unlabeled["views"]
    Path("run").rename("former")
    labeled = result("--method", "supervised", "--steps", "1", "--views", "rich", "--labeled")
    assert "mixup" not in labeled["views"]
    assert "cutmix" not in labeled["views"]


def test_labels_need_labelled_images(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 80 * number).save(f"photos/{number}.png")
    models = ["--teacher", "digits_vgg7_bn", "--student", "digits_vgg7_bn_half"]
    request = ["distill", "--data", "photos", "--images", "2", *models, "--method", "kd", "--steps", "1"]
    assert "there are no labels; leave --labeled out" in refused(capsys, *request, "--labeled", "--out", "out")
    assert run([*request, "--out", "out", "--quiet"]) == 0


def test_ensembles_are_reported_beside_the_student() -> None:
    written = result("--method", "ban", "--generations", "2", "--steps", "2")
    assert 0 <= written["ensemble_top1"] <= 100
    assert written["ensemble_parameters"] > written["parameters"]
    assert (Path("run/plan.txt").read_text().count("generation 1:"), written["steps"]) == (1, 2)
