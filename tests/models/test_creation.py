"""Models by name, file and size; students that depend on their seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.errors import RequestError
from netgraft.models.creation import (
    build_kept_student,
    build_model,
    build_student,
    class_count,
    image_channels,
    pretrained_cfg,
)
from netgraft.models.loading import load_teacher
from netgraft.models.students import save_student
from tests.support.random_models import build, images, snapshot

X = images(2, 3, 32, 32)


def test_unknown_model_shows_close_names() -> None:
    with pytest.raises(RequestError, match=r"timm has no model 'resnet19'; did you mean .*resnet18"):
        load_teacher("resnet19")
    with pytest.raises(RequestError, match=r"timm has no model 'cifar_vgg61_bn'; did you mean cifar_vgg16_bn"):
        build_model("cifar_vgg61_bn", seed=0)
    with pytest.raises(RequestError, match=r"timm has no model 'zzzzqqqq'; see timm\.list_models\(\)"):
        build_model("zzzzqqqq", seed=0)


def test_model_without_pretrained_weights_needs_a_file() -> None:
    with pytest.raises(RequestError, match="timm has no pretrained weights for cifar_vgg16_bn; give --teacher-weights"):
        load_teacher("cifar_vgg16_bn")


def test_options_that_timm_does_not_know_are_refused() -> None:
    with pytest.raises(RequestError, match=r"timm could not make 'cifar_resnet8': .*no_such_option"):
        build_model("cifar_resnet8", seed=0, no_such_option=1)


def test_pretrained_weights_are_loaded_by_name() -> None:
    teacher = load_teacher("digits_vgg7_bn")
    expected = timm.create_model("digits_vgg7_bn", pretrained=True).eval()
    x = images(2, 1, 8, 8)
    assert torch.equal(teacher(x), expected(x))
    assert not any(module.training for module in teacher.modules())


def test_number_of_classes_follows_the_weights(tmp_path: Path) -> None:
    model = build("cifar_resnet8", num_classes=4)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher("cifar_resnet8", weights=tmp_path / "w.safetensors")
    by_text = load_teacher("cifar_resnet8", weights=str(tmp_path / "w.safetensors"))
    assert all(map(torch.equal, by_text.state_dict().values(), teacher.state_dict().values()))
    assert torch.equal(teacher(X), model(X))
    assert class_count(teacher) == 4


@pytest.mark.parametrize(
    ("name", "size"), [("cifar_resnet8", (3, 48, 48)), ("test_vit", (3, 96, 96)), ("digits_vgg7_bn", (1, 20, 20))]
)
def test_a_model_is_made_for_images_of_the_size_asked_for(name: str, size: tuple[int, int, int]) -> None:
    model = build_model(name, seed=0, image_size=size[1], num_classes=7).eval()
    config = resolve_model_data_config(model)
    # all of an image is seen: those that are of this size already have no border to spare
    assert (config["input_size"], config["crop_pct"]) == (size, 1.0)
    assert model(images(2, *size)).shape == (2, 7)


def test_the_image_size_leaves_a_convolutional_network_s_weights_alone() -> None:
    assert snapshot(build_model("cifar_resnet8", seed=3, image_size=64)) == snapshot(
        build_model("cifar_resnet8", seed=3)
    )
    teacher, resized = load_teacher("digits_vgg7_bn"), load_teacher("digits_vgg7_bn", image_size=16)
    assert snapshot(resized) == snapshot(teacher)
    assert resolve_model_data_config(resized)["input_size"] == (1, 16, 16)


def test_a_student_takes_images_of_its_teacher_s_size() -> None:
    teacher = build_model("cifar_resnet8", seed=0, image_size=64, num_classes=4)
    for name in ("test_vit", "levit_128s", "cifar_resnet20"):
        student = build_student(name, teacher=teacher, seed=0)
        assert student(images(2, 3, 64, 64)).shape == (2, 4)


def test_a_hub_s_model_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match="hf-hub:a/b brings its image size along; leave --image-size out"):
        load_teacher("hf-hub:a/b", image_size=64)
    with pytest.raises(RequestError, match="could not make 'nest_tiny': `patch_size` must divide `img_size` evenly"):
        build_model("nest_tiny", seed=0, image_size=50)


@pytest.mark.parametrize(("name", "size"), [("digits_vgg7_bn", 8), ("test_vit", 64)])
def test_a_folder_s_model_takes_images_of_another_size(name: str, size: int, tmp_path: Path) -> None:
    channels = 1 if name == "digits_vgg7_bn" else 3
    model = build_model(name, seed=0, image_size=size, num_classes=7).eval()
    config = {**resolve_model_data_config(model), "crop_pct": 0.9}
    save_student(tmp_path / "model", model, model, cuts=(), data_config=config)
    x = images(2, channels, 2 * size, 2 * size)
    for where in (str(tmp_path / "model"), f"local-dir:{tmp_path / 'model'}"):
        resized = load_teacher(where, image_size=2 * size)
        found = resolve_model_data_config(resized)
        assert (found["input_size"], found["crop_pct"]) == ((channels, 2 * size, 2 * size), 0.9)
        assert resized(x).shape == (2, 7)
        if name == "digits_vgg7_bn":  # all its layers take any size
            assert torch.equal(resized(x), model(x))


def test_a_described_student_takes_images_of_another_size(tmp_path: Path) -> None:
    model = build_model("torchvision:squeezenet1_1", seed=0, image_size=64, num_classes=5).eval()
    save_student(tmp_path / "model", model, model, cuts=(), data_config=resolve_model_data_config(model))
    x = images(2, 3, 96, 96)
    resized = load_teacher(str(tmp_path / "model"), image_size=96)
    assert resolve_model_data_config(resized)["input_size"] == (3, 96, 96)
    assert torch.equal(resized(x), model(x))


# --- torchvision


@pytest.mark.parametrize(
    ("name", "size", "interpolation", "crop"),
    [
        ("resnet18", 224, "bilinear", 224 / 256),
        ("inception_v3", 299, "bilinear", 299 / 342),
        ("efficientnet_b1", 240, "bicubic", 240 / 256),
    ],
)
def test_a_model_of_torchvision_is_prepared_for_as_its_weights_were(
    name: str, size: int, interpolation: str, crop: float
) -> None:
    """The documentation of torchvision's weights says so."""
    with torch.device("meta"):
        config = resolve_model_data_config(build_model(f"torchvision:{name}", seed=0))
    assert (config["input_size"], config["interpolation"], config["crop_pct"]) == ((3, size, size), interpolation, crop)
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_teacher_of_torchvision_has_the_classes_of_its_weights(name: str, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=6).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    teacher = load_teacher(f"torchvision:{name}", weights=tmp_path / "w.pth", image_size=64)
    x = images(2, 3, 64, 64)
    assert torch.equal(teacher(x), model(x))
    assert class_count(teacher) == 6


