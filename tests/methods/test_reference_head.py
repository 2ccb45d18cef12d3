"""The published code's pair: heads of two linear layers, the teacher's with a batch norm between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from netgraft.cli.main import run
from safetensors.torch import save_file
from torch import nn

from netgraft.distillation import prepare
from netgraft.errors import RequestError
from netgraft.grafting.options import PairingOptions
from netgraft.grafting.preparation import cut_and_pair
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.students import load_student
from netgraft.modules import state_digest
from netgraft.training.runner import Runner
from tests.support.method_pairs import images_of
from tests.support.random_models import randomise

HIDDEN = 12


def pair() -> tuple[nn.Module, nn.Module]:
    """The digits' networks with such heads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = randomise(timm.create_model("digits_vgg7_bn", head_hidden=HIDDEN, head_norm=True)).eval()
        return teacher, timm.create_model("digits_vgg7_bn_half", head_hidden=HIDDEN)


def reference(**settings: str) -> Any:
    return choose("netgraft", "reference", Budget(20, 10), {"block_steps": "2", "join_steps": "2", **settings}).method


def test_the_last_block_is_the_classifier_and_is_trained() -> None:
    teacher, student = pair()
    prepared = prepare(teacher, student, images_of("digits", 20), method=reference(), init="random")
    assert prepared.pairing.inherited == 1
    [alone] = [phase for phase in prepared.plan.phases if phase.name == "graft block 4"]
    adapters = {id(p) for adapter in alone.adapters for p in adapter.parameters()}
    shapes = sorted(tuple(p.shape) for p in alone.trainable.parameters() if id(p) not in adapters)
    assert shapes == sorted([(HIDDEN, 64), (HIDDEN,), (10, HIDDEN), (10,)])
    # the teacher's own has a batch norm, whose statistics stay
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in prepared.pairing.teacher.blocks()[-1].modules())
    before = {name: value.clone() for name, value in student.state_dict().items() if name.startswith("head.")}
    prepared.run()
    after = student.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("bias", ["true", "false"])
def test_what_is_in_front_of_the_head_folds_into_its_first_layer(bias: str, tmp_path: Path) -> None:
    teacher, student = pair()
    runner = Runner(accelerator="cpu", precision="32")
    method = reference(adapter_bias=bias)
    result = prepare(teacher, student, images_of("digits", 20), method=method, init="random", runner=runner).run()
    assert "head.hidden" in result.folding.folded
    # in front of a padded convolution a bias stays
    assert result.plain == (bias == "false")
    result.save(tmp_path / "student")
    opened = load_student(tmp_path / "student")
    assert state_digest(opened) == state_digest(result.student)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(opened(x), result.plan.student.eval()(x) if bias == "true" else result.student(x))


def test_other_heads_start_at_random_and_alike_ones_may_start_with_slices() -> None:
    teacher, student = pair()
    auto = cut_and_pair(teacher, student, PairingOptions(), input_size=(1, 8, 8))
    assert (auto.init, auto.inherited) == ("random", 1)
    with pytest.raises(RequestError, match="needs a student that is built like the teacher"):
        cut_and_pair(teacher, student, PairingOptions("slice"), input_size=(1, 8, 8))
    twin = timm.create_model("digits_vgg7_bn_half", head_hidden=8, head_norm=True)
    sliced = cut_and_pair(teacher, twin, PairingOptions("slice"), input_size=(1, 8, 8))
    wide, narrow = (model.get_submodule("head.fc").weight for model in (teacher, twin))
    assert isinstance(wide, nn.Parameter)
    assert isinstance(narrow, nn.Parameter)
    columns = {tuple(column.tolist()) for column in wide.T}
    assert all(tuple(column.tolist()) in columns for column in narrow.T)
    assert sliced.init == "slice"


def test_the_published_pair_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    teacher = timm.create_model("cifar_vgg16_head512")
    save_file(teacher.state_dict(), "teacher.safetensors")
    names = ["--teacher", "cifar_vgg16_head512", "--student", "cifar_vgg16_half_head512"]
    short = ["--block-steps", "1", "--join-steps", "1", "--batch-size", "4", "--views", "plain"]
    asked = ["distill", *names, "--teacher-weights", "teacher.safetensors", "--preset", "reference", *short]
    assert run([*asked, "--images", "4", "--eval-data", "digits", "--precision", "32", "--out", "run", "--quiet"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    # three of six blocks as there; blocks 4 and 5 and the classifier learn
    assert (result["blocks"], result["inherited_blocks"]) == (6, 3)
    assert result["steps"] == 3 + 2
    assert "head.hidden" in result["folded_into"]
    opened = load_student("run/student")
    assert opened(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
