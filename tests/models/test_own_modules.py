"""Modules that are none of timm's: bare logits or in a dictionary or an object; what is saved, opened and refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from netgraft import NetGraft, Runner, distill, load_student, prepare
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.errors import RequestError
from netgraft.models.own_modules import as_classifier, preprocessing
from tests.support.random_models import images, randomise

SHORT: dict[str, Any] = {
    "method": NetGraft(block_steps=(1,), join_steps=1, batch_size=8),
    "views": ViewPolicy("few", pad=1, pool=16),
    "runner": Runner(accelerator="cpu", precision="32"),
}


class Net(nn.Module):
    """Three stages for grey images, as people write them."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.stages = nn.Sequential(self._stage(1, 8), self._stage(8, width), self._stage(width, width))
        self.classifier = nn.Linear(width, classes)
        randomise(self)

    @staticmethod
    def _stage(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(x).mean((2, 3)))


@dataclass
class Output:
    """Like those of Hugging Face."""

    logits: Tensor
    loss: Tensor | None = None


class Labels:
    num_labels = 10
    id2label: ClassVar = dict(enumerate("abcdefghij"))


class InObject(nn.Module):
    config = Labels()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Net(width)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.net(pixel_values))


class InDictionary(InObject):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": pixel_values.mean(), "logits": self.net(pixel_values)}


def pictures(count: int = 4) -> list[Image.Image]:
    return open_data("digits").train.load_many(range(count))


@pytest.mark.parametrize("kind", [Net, InObject, InDictionary])
def test_a_module_of_ones_own_teaches_and_learns_and_is_opened_again(kind: Any, tmp_path: Path) -> None:
    teacher, student = kind(16), kind(12)
    x = images(3, 1, 8, 8)
    before = teacher.state_dict()["stages.0.0.weight" if kind is Net else "net.stages.0.0.weight"].clone()
    result = distill(teacher, student, pictures(), **SHORT)
    assert torch.equal(teacher.state_dict()["stages.0.0.weight" if kind is Net else "net.stages.0.0.weight"], before)
    logits = result.student(x)
    assert logits.shape == (3, 10)
    assert result.data_config["input_size"] == (1, 8, 8)
    assert (result.data_config["mean"], result.data_config["std"]) == ((0.0,), (1.0,))

    [note] = [note for note in result.notes if "load_student" in note]
    assert f"{kind.__name__} is no model of timm's or torchvision's; a saved student opens with" in note
    result.save(tmp_path / "student")
    opened = load_student(tmp_path / "student", model=kind(12).eval())
    assert torch.equal(opened(x), logits)
    with pytest.raises(
        RequestError, match=f"holds weights of {kind.__name__}, which no name .* give netgraft.load_student"
    ):
        load_student(tmp_path / "student")
    with pytest.raises(RequestError, match=r"holds another model than the Sequential that was given .*give one made"):
        load_student(tmp_path / "student", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_a_student_is_derived_of_a_module_of_ones_own(tmp_path: Path) -> None:
    result = distill(Net(16), images=pictures(), keep={"parameters": 0.6}, **SHORT)
    result.save(tmp_path / "derived")
    opened = load_student(tmp_path / "derived", model=Net(16))
    x = images(2, 1, 8, 8)
    torch.testing.assert_close(opened(x), result.student(x))
    assert sum(p.numel() for p in opened.parameters()) < 0.65 * sum(p.numel() for p in Net(16).parameters())


def test_a_model_of_timms_with_other_arguments_is_not_opened_as_another_one(tmp_path: Path) -> None:
    """The same weights fit both, and give other answers: what timm would open in silence isn't written for it."""

    def made() -> nn.Module:
        return randomise(timm.create_model("test_efficientnet", pad_type="same", num_classes=10, in_chans=1)).eval()

    teacher = timm.create_model("test_efficientnet", num_classes=10, in_chans=1)
    config = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    result = distill(teacher, made(), pictures(), data_config=config, init="keep", **SHORT)
    assert any("makes a model that computes something else" in note for note in result.notes)
    assert not result.facts()["opens_with_timm"]
    result.save(tmp_path / "student")
    x = images(2, 1, 32, 32)
    assert torch.equal(load_student(tmp_path / "student", model=made())(x), result.student(x))
    with pytest.raises(RequestError, match="holds weights of EfficientNet, which no name"):
        load_student(tmp_path / "student")


def test_a_module_that_is_not_needed_is_refused(tmp_path: Path) -> None:
    teacher = timm.create_model("digits_vgg7_bn", pretrained=True)
    result = distill(teacher, timm.create_model("digits_vgg7_bn_half"), pictures(), init="slice", **SHORT)
    result.save(tmp_path / "student")
    with pytest.raises(RequestError, match="holds a model that timm makes; leave model out"):
        load_student(tmp_path / "student", model=Net(12))


# --- classes, names and preprocessing


def test_classes_and_their_names_are_read_off_the_answers_and_hugging_faces_configuration() -> None:
    config = preprocessing(InObject(12), (8, 8))
    made: Any = as_classifier(InObject(12), config)
    assert (made.num_classes, made.pretrained_cfg["label_names"]) == (10, Labels.id2label)
    plain: Any = as_classifier(Net(12, classes=7), config)
    assert (plain.num_classes, "label_names" in plain.pretrained_cfg) == (7, False)


def test_what_is_given_wins_and_the_rest_is_of_the_images() -> None:
    given = {"input_size": (1, 24, 16), "mean": (0.3,), "std": (0.2,)}
    config = preprocessing(Net(12), (8, 9), given)
    assert {name: config[name] for name in given} == given
    assert preprocessing(Net(12), (8, 9))["input_size"] == (1, 9, 8)  # PIL's sizes are width and height
    teacher = timm.create_model("digits_vgg7_bn")
    assert preprocessing(teacher, (99, 99))["input_size"] == (1, 8, 8)
    assert preprocessing(teacher, (99, 99), {"mean": (0.1,)})["mean"] == (0.1,)


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda x: x, r"a tensor of shape \(2, 1, 8, 8\)"),
        (lambda x: {"scores": x.mean((2, 3))}, "dict"),
        (lambda x: (x.mean((2, 3)), x), "tuple"),
    ],
)
def test_what_gives_no_logits_is_refused(forward: Any, got: str) -> None:
    module = nn.Conv2d(1, 1, 1)
    module.forward = forward  # type: ignore[method-assign]
    with pytest.raises(RequestError, match=f"expected logits .* of Conv2d, .* got {got}; wrap it in a module"):
        as_classifier(module, {"input_size": (1, 8, 8)})


def test_images_that_a_module_can_not_take_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(RequestError, match=r"Sequential can't take images of 3x8x8 .*; give its input_size"):
        prepare(flat, Net(12), pictures(), **SHORT)
