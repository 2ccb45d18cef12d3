from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from torch import nn

from netgraft.deriving.sizes import replace_tensor
from netgraft.errors import RequestError, RunError
from netgraft.grafting.folding import fold_with_report
from netgraft.grafting.pairing import pair
from netgraft.grafting.scions import assemble, make_scions
from netgraft.models import students
from netgraft.models.card import CARD
from netgraft.models.creation import build_model, describe_labels, label_names, labels_of, pretrained_cfg
from netgraft.models.students import load_student, save_student
from netgraft.splitting.split import split
from tests.support.random_models import build, images, snapshot

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}

X = images(3, 3, 32, 32)


def preprocessing(model: nn.Module) -> dict[str, Any]:
    found = {key: value for key, value in resolve_model_data_config(model).items() if key in CONFIG}
    # JSON has no tuples
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def save_plain(folder: Path, seed: int = 0) -> nn.Module:
    model = build("cifar_resnet8", seed, num_classes=7)
    save_student(folder, model, model, cuts=(), data_config=CONFIG)
    return model


def sequence(student: str, fold: bool = True) -> tuple[nn.Sequential, nn.Module, tuple[str, ...]]:
    """A student of merged blocks, with its adapters folded or left where they are."""
    teacher, model = build("cifar_resnet18", num_classes=7), build(student, 1, num_classes=7)
    pairing = pair(split(teacher, probe=X), split(model, probe=X))
    assembled = assemble(pairing, make_scions(pairing)).eval()
    built = fold_with_report(assembled).student if fold else assembled
    return built.eval(), model, pairing.student.names[:-1]


@pytest.mark.parametrize("narrower", [False, True])
def test_a_model_whose_modules_stand_in_several_places_is_saved(tmp_path: Path, *, narrower: bool) -> None:
    model = build_model("coat_tiny", seed=0, num_classes=7).eval()
    assert model.get_parameter("cpe1.proj.bias") is model.get_parameter("serial_blocks1.0.cpe.proj.bias")
    if narrower:
        mlp = model.get_submodule("serial_blocks1.0.mlp")
        kept = {"fc1.weight": (slice(8),), "fc1.bias": (slice(8),), "fc2.weight": (slice(None), slice(8))}
        for name, part in kept.items():
            replace_tensor(mlp, name, mlp.get_parameter(name).detach()[part].clone())
    save_student(tmp_path / "student", model, model, cuts=(), data_config=resolve_model_data_config(model))
    again = load_student(tmp_path / "student")

    assert again.state_dict().keys() == model.state_dict().keys()
    assert snapshot(again) == snapshot(model)
    assert again.get_parameter("cpe1.proj.bias") is again.get_parameter("serial_blocks1.0.cpe.proj.bias")


def test_plain_student_opens_with_timm_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "student"
    model = save_plain(folder)
    for loaded in (timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), load_student(str(folder))):
        assert torch.equal(loaded(X), model(X))
        assert snapshot(loaded) == snapshot(model)
        assert preprocessing(loaded) == CONFIG
    expected = ["README.md", "SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv2"])
@pytest.mark.parametrize("fold", [True, False])
def test_student_with_adapters_that_stayed_comes_back(name: str, fold: bool, tmp_path: Path) -> None:
    student, model, cuts = sequence(name, fold)
    assert fold or any(isinstance(layer, nn.Conv2d) for layer in student)
    save_student(tmp_path / "student", student, model, cuts=cuts, data_config=CONFIG)
    loaded: Any = load_student(tmp_path / "student")
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(X), student(X))
    assert [type(layer).__name__ == "Conv2d" for layer in loaded] == [isinstance(layer, nn.Conv2d) for layer in student]
    assert preprocessing(loaded) == CONFIG
    assert loaded.num_classes == 7


def test_adapters_in_front_of_a_residual_path_are_saved_as_layers(tmp_path: Path) -> None:
    model = build("cifar_resnet20", num_classes=7)
    chain = split(model, probe=X)
    adapter = nn.Conv2d(16, 16, 1, bias=False)
    kept = fold_with_report(nn.Sequential(chain[0], adapter, *chain.blocks()[1:]).eval())
    assert kept.kept == {1: "a residual path carries the input on"}
    save_student(tmp_path / "s", kept.student, model, cuts=chain.names[:-1], data_config=CONFIG)
    assert torch.equal(load_student(tmp_path / "s")(X), kept.student(X))


