"""Students that a constructor's arguments make are plain timm folders, which timm alone opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import netgraft
from netgraft.deriving.absence import leave_out
from netgraft.models.plain_form import plain_form
from netgraft.models.students import load_student, opens_with_timm, save_student, why_not_made_by_name


def images(model: nn.Module) -> Tensor:
    size = resolve_model_data_config(model)["input_size"]
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(1))


def randomised(name: str, **arguments: Any) -> nn.Module:
    """Return a model all of whose parts show in its answers: some constructors start the last layer of a block at 0."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(model: nn.Module, folder: Path) -> dict[str, Any]:
    save_student(folder, model, model, cuts=(), data_config=resolve_model_data_config(model))
    assert torch.equal(load_student(folder)(images(model)), model(images(model)))
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    # without this project
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(alone(images(model)), model(images(model)))
    return content["model_args"]


LEFT_OUT: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("test_vit", {"blocks.1.attn": "nothing", "blocks.1.mlp": "nothing"}, {"depth": 5}),
    ("test_vit2", {f"blocks.{at}.{part}": "nothing" for at in (0, 3) for part in ("attn", "mlp")}, {"depth": 6}),
    ("resnet18", {"layer2.1": "passed", "layer4.1": "passed"}, {"layers": [2, 1, 2, 1]}),
    ("convnext_atto", {"stages.2.blocks.1": "passed", "stages.2.blocks.4": "passed"}, {"depths": [2, 2, 4, 2]}),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "absent", "arguments"), LEFT_OUT, ids=[name for name, _, _ in LEFT_OUT])
def test_blocks_that_are_left_out_are_a_smaller_depth(
    name: str, absent: dict[str, str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = randomised(name)
    if name == "test_vit":
        arguments = {"depth": len(model.blocks) - 1}  # type: ignore[arg-type]
    if name == "test_vit2":
        arguments = {"depth": len(model.blocks) - 2}  # type: ignore[arg-type]
    before = model(images(model))
    leave_out(model, absent)
    assert not torch.allclose(model(images(model)), before)

    found = saved(model, tmp_path / "student")
    assert {name: found[name] for name in arguments} == arguments
    assert opens_with_timm(model, resolve_model_data_config(model))
    # what was opened is saved again
    again = load_student(tmp_path / "student")
    assert saved(again, tmp_path / "again") == found


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"mlp_ratio": 1.5}, {"depth": 2}, {"depth": 3, "mlp_ratio": 0.5}])
def test_a_model_of_other_arguments_is_saved_with_them(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = randomised("test_vit", **arguments)
    assert why_not_made_by_name(model, resolve_model_data_config(model)) == ""
    found = saved(model, tmp_path / "student")
    assert {name: found[name] for name in arguments} == arguments


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("test_vit", {"blocks.1.attn": "nothing"}),
        ("test_vit", {"blocks.1.attn": "nothing", "blocks.2.mlp": "nothing"}),
        ("resnet18", {"layer1.1.act1": "passed"}),
    ],
)
def test_what_no_argument_makes_keeps_its_own_description(name: str, absent: dict[str, str], tmp_path: Path) -> None:
    model = randomised(name)
    leave_out(model, absent)
    save_student(tmp_path / "student", model, model, cuts=(), data_config=resolve_model_data_config(model))
    assert not (tmp_path / "student" / "config.json").exists()
    assert not opens_with_timm(model, resolve_model_data_config(model))
    assert torch.equal(load_student(tmp_path / "student")(images(model)), model(images(model)))


@torch.no_grad()
@pytest.mark.parametrize(("gone", "depths"), [((1,), None), ((1, 2), [2, 2, 2, 2])])
def test_blocks_that_would_look_elsewhere_are_not_numbered_anew(
    gone: tuple[int, ...], depths: list[int] | None
) -> None:
    """Every second block of a Swin transformer shifts its windows."""

    def make(arguments: Mapping[str, Any]) -> nn.Module:
        small = {"embed_dim": 24, "num_heads": (1, 2, 4, 8), "depths": (2, 2, 4, 2), **arguments}
        model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **small)
        return model

    torch.manual_seed(0)
    model = make({}).eval()
    leave_out(model, {f"layers.2.blocks.{at}.{part}": "nothing" for at in gone for part in ("attn", "mlp")})
    form = plain_form(model, make, images(model))
    assert (form and form.arguments["depths"]) == depths


@torch.no_grad()
def test_a_derived_student_with_blocks_left_out_is_a_plain_model(tmp_path: Path) -> None:
    teacher = randomised("test_vit")
    generator = np.random.default_rng(0)
    shots = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(8)]
    parts = ("blocks.1.attn", "blocks.1.mlp")
    derived = netgraft.derive(
        teacher, shots, keep={"macs": 0.999}, force=dict.fromkeys(parts, 0), protect=("blocks.*",)
    )
    derived.save(tmp_path / "student")
    arguments = json.loads((tmp_path / "student" / "config.json").read_text())["model_args"]
    assert arguments["depth"] == len(teacher.blocks) - 1  # type: ignore[arg-type]
    assert torch.equal(load_student(tmp_path / "student")(images(teacher)), derived.student(images(teacher)))
