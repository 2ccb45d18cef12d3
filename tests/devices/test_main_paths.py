"""What people do first, on a device that isn't the CPU: nothing is left behind there, and nothing mixed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning_fabric import Fabric
from timm.data import resolve_model_data_config
from torch import nn

import netgraft
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.errors import InterruptedRunError
from netgraft.evaluation.comparison import predictions
from netgraft.evaluation.metrics import macs, predict, top1
from netgraft.exporting.export import export
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student
from netgraft.modules import state_digest
from netgraft.progress import SilentReporter
from netgraft.training.runner import Runner
from tests.support.cli import run_json
from tests.support.second_device import OWN_PROCESS, second_device

WHERE = [
    *([pytest.param("second", id="made up")] if OWN_PROCESS in os.environ else []),
    pytest.param("cuda", marks=pytest.mark.cuda),
]


class FabricOn:
    """One process's Fabric, whose device is another."""

    def __init__(self, fabric: Fabric, device: torch.device) -> None:
        self.device = device
        self._fabric = fabric

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fabric, name)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda", 0)
    else:
        with second_device() as made_up:
            yield made_up


def runner(device: torch.device, precision: str = "32") -> Runner:
    if device.type == "cuda":
        return Runner(accelerator="cuda", precision=precision)
    there = Runner(accelerator="cpu", precision=precision)
    there.__dict__["fabric"] = FabricOn(there.fabric, device)
    return there


FEW = ViewPolicy("few", pad=1, hflip=0.5, pool=64)


def images(count: int = 20) -> list[Any]:
    return netgraft.open_data("digits").train.load_many(range(count))


def prepared(device: torch.device, *, teacher_there: bool = False, precision: str = "32", **asked: Any) -> Distillation:
    asked = {"views": FEW, **asked}
    teacher = load_teacher("digits_vgg7_bn")
    torch.manual_seed(0)
    student = timm.create_model("digits_vgg7_bn_half")
    if teacher_there:
        teacher.to(device)
    return prepare(teacher, student, images(), runner=runner(device, precision), **asked)


def placed(model: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


HOW = [
    pytest.param({"steps": 2}, id="solved"),
    pytest.param({"method": "netgraft", "init": "slice", "inherit": "none", "steps": 4}, id="grafts and joins"),
    pytest.param({"method": "kd+at", "init": "random", "steps": 2}, id="kd and at"),
    pytest.param({"method": "kd", "init": "keep", "steps": 2}, id="a student that is kept"),
    pytest.param({"method": "none", "init": "slice"}, id="nothing to train"),
]


@pytest.mark.parametrize("device", WHERE, indirect=True)
@pytest.mark.parametrize("asked", HOW)
def test_teacher_and_student_end_on_the_device(device: torch.device, asked: dict[str, Any]) -> None:
    distilled = prepared(device, **asked)
    result = distilled.run()
    assert placed(result.student) == placed(distilled.teacher) == {device}
    assert state_digest(distilled.teacher) == state_digest(load_teacher("digits_vgg7_bn"))


def logits_of(model: nn.Module) -> torch.Tensor:
    test = netgraft.open_data("digits").train.part(range(100, 150), "others")
    return predictions(model, test, resolve_model_data_config(model), SilentReporter())[0]


@pytest.mark.parametrize("device", WHERE, indirect=True)
def test_a_start_in_closed_form_from_a_teacher_there_is_that_of_the_cpu(device: torch.device) -> None:
    there = logits_of(prepared(device, teacher_there=True).model)
    here = logits_of(prepared(torch.device("cpu")).model)
    assert float((there - here).square().mean() / here.var()) < 0.01


@pytest.mark.parametrize("device", WHERE, indirect=True)
def test_a_student_is_derived_from_a_teacher_on_the_device(device: torch.device) -> None:
    teacher = load_teacher("digits_vgg7_bn").to(device)
    derived = netgraft.derive(teacher, images(), keep={"macs": 0.7}, views=FEW)
    assert placed(derived.student) == {device}
    teachers, students = derived.choice.costs["macs"]
    assert macs(derived.student, (1, 8, 8)) == students
    assert students <= 0.7 * teachers


@pytest.mark.parametrize("device", WHERE, indirect=True)
def test_a_student_is_trained_there_between_rounds_that_are_solved_where_the_teacher_lies(device: torch.device) -> None:
    asked = netgraft.DerivingOptions(rounds=2, recovery_steps=2)
    teacher = load_teacher("digits_vgg7_bn")
    result = netgraft.distill(
        teacher, images=images(), keep={"macs": 0.5}, views=FEW, deriving=asked, steps=2, runner=runner(device)
    )
    assert placed(result.student) == {device}
    assert result.facts()["steps"] == 4
    assert state_digest(teacher) == state_digest(load_teacher("digits_vgg7_bn"))


@pytest.mark.parametrize("device", WHERE, indirect=True)
def test_a_run_that_was_stopped_goes_on_there(device: torch.device, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"method": "kd", "init": "random", "steps": 6}
    whole = prepared(device, **asked).run()
    steps = iter(range(100))
    with pytest.raises(InterruptedRunError):
        prepared(device, **asked).run(folder=tmp_path, stop=lambda: next(steps) == 3)
    again = prepared(device, **asked).run(folder=tmp_path, resume=True)
    assert placed(again.student) == {device}
    for name, tensor in whole.student.state_dict().items():
        # gradients of convolutions may be summed in another order each time
        torch.testing.assert_close(again.student.state_dict()[name].cpu(), tensor.cpu(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("device", WHERE, indirect=True)
def test_what_is_exported_of_a_student_there_answers_alike(device: torch.device, tmp_path: Path) -> None:
    student = prepared(device, method="kd", init="slice", steps=1).run().student
    exported = export(student, tmp_path / "student.pt2", to="pt2")
    assert placed(student) == {device}
    probe = torch.randn(5, 1, 8, 8)
    logits, _ = predict(student, [(probe, torch.zeros(5, dtype=torch.long))])
    # convolutions of a GPU round float32 to 10 bits (TF32)
    torch.testing.assert_close(exported.opened(probe), logits, rtol=1e-2, atol=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_is_saved_of_a_student_there_opens_on_the_cpu(tmp_path: Path, precision: str) -> None:
    result = prepared(torch.device("cuda", 0), method="kd", init="slice", steps=20, precision=precision).run()
    result.save(tmp_path / "student")
    opened = load_student(tmp_path / "student")
    assert placed(opened) == {torch.device("cpu")}
    torch.testing.assert_close(logits_of(opened), logits_of(result.student), rtol=1e-2, atol=1e-2)


@pytest.mark.cuda
def test_the_command_line_measures_both_networks_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--shots", "2", "--views", "plain", "--steps", "0", "--device", "cuda", "--out", str(tmp_path / "run")]
    result = run_json(capsys, "distill", *asked)
    assert result["device"] == "cuda:0"
    assert result["machine"] == torch.cuda.get_device_name(0)
    assert result["student_top1"] > 80


@pytest.mark.cuda
def test_a_default_run_there_is_as_good_as_on_the_cpu() -> None:
    test = netgraft.open_data("digits").test
    assert test is not None
    found = {}
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        student = prepared(device, steps=100, views="rich").run().student
        config = resolve_model_data_config(student)
        found[device.type] = top1(*predictions(student, test, config, SilentReporter()))
    assert abs(found["cuda"] - found["cpu"]) < 1.5