def test_timm_does_not_half_read_a_folder_that_it_can_not_open(tmp_path: Path) -> None:
    student, model, cuts = sequence("cifar_mobilenetv2", fold=False)
    save_student(tmp_path / "s", student, model, cuts=cuts, data_config=CONFIG)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True)
    description = json.loads((tmp_path / "s" / "netgraft.json").read_text())
    assert description["architecture"] == "cifar_mobilenetv2"


def test_student_for_images_of_another_size_comes_back(tmp_path: Path) -> None:
    # LeViT has no patch embedding that says for which size it was made
    model = build_model("levit_128s", seed=0, num_classes=3, image_size=96).eval()
    save_student(tmp_path / "s", model, model, cuts=(), data_config=resolve_model_data_config(model))
    x = images(2, 3, 96, 96)
    assert torch.equal(load_student(tmp_path / "s")(x), model(x))


def test_saving_again_replaces_all_of_the_folder(tmp_path: Path) -> None:
    student, model, cuts = sequence("cifar_resnet20")
    save_student(tmp_path / "s", student, model, cuts=cuts, data_config=CONFIG)
    plain = save_plain(tmp_path / "s")
    assert torch.equal(load_student(tmp_path / "s")(X), plain(X))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert not (tmp_path / "s" / "netgraft.json").exists()


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # what safetensors makes of it
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
@pytest.mark.parametrize("kind", ["plain", "sequence"])
def test_full_disk_leaves_the_old_student(
    kind: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save_plain(tmp_path / "s")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(students, "save_file", refuse)
    monkeypatch.setattr(timm.models._hub.safetensors.torch, "save_file", refuse)
    student, model, cuts = sequence("cifar_resnet20")
    with pytest.raises(RunError, match=r"could not write .*No space left on device.*; free some space"):
        save_student(tmp_path / "s", model if kind == "plain" else student, model, cuts=cuts, data_config=CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert torch.equal(load_student(tmp_path / "s")(X), old(X))


def test_failure_while_putting_the_new_student_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save_plain(tmp_path / "s")
    replace = Path.replace

    def refuse_unfinished(self: Path, target: Path) -> Path:
        if self.name.endswith(".unfinished"):
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_unfinished)
    with pytest.raises(RunError, match="Input/output error"):
        save_plain(tmp_path / "s", seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert torch.equal(load_student(tmp_path / "s")(X), old(X))


def test_folders_without_a_student_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(RequestError, match=r"holds no student: expected config\.json \(timm's\) or netgraft\.json"):
            load_student(folder)


@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "other weights", "no JSON", "other JSON", "no name"])
def test_damaged_sequences_are_refused(damage: str, tmp_path: Path) -> None:
    student, model, cuts = sequence("cifar_resnet20")
    folder = tmp_path / "s"
    save_student(folder, student, model, cuts=cuts, data_config=CONFIG)
    (folder / "SHA256SUMS").unlink()
    weights, description = folder / "student.safetensors", folder / "netgraft.json"
    text = description.read_text()
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weights gone":
        weights.unlink()
    elif damage == "other weights":
        description.write_text(text.replace("cifar_resnet20", "cifar_resnet32"))
    else:
        description.write_text({"no JSON": text[:50], "other JSON": "[1]", "no name": "{}"}[damage])
    with pytest.raises(RequestError, match="holds a damaged student"):
        load_student(folder)