def test_a_model_of_torchvision_is_saved_and_opened(tmp_path: Path) -> None:
    model = build_model("torchvision:squeezenet1_1", seed=0, num_classes=5).eval()
    save_student(tmp_path / "model", model, model, cuts=(), data_config=resolve_model_data_config(model))
    opened = load_teacher(str(tmp_path / "model"))
    x = images(2, 3, 64, 64)
    assert torch.equal(opened(x), model(x))
    assert pretrained_cfg(opened)["architecture"] == "torchvision:squeezenet1_1"


def test_a_number_of_classes_that_weights_have_not_is_refused(tmp_path: Path) -> None:
    assert class_count(load_teacher("digits_vgg7_bn", num_classes=10)) == 10
    with pytest.raises(RequestError, match="expected weights of 12 classes, got 10 in digits_vgg7_bn; give others, or"):
        load_teacher("digits_vgg7_bn", num_classes=12)
    model = build("digits_vgg7_bn_half")
    save_student(tmp_path / "model", model, model, cuts=(), data_config=resolve_model_data_config(model))
    with pytest.raises(RequestError, match=r"expected a model of 12 classes, got one of 10 in .*model; name another"):
        load_teacher(str(tmp_path / "model"), num_classes=12)


# --- Lightning


@pytest.mark.parametrize("prefix", ["model.", "net.", "network.backbone."])
def test_a_module_in_a_lightning_checkpoint_is_found(prefix: str, tmp_path: Path) -> None:
    model = build("cifar_resnet8", num_classes=4)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    others = {"criterion.weight": torch.ones(4), "metric.total": torch.zeros(())}
    checkpoint = {"pytorch-lightning_version": "2.4.0", "epoch": 3, "state_dict": {**state, **others}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    teacher = load_teacher("cifar_resnet8", weights=tmp_path / "last.ckpt")
    assert torch.equal(teacher(X), model(X))


def test_of_several_networks_in_a_checkpoint_none_is_guessed(tmp_path: Path) -> None:
    model = build("cifar_resnet8").state_dict()
    torch.save({f"{which}.{name}": value for which in ("a", "b") for name, value in model.items()}, tmp_path / "w.pth")
    with pytest.raises(
        RequestError, match=r"expected one network of this architecture, got 2, below 'a\.', 'b\.'; save"
    ):
        load_teacher("cifar_resnet8", weights=tmp_path / "w.pth")


def test_weights_of_a_student_depend_on_the_seed_alone() -> None:
    teacher = build("cifar_resnet8", num_classes=6, in_chans=1)
    torch.manual_seed(1)
    first = build_student("cifar_resnet20", teacher=teacher, seed=7)
    torch.manual_seed(2)
    torch.rand(5)
    again = build_student("cifar_resnet20", teacher=teacher, seed=7)
    other = build_student("cifar_resnet20", teacher=teacher, seed=8)
    assert snapshot(first) == snapshot(again)
    assert snapshot(first) != snapshot(other)
    assert (class_count(first), image_channels(first)) == (6, 1)
    assert first(images(2, 1, 32, 32)).shape == (2, 6)
    assert not first.training


def test_building_a_student_leaves_the_random_state_alone() -> None:
    teacher = build("cifar_resnet8")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_student("cifar_resnet20", teacher=teacher, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_channels_of_the_images_come_from_the_configuration_or_the_first_convolution() -> None:
    assert image_channels(build("cifar_resnet8", in_chans=5)) == 5
    assert image_channels(build("digits_vgg7_bn")) == 1
    plain = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3))
    assert image_channels(plain) == 4
    assert pretrained_cfg(plain) == {}
    mixer: Any = nn.Linear(3, 2)
    mixer.pretrained_cfg = {"input_size": (2, 8, 8)}
    assert image_channels(mixer) == 2
    assert pretrained_cfg(build("cifar_resnet8"))["architecture"] == "cifar_resnet8"


