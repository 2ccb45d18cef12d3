"""A new head for other classes: what it replaces, what stays, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.models.creation import build_model, head_tensors
from netgraft.models.heads import head_layers, replace_head
from netgraft.models.own_modules import as_classifier
from tests.support.random_models import images, snapshot

CONFIG = {"input_size": (3, 64, 64)}

NAMES = ["cifar_resnet8", "test_vit", "test_convnext", "torchvision:squeezenet1_1", "deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [3, 40])
def test_the_layers_that_make_a_logit_a_class_are_replaced_and_all_else_is_kept(name: str, classes: int) -> None:
    model: Any = build_model(name, seed=1, num_classes=10, image_size=64).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = {key.rpartition(".")[0] for key in head_tensors(name)}
    # independent of which layers are found: timm's and torchvision's constructors, for two numbers of classes
    assert head_layers(model, images(2, 3, 64, 64)).keys() == expected
    new = replace_head(model, classes, CONFIG, seed=0)
    assert {key for key, module in model.named_modules() if module in new} == expected
    after = model.state_dict()
    changed = {key.rpartition(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == expected
    assert model.num_classes == classes
    assert model(images(2, 3, 64, 64)).shape == (2, classes)
    # what was saved opens in the model that the constructor makes
    build_model(name, seed=2, num_classes=classes, image_size=64).load_state_dict(after)


def test_the_new_head_depends_on_the_seed_alone() -> None:
    heads: list[Any] = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = build_model("cifar_resnet8", seed=0)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        [new] = replace_head(model, 4, CONFIG, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(new.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


class Coincidence(nn.Module):
    """Hidden layers with as many channels as classes, as which only the last layer counts."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, classes, 3)
        self.hidden = nn.Linear(classes, classes)
        self.last = nn.Linear(classes, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.first(x).mean((2, 3))).relu())


def test_of_layers_with_as_many_rows_the_one_that_gives_the_logits_is_replaced() -> None:
    torch.manual_seed(0)
    model: Any = as_classifier(Coincidence(), CONFIG)
    [new] = replace_head(model, 2, CONFIG, seed=0)
    assert new is model.last
    assert new.weight.shape == (2, 6)
    assert new.bias is None


def test_a_plain_module_gets_a_new_head() -> None:
    model: Any = as_classifier(torchvision.models.mobilenet_v3_small(num_classes=12), CONFIG)
    [new] = replace_head(model, 7, CONFIG, seed=0)
    assert new is model.classifier[3]
    assert (model.num_classes, model(images(2, 3, 64, 64)).shape) == (7, (2, 7))


class Prototypes(nn.Module):
    """No linear layer gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.prototypes = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x).mean((2, 3)), self.prototypes)


class Scaled(nn.Module):
    """What stands behind the head depends on the number of classes too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x.mean((2, 3))))


@pytest.mark.parametrize("kind", [Prototypes, Scaled])
def test_a_head_that_can_not_be_replaced_is_refused_and_the_model_stays_as_it_was(kind: type[nn.Module]) -> None:
    model: Any = as_classifier(kind(), CONFIG)
    before = snapshot(model)
    with pytest.raises(RequestError, match=f"expected a student of 3 classes, or one .*, got {kind.__name__} of 5 who"):
        replace_head(model, 3, CONFIG, seed=0)
    assert snapshot(model) == before
    assert model.num_classes == 5