@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "no JSON", "other model"])
def test_damaged_plain_students_are_refused(damage: str, tmp_path: Path) -> None:
    save_plain(tmp_path / "s")
    (tmp_path / "s" / "SHA256SUMS").unlink()
    weights, config = tmp_path / "s" / "model.safetensors", tmp_path / "s" / "config.json"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weights gone":
        weights.unlink()
    elif damage == "no JSON":
        config.write_text("{")
    else:
        config.write_text(config.read_text().replace("cifar_resnet8", "cifar_resnet20"))
    with pytest.raises(RequestError, match=r"holds a damaged model|holds no weights|is no readable safetensors file"):
        load_student(tmp_path / "s")


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain folder, and one of a sequence."""
    folder = tmp_path_factory.mktemp("whole")
    save_plain(folder / "plain")
    student, model, cuts = sequence("cifar_resnet20")
    save_student(folder / "sequence", student, model, cuts=cuts, data_config=CONFIG)
    return {kind: folder / kind for kind in ("plain", "sequence")}


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["plain", "sequence"])
def test_a_flipped_bit_is_noticed(kind: str, which: int, place: float, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(whole[kind], folder)
    load_student(folder)
    path = sorted(path for path in folder.iterdir() if path.name != CARD)[which]
    flip(path, int(place * (path.stat().st_size - 1)), which)
    with pytest.raises(RequestError, match=r"is damaged: .*; copy the folder again or save it again, or remove ") as it:
        load_student(folder)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize("kind", ["plain", "sequence"])
def test_a_file_that_is_gone_is_noticed(kind: str, whole: dict[str, Path], tmp_path: Path) -> None:
    for name in sorted(path.name for path in whole[kind].iterdir() if path.name != CARD):
        shutil.copytree(whole[kind], tmp_path / name)
        (tmp_path / name / name).unlink()
        if name == "SHA256SUMS":  # as of a model that timm saved: nothing is known of its files
            load_student(tmp_path / name)
        else:
            with pytest.raises(RequestError, match=r"is damaged: can't read|holds no student"):
                load_student(tmp_path / name)


def test_checksums_are_those_of_sha256sum(whole: dict[str, Path]) -> None:
    for folder in whole.values():
        done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False)
        assert done.returncode == 0


def test_other_checksums_than_those_of_the_files_that_are_read_are_refused(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(whole["plain"], tmp_path / "s")
    sums = tmp_path / "s" / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    outside = f"{'0' * 64}  ../s\n"
    for text in ("", *lines, "".join([*lines, outside]), "".join(lines).upper(), "".join(lines) + "\xe9"):
        sums.write_text(text, encoding="latin-1")
        with pytest.raises(RequestError, match="SHA256SUMS is damaged"):
            load_student(tmp_path / "s")


LABELS = {
    "label_names": ["a", "b", "c", "d", "e", "f", "g"],
    "label_descriptions": dict.fromkeys("abcdefg", "a letter"),
}


def test_names_of_classes_come_back_with_a_plain_student(tmp_path: Path) -> None:
    model = build("cifar_resnet8", 0, num_classes=7)
    describe_labels(model, LABELS)
    save_student(tmp_path / "s", model, model, cuts=(), data_config=CONFIG)
    # where timm itself writes them
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert {name: config[name] for name in LABELS} == LABELS
    for opened in (load_student(tmp_path / "s"), timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True)):
        assert labels_of(opened) == LABELS
        assert label_names(opened) == dict(enumerate("abcdefg"))


def test_names_of_classes_come_back_with_a_sequence(tmp_path: Path) -> None:
    student, model, cuts = sequence("cifar_mobilenetv2", fold=False)
    describe_labels(model, LABELS)
    save_student(tmp_path / "s", student, model, cuts=cuts, data_config=CONFIG)
    assert json.loads((tmp_path / "s" / "netgraft.json").read_text())["pretrained_cfg"]["label_names"] == [*"abcdefg"]
    assert labels_of(load_student(tmp_path / "s")) == LABELS


def test_names_of_another_classifier_are_not_saved(tmp_path: Path) -> None:
    """A model that timm makes with other outputs keeps the names of its weights' classes in its configuration."""
    model = build("cifar_resnet8", 0, num_classes=7)
    describe_labels(model, LABELS)
    save_student(tmp_path / "s", model, model, cuts=(), data_config=CONFIG)
    other = timm.create_model(f"local-dir:{tmp_path / 's'}", num_classes=3).eval()
    assert label_names(other) == {}
    save_student(tmp_path / "other", other, other, cuts=(), data_config=CONFIG)
    assert labels_of(load_student(tmp_path / "other")) == {}


def test_names_of_classes_can_be_taken_away() -> None:
    model = build("cifar_resnet8", 0, num_classes=7)
    before = dict(pretrained_cfg(model))
    describe_labels(model, {})
    assert pretrained_cfg(model) == before
    describe_labels(model, LABELS)
    assert pretrained_cfg(model) == {**before, **LABELS}
    describe_labels(model, {})
    assert pretrained_cfg(model) == {name: value for name, value in before.items() if name not in LABELS}
