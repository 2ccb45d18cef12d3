"""Results in Python are exported as the command does it: the same function, the same proof, the same refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import netgraft
from netgraft.data.sources import open_data
from netgraft.errors import RequestError
from netgraft.exporting.pixels import normalised, pixels_of
from tests.support.exports import answers_of_a_stranger

IMAGES = open_data("digits").train.load_many(range(20))


@pytest.fixture(scope="module")
def result() -> netgraft.DistillationResult:
    return netgraft.distill(netgraft.load_teacher("digits_vgg7_bn"), images=IMAGES, keep={"macs": 0.5}, steps=0)


def test_a_derived_student_is_exported_and_proven_on_the_photographs(
    result: netgraft.DistillationResult, tmp_path: Path
) -> None:
    exported = result.export(tmp_path / "student.pt2", to="pt2", images=IMAGES, license="mit")
    assert exported.proof.images == 1 + 3 + 20
    images = normalised(pixels_of(IMAGES, result.data_config), result.data_config)
    with torch.no_grad():
        expected = result.student(images)
        opened = torch.export.load(str(exported.path))
        assert torch.allclose(opened.module()(images), expected, atol=1e-5)
    extra = {"netgraft.json": ""}
    torch.export.load(str(exported.path), extra_files=extra)
    assert json.loads(json.loads(extra["netgraft.json"])["license"]) == "mit"
    with pytest.raises(RequestError, match="expected a new file"):
        result.export(exported.path, to="pt2")


def test_it_is_exported_to_onnx_in_float_and_in_8_bits(result: netgraft.DistillationResult, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra netgraft[export]")
    others = open_data("digits").test_or_all().load_many(range(100))
    whole = result.export(tmp_path / "float.onnx", with_preprocessing=True)
    small = result.export_int8(
        tmp_path / "int8.onnx", calibration=IMAGES, held_out=others, max_drop=30, with_preprocessing=True
    )
    assert (small.calibration_images, small.agreement_images, small.held_out) == (20, 100, True)
    pixels = pixels_of(others, result.data_config).numpy()
    found = answers_of_a_stranger({whole.path: {"all": pixels}, small.path: {"all": pixels}})
    float_answers, int8_answers = (found[path]["all"].argmax(1) for path in (whole.path, small.path))
    assert 100 * float((float_answers == int8_answers).mean()) == pytest.approx(small.agreement)
    with torch.no_grad():
        expected = result.student(normalised(torch.from_numpy(pixels), result.data_config)).argmax(1)
    assert (torch.from_numpy(float_answers) == expected).all()
    with pytest.raises(RequestError, match="expected photographs to find the ranges of 8 bits with, got none"):
        result.export_int8(tmp_path / "none.onnx", calibration=[])
