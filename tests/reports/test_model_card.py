"""A student's folder carries a card that says what result.json says, and opens as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from netgraft.cli.main import run

from netgraft.files import check_checksums
from netgraft.models.students import load_student
from netgraft.reports.finished_runs import load_run
from netgraft.reports.model_card import model_card, write_card
from tests.reports.test_html_report import HOSTILE, changed
from tests.support.cli import QUICK


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    assert run([*QUICK, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The metadata, each line a name and a value in JSON (and so in YAML), and the text."""
    start, metadata, text = card.split("---\n", 2)
    assert start == ""
    lines = [line.partition(": ") for line in metadata.splitlines()]
    return {name: json.loads(value) for name, _, value in lines}, text


def test_distill_leaves_a_card_with_the_figures_of_the_result(finished: Path) -> None:
    about, text = parts((finished / "student" / "README.md").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert about["base_model"] == "digits_vgg7_bn"
    assert about["license"] == "apache-2.0"
    assert about["datasets"] == ["digits"]
    [model] = about["model-index"]
    [measured] = model["results"]
    values = {each["name"]: each["value"] for each in measured["metrics"]}
    assert values["Accuracy"] == pytest.approx(result["student_top1"] / 100, abs=1e-6)
    assert values["Agreement with the teacher"] == pytest.approx(result["agreement"] / 100, abs=1e-6)
    assert f"| parameters | {result['teacher_parameters']:,} | {result['parameters']:,} |" in text
    assert "Measured on 600 images that took no part in training" in text
    assert "\nnetgraft distill --shots 2" in text


def test_the_folder_opens_as_before(finished: Path) -> None:
    student = finished / "student"
    check_checksums(student, ["config.json", "model.safetensors"], advice="")
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        opened = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
        assert torch.equal(opened(images), load_student(student)(images))


def test_the_lines_of_the_card_open_the_student(finished: Path) -> None:
    for plain, start in ((True, "import timm, netgraft.zoo"), (False, "import netgraft\n")):
        _, text = parts(model_card(load_run(changed(finished, f"run-{plain}", opens_with_timm=plain))))
        code = text.split("```python\n")[1].split("```")[0]
        assert code.startswith(start)
        names: dict[str, Any] = {}
        exec(code.replace("FOLDER", str(finished / "student")), names)
        assert names["model"].num_classes == 10


def test_names_are_neither_yaml_nor_markdown(finished: Path) -> None:
    name = f"{HOSTILE} `x` ```\n---\nlicense: mit\n# not a heading"
    names = dict.fromkeys(("teacher", "student", "data", "labels", "selection"), name)
    about, text = parts(model_card(load_run(changed(finished, "run", **names))))
    assert about["base_model"] == name
    assert about["license"] == "apache-2.0"
    [heading] = [line for line in text.splitlines() if line.startswith("#")]
    assert heading.startswith("# ````")
    assert "\nlicense" not in text


def test_a_student_chosen_on_the_test_set_says_so_and_unknown_figures_are_left_out(finished: Path) -> None:
    nothing = dict.fromkeys(("teacher_top1", "student_top1", "gap", "agreement", "test_images"))
    about, text = parts(model_card(load_run(changed(finished, "bare", **nothing))))
    assert "model-index" not in about
    assert "Nothing was measured" in text
    _, text = parts(model_card(load_run(changed(finished, "chosen", selected_on="test"))))
    assert "chosen on the `test` set, so too good" in text


def test_a_card_that_somebody_wrote_on_stays(finished: Path) -> None:
    shutil.copytree(finished, "run")
    Path("run/student/README.md").write_text("mine")
    write_card(load_run(Path("run")))
    assert Path("run/student/README.md").read_text() == "mine"
