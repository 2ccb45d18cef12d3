"""Students that are saved in Python carry a card with what is known of them, whose lines open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netgraft
from netgraft.data.sources import open_data
from netgraft.evaluation.metrics import macs
from netgraft.models.card import CardFacts, card, published
from netgraft.models.own_modules import as_classifier
from netgraft.models.students import load_student, save_student
from netgraft.modules import parameters
from tests.support.random_models import build

IMAGES = open_data("digits").train.load_many(range(20))


def opened(card: str, **names: Any) -> nn.Module:
    """Run the lines of a card."""
    exec(card.split("```python\n")[1].split("```")[0], names)
    model: nn.Module = names["model"]
    return model


def test_a_result_of_python_has_the_card_of_its_facts(tmp_path: Path) -> None:
    teacher = netgraft.load_teacher("digits_vgg7_bn")
    result = netgraft.distill(teacher, images=IMAGES, keep={"macs": 0.5}, steps=0)
    for name, save in (("result", result.save), ("derived", netgraft.derive(teacher, IMAGES).save)):
        save(tmp_path / name)
        text = (tmp_path / name / "README.md").read_text()
        student = load_student(tmp_path / name)
        assert "A smaller stand-in for `digits_vgg7_bn`, made by" in text
        assert f"| parameters | {parameters(teacher):,} | {parameters(student):,} |" in text
        costs = [macs(model, (1, 8, 8)) for model in (teacher, student)]
        assert f"| multiply-accumulates | {costs[0]:,} | {costs[1]:,} |" in text
        assert ("from 20 images" in text) == (name == "result")
        again = opened(text.replace("FOLDER", str(tmp_path / name)))
        images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(again(images), student(images))
        # nobody measured anything, and nobody knows whose weights the teacher has
        assert not [
            word for word in ("Measured", "base_model", "license", "model-index", str(tmp_path)) if word in text
        ]


def test_images_that_were_held_out_are_in_the_card(tmp_path: Path) -> None:
    result = netgraft.distill(
        netgraft.load_teacher("digits_vgg7_bn"), images=IMAGES, keep={"macs": 0.5}, steps=0, hold_out=0.25
    )
    result.save(tmp_path / "s")
    text = (tmp_path / "s" / "README.md").read_text()
    assert "from 15 images" in text
    assert f"| same answer as the teacher | | {result.measured['agreement']:.2f} % |" in text
    assert "Measured on 5 images that took no part in training." in text


def test_a_saved_model_says_how_large_it_is_and_what_opens_it(tmp_path: Path) -> None:
    model = build("cifar_resnet8")
    save_student(tmp_path / "s", model, model, cuts=(), data_config={"input_size": (3, 32, 32)})
    text = (tmp_path / "s" / "README.md").read_text()
    assert "# `cifar_resnet8`" in text
    assert f"| parameters | {parameters(model):,} |" in text
    assert opened(text.replace("FOLDER", str(tmp_path / "s"))).num_classes == model.num_classes
    with pytest.raises(TypeError):
        save_student(tmp_path / "t", model, model, cuts=(), data_config={"input_size": (3, 32, 32)}, known={"no": 1})


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def test_what_no_name_makes_is_opened_with_a_model_that_is_given(tmp_path: Path) -> None:
    own = Own()
    config: dict[str, Any] = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    model = as_classifier(own, config)
    save_student(tmp_path / "s", model, model, cuts=(), data_config=config)
    text = (tmp_path / "s" / "README.md").read_text()
    assert "# `Own`" in text
    again = opened(text.replace("FOLDER", str(tmp_path / "s")), MODEL=Own())
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), own(images))


def test_lines_that_open_from_the_hub_name_branch_and_model() -> None:
    for opener, expected in (
        ("timm", 'timm.create_model("hf-hub:ann/small@v2", pretrained=True)'),
        ("netgraft", 'netgraft.load_student(snapshot_download("ann/small", revision="v2"))'),
        ("model", 'netgraft.load_student(snapshot_download("ann/small", revision="v2"), model=MODEL)'),
    ):
        text = card(CardFacts(student="s", opener=opener, parameters=1))  # type: ignore[arg-type]
        found = published(text, "ann/small", "v2")
        assert expected in found
        assert "FOLDER" not in found
        assert published(found, "bob/other") == found