# --- students with weights


def kept(weights: str, classes: int = 10, name: str = "cifar_resnet8") -> tuple[nn.Module, tuple[str, ...]]:
    return build_kept_student(name, weights, teacher=build("cifar_resnet20", num_classes=classes), seed=3)


def test_a_student_keeps_the_weights_of_a_file(tmp_path: Path) -> None:
    model = build("cifar_resnet8")
    path = tmp_path / "own.safetensors"
    save_file(model.state_dict(), path)
    student, fresh = kept(str(path))
    assert fresh == ()
    assert torch.equal(student(X), model(X))


@pytest.mark.parametrize(
    ("name", "head"), [("cifar_resnet8", "fc"), ("torchvision:squeezenet1_1", "classifier.1"), ("test_vit", "head")]
)
def test_a_head_of_other_classes_is_new_and_all_else_is_kept(name: str, head: str, tmp_path: Path) -> None:
    model = build_model(name, seed=1, num_classes=5, image_size=64)
    path = tmp_path / "own.safetensors"
    save_file(model.state_dict(), path)
    teacher = build_model("cifar_resnet8", seed=0, image_size=64)
    student, fresh = build_kept_student(name, str(path), teacher=teacher, seed=3)
    assert fresh == (head,)
    own, given = student.state_dict(), model.state_dict()
    new = [key for key, value in own.items() if value.shape != given[key].shape]
    assert sorted(new) == [f"{head}.bias", f"{head}.weight"]
    assert all(torch.equal(own[key], given[key]) for key in own if key not in new)
    assert student(images(2, 3, 64, 64)).shape == (2, 10)
    # as a student that starts at random has it
    started = build_student(name, teacher=teacher, seed=3).state_dict()
    assert all(torch.equal(own[key], started[key]) for key in new)


def test_timms_own_weights_can_be_kept() -> None:
    teacher = build("digits_vgg7_bn_half", num_classes=10)
    student, fresh = build_kept_student("digits_vgg7_bn", "pretrained", teacher=teacher, seed=0)
    x = images(2, 1, 8, 8)
    assert torch.equal(student(x), load_teacher("digits_vgg7_bn")(x))
    assert fresh == ()
    other, fresh = build_kept_student(
        "digits_vgg7_bn", "pretrained", teacher=build("digits_vgg7_bn", num_classes=3), seed=0
    )
    assert (fresh, other(x).shape) == (("head.fc",), (2, 3))


def test_students_without_such_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="timm has no pretrained weights for cifar_resnet8; give --student-weights"):
        kept("pretrained")
    with pytest.raises(RequestError, match=r"there is no weights file none\.safetensors"):
        kept("none.safetensors")
    save_file(build("cifar_resnet20").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match=r"can't load .*other.safetensors into cifar_resnet8: .* unexpected keys"):
        kept(str(tmp_path / "other.safetensors"))
