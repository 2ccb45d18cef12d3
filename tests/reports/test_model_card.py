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
    names = {"teacher": f"hf-hub:{name}", "data": f"timm:{name}", **dict.fromkeys(("labels", "selection"), name)}
    about, text = parts(model_card(load_run(changed(finished, "run", **names, student=name))))
    assert about["datasets"] == [f"timm:{name}"]
    assert about["base_model"] == name.partition("@")[0]
    assert about["license"] == "apache-2.0"
    [heading] = [line for line in text.splitlines() if line.startswith("#")]
    assert heading.startswith("# ````")
    assert "\nlicense" not in text


def test_the_base_model_is_where_the_hub_has_the_weights(finished: Path) -> None:
    for teacher, options, expected in (
        ("resnet50", {}, "timm/resnet50.a1_in1k"),
        ("hf-hub:someone/theirs@v1", {}, "someone/theirs"),
        ("resnet50", {"teacher_weights": "mine.safetensors"}, None),
        ("torchvision:resnet18", {}, None),
    ):
        shutil.rmtree("run", ignore_errors=True)
        about, _ = parts(model_card(load_run(changed(finished, "run", teacher=teacher, options=options))))
        assert about.get("base_model") == expected


def test_nothing_in_the_card_lies_on_the_disk_of_whoever_made_it(finished: Path) -> None:
    options = {
        "data": "/home/ann/patients",
        "eval_data": "holidays/of ann",
        "teacher": "/home/ann/teacher",
        "teacher_weights": "ann.safetensors",
        "class_map": "ann/classes.txt",
        "subset": "ann.json",
        "student_weights": "ann/weights.pt",
        "shots": 2,
        "keep": "macs=0.5",
    }
    folder = changed(
        finished,
        "run",
        data="patients",
        teacher="/home/ann/teacher",
        student="/home/ann/teacher-macs=0.5",
        options=options,
    )
    about, text = parts(model_card(load_run(folder)))
    card = f"{json.dumps(about)}{text}"
    assert not [word for word in ("ann", "home", "patients", "holidays", str(folder.resolve())) if word in card]
    assert "datasets" not in about
    [command] = [line for line in text.splitlines() if line.startswith("netgraft distill")]
    assert command.startswith("netgraft distill --data DATA --eval-data EVAL_DATA --teacher TEACHER --teacher-weights ")
    assert "--shots 2 --keep macs=0.5" in command
    assert "# `own model-macs=0.5`" in text
    folder = changed(finished, "older", data="patients", student="ann/student", options=...)
    assert not [word for word in ("ann", "patients") if word in model_card(load_run(folder))]


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
