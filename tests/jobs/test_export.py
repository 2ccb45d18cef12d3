"""``netgraft export``: a run's folder in, one proven file out, or one sentence."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from netgraft.cli.main import run
from timm.data import resolve_model_data_config

from netgraft.data.sources import open_data
from netgraft.jobs.export import license_of
from netgraft.jobs.photographs import find_photographs
from netgraft.models.students import load_student, save_student
from tests.support.cli import QUICK, fails, run_json
from tests.support.random_models import build

OPENVINO = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "openvino")),
    reason="needs the extra netgraft[openvino]",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    assert run([*QUICK, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_is_exported_and_proven_on_its_photographs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "export", str(finished), "--to", "pt2", "--out", "m.pt2")
    assert (result["compared_on"], result["photographs"]) == (1 + 3 + 20, 20)
    assert 0 <= result["difference"] <= result["tolerance"] == 1e-4
    assert result["bytes"] == Path("m.pt2").stat().st_size
    assert result["files"] == [result["file"]] == ["m.pt2"]
    assert result["batch"] is None
    names = [f"{who}latency_ms_{batch}" for who in ("", "pytorch_") for batch in (1, 64)]
    assert all(result[name] > 0 for name in names)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = torch.export.load("m.pt2").module()(images)
        assert torch.allclose(found, load_student(finished)(images), atol=1e-5)


@OPENVINO
def test_openvino_has_two_files_and_people_read_both(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", str(finished), "--to", "openvino", "--out"]
    assert run([*asked, "m.xml", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("m.xml and m.bin: ")
    assert "OpenVINO" in [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert sorted(path.name for path in Path().iterdir()) == ["m.bin", "m.xml"]
    assert "expected a new file, got m.xml, which exists" in fails(capsys, *asked, "m.xml")
    assert "expected a name that ends in .xml for --to openvino, got n.onnx" in fails(capsys, *asked, "n.onnx")


def test_people_read_what_was_proven_and_how_long_it_takes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(finished / "student"), "--to", "pt2", "--out", "m.pt2", "--with-preprocessing"]) == 0
    captured = capsys.readouterr()
    assert "proven on 4 images (0 of the run's photographs): same top-1 on all" in captured.out
    assert "no photographs of a run were found" in captured.err
    assert [line.split("|")[1].strip() for line in captured.out.splitlines() if line.startswith("|")][1:] == [
        "torch.export",
        "PyTorch",
    ]


def test_requests_that_can_not_be_met_are_one_sentence(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["export", str(finished), "--to"]
    assert "expected one of onnx, pt2, openvino, litert as format, got 'tflite'" in fails(
        capsys, *there, "tflite", "--out", "m"
    )
    assert "expected a folder for m.pt2" in fails(capsys, *there, "pt2", "--out", "nowhere/m.pt2")
    Path("m.pt2").touch()
    assert "expected a new file, got m.pt2, which exists" in fails(capsys, *there, "pt2", "--out", "m.pt2")
    Path("empty").mkdir()
    assert "empty holds no student" in fails(capsys, "export", "empty", "--to", "pt2", "--out", "n.pt2")
    said = fails(capsys, "export", "resnet18", "--to", "pt2", "--out", "n.pt2")
    assert "expected the folder of a run or of a student, got resnet18" in said


def test_a_file_that_answers_otherwise_ends_with_1(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netgraft.exporting.proof.TOLERANCE", -1.0)
    assert run(["export", str(finished), "--to", "pt2", "--out", "m.pt2", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("netgraft: the export isn't the model: logits differ by")
    assert not Path("m.pt2").exists()


# --- what is found again of a run


def test_the_photographs_of_a_run_are_those_of_its_subset(finished: Path) -> None:
    found = find_photographs(finished)
    assert found is not None
    numbers = json.loads((finished / "subset.json").read_text())["indices"]
    expected = open_data("digits").train.load_many(numbers)
    assert [image.tobytes() for image in found.few] == [image.tobytes() for image in expected]
    assert found.others is not None
    assert found.others.name == "digits/test"


CONFIGS: dict[str, Any] = {
    "other data": {"data": "cifar10-jpeg"},
    "data that is gone": {"data": "gone"},
    "no data": {},
    "data of another kind": {"data": 3},
    "nothing": None,
}


@pytest.mark.parametrize("config", CONFIGS)
def test_photographs_that_are_gone_are_none(config: str, finished: Path) -> None:
    Path("run").mkdir()
    if CONFIGS[config] is not None:
        Path("run/config.json").write_text(json.dumps(CONFIGS[config]))
    Path("run/subset.json").write_bytes((finished / "subset.json").read_bytes())
    assert find_photographs(Path("run")) is None


def test_the_licence_is_that_of_the_teachers_weights() -> None:
    model = build("cifar_resnet8")
    save_student(Path("run/student"), model, model, cuts=(), data_config=resolve_model_data_config(model))
    for options, expected in (({}, "apache-2.0"), ({"teacher_weights": "mine.pt"}, None), (None, None)):
        config = {"teacher": "resnet50.a1_in1k", "options": options}
        Path("run/config.json").write_text(json.dumps(config))
        assert license_of(Path("run")) == expected
    assert license_of(Path("run/student")) is None
