"""Narrowed students through their folders: bit by bit, without pickle, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.sizes import Sizes, replace_tensor
from netgraft.errors import RequestError
from netgraft.models.students import load_student, save_student
from tests.support.random_models import build, images

MODELS = {
    "mobilenetv3_small_050": 64,
    "cifar_resnet8": 32,
    "regnety_002": 32,
    "cifar_vgg16_bn": 32,
    "convnextv2_atto": 64,
}


def config(size: int) -> Mapping[str, Any]:
    return {
        "input_size": (3, size, size),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }


def narrowed(model: nn.Module, size: int, seed: int = 0) -> nn.Module:
    """Return a copy with every place at a random width."""
    anatomy = Anatomy.of(model, images(2, 3, size, size))
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for place in anatomy.places:
        width = int(torch.randint(1, place.width, (), generator=generator))
        kept[place.atom] = torch.randperm(place.width, generator=generator)[:width].sort().values
    return narrow(model, anatomy.found, kept).eval()


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), MODELS.items())
def test_a_narrowed_student_opens_with_the_same_bits(tmp_path: Path, name: str, size: int) -> None:
    teacher = build(name, num_classes=7)
    student = narrowed(teacher, size)
    save_student(tmp_path / "student", student, student, cuts=(), data_config=config(size))
    again = load_student(tmp_path / "student")

    probe = images(3, 3, size, size, seed=1)
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "netgraft.json",
        "student.safetensors",
        "README.md",
        "SHA256SUMS",
    }
    assert again.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in again.state_dict().items())
    assert torch.equal(again(probe), student(probe))
    assert repr(again) == repr(student)
    assert not any(module.training for module in again.modules())
    assert again.pretrained_cfg["mean"] == [0.5, 0.4, 0.3]  # type: ignore[index]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "cifar_resnet8"])
def test_a_derived_model_is_derived_from_again(tmp_path: Path, name: str) -> None:
    size = MODELS[name]
    first = narrowed(build(name, num_classes=7), size)
    save_student(tmp_path / "first", first, first, cuts=(), data_config=config(size))
    second = narrowed(load_student(tmp_path / "first"), size, seed=1)
    save_student(tmp_path / "second", second, second, cuts=(), data_config=config(size))

    probe = images(3, 3, size, size, seed=1)
    assert torch.equal(load_student(tmp_path / "second")(probe), second(probe))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (second, first)]
    assert sizes[0] < sizes[1]


@torch.no_grad()
def test_a_student_that_was_not_narrowed_is_a_plain_timm_folder(tmp_path: Path) -> None:
    model = build("cifar_resnet8", num_classes=7)
    save_student(tmp_path / "student", model, model, cuts=(), data_config=config(32))

    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "SHA256SUMS",
    }
    assert torch.equal(load_student(tmp_path / "student")(images(2, 3, 32, 32)), model(images(2, 3, 32, 32)))


@torch.no_grad()
def test_a_buffer_that_a_forward_makes_is_no_size(tmp_path: Path) -> None:
    model = build("convit_tiny", num_classes=7, img_size=32)
    probe = images(2, 3, 32, 32)
    before = model.get_buffer("blocks.0.attn.rel_indices").shape
    expected = model(probe)
    assert model.get_buffer("blocks.0.attn.rel_indices").shape != before, (
        "positions of as many patches as the images have"
    )

    for name, student in {"whole": model, "narrowed": narrowed(model, 32)}.items():
        expected = student(probe)
        save_student(tmp_path / name, student, student, cuts=(), data_config=config(32))
        assert torch.equal(load_student(tmp_path / name)(probe), expected)
    assert not (tmp_path / "whole" / "netgraft.json").exists(), "timm opens it by itself"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "student"
    student = narrowed(build("cifar_resnet8", num_classes=7), 32)
    save_student(folder, student, student, cuts=(), data_config=config(32))
    return folder


def first_shape(value: Any) -> Any:
    return next(iter(value["sizes"]["shapes"].values()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.clear(),
        lambda value: value.pop("sizes"),
        lambda value: value.update(sizes=5),
        lambda value: value.update(sizes=[]),
        lambda value: value["sizes"].pop("counts"),
        lambda value: value["sizes"].update(shapes=[]),
        lambda value: value["sizes"].update(counts=None),
        lambda value: value["sizes"]["shapes"].clear(),
        lambda value: value["sizes"]["shapes"].update({"nowhere.weight": [3]}),
        lambda value: value["sizes"]["counts"].update(nowhere={"groups": 2}),
        lambda value: value["sizes"]["counts"].update({"conv1": {"groups": 2.5}}),
        lambda value: value["sizes"]["counts"].update({"conv1": {"groups": 0}}),
        lambda value: value["sizes"]["counts"].update({"conv1": {"groups": True}}),
        lambda value: value["sizes"]["counts"].update({"conv1": {"heads": 2}}),
        lambda value: value["sizes"]["counts"].update({"conv1": 2}),
        lambda value: value["sizes"].pop("absent"),
        lambda value: value["sizes"].update(absent={"nowhere": "passed"}),
        lambda value: value["sizes"].update(absent={"layer1.0": "anything"}),
        lambda value: value["sizes"].update(absent={"": "passed"}),
        lambda value: first_shape(value).pop(),
        lambda value: first_shape(value).__setitem__(0, 0),
        lambda value: first_shape(value).__setitem__(0, "many"),
        lambda value: first_shape(value).__setitem__(0, 10**15),
        lambda value: first_shape(value).__setitem__(slice(None), []),
        lambda value: value["sizes"]["shapes"].update({next(iter(value["sizes"]["shapes"])): None}),
        lambda value: value.update(architecture="no_such_model"),
        lambda value: value.update(model_args={"num_classes": 9, "in_chans": 3}),
    ],
)
def test_a_damaged_description_is_refused_in_a_sentence(saved: Path, tmp_path: Path, damage: Any) -> None:
    value = json.loads((saved / "netgraft.json").read_text())
    damage(value)
    (tmp_path / "student.safetensors").write_bytes((saved / "student.safetensors").read_bytes())
    (tmp_path / "netgraft.json").write_text(json.dumps(value))

    with pytest.raises(RequestError, match="holds a damaged student"):
        load_student(tmp_path)


def test_sizes_of_equal_models_are_none() -> None:
    model = build("cifar_resnet8", num_classes=7)

    assert not Sizes.of(model, model)
    with pytest.raises(ValueError, match="the models have other parameters; the first is 'bias'"):
        Sizes.of(model, nn.Linear(2, 2))


def test_sizes_are_read_as_they_were_written() -> None:
    model = build("regnety_002", num_classes=7)
    sizes = Sizes.of(narrowed(model, 32), model)

    assert sizes.shapes
    assert Sizes.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes


def test_a_shared_tensor_is_replaced_wherever_it_stands() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    replace_tensor(model, "0.weight", torch.ones(2, 3))

    assert model[1].weight is model[0].weight
    assert model[0].weight.shape == (2, 3)
    assert not model[0].weight.requires_grad
