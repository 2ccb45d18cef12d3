"""Weights from files: what is read, what is refused, and that nothing in them is executed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from netgraft.errors import RequestError
from netgraft.models.loading import load_teacher
from netgraft.models.weights import read_weights
from tests.support.random_models import build, images, snapshot

X = images(2, 3, 32, 32)


def state(seed: int = 0) -> tuple[dict[str, Tensor], nn.Module]:
    model = build("cifar_resnet8", seed)
    return dict(model.state_dict()), model


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        ("plain", ".safetensors"),
        ("prefix", ".safetensors"),
        ("plain", ".pth"),
        ("prefix", ".pth"),
        ("state_dict", ".pth"),
        ("model", ".pth"),
        ("state_dict_ema", ".pth"),
        ("wrapped prefix", ".pth"),
        ("compiled prefix", ".pth"),
    ],
)
def test_weights_files_are_read(wrap: str, suffix: str, tmp_path: Path) -> None:
    weights, model = state()
    path = tmp_path / f"teacher{suffix}"
    prefix = {"prefix": "module.", "wrapped prefix": "module.", "compiled prefix": "_orig_mod."}.get(wrap, "")
    content: dict[str, Any] = {prefix + name: value for name, value in weights.items()}
    if wrap in {"state_dict", "model", "state_dict_ema", "wrapped prefix"}:
        content = {wrap.replace("wrapped prefix", "state_dict"): content, "epoch": 3, "arch": "cifar_resnet8"}
    if wrap == "state_dict_ema":
        content["state_dict"] = state(seed=9)[0]
    if suffix == ".pth":
        torch.save(content, path)
    else:
        save_file(content, path)
    teacher = load_teacher("cifar_resnet8", weights=path)
    assert snapshot(teacher) == snapshot(model)
    assert torch.equal(teacher(X), model(X))


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path: Path) -> None:
    weights, _ = state()
    del weights["bn1.bias"], weights["layer1.0.conv1.weight"]
    weights["stranger"], weights["conv1.weight"] = torch.zeros(1), torch.zeros(16, 3, 5, 5)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(RequestError) as refusal:
        load_teacher("cifar_resnet8", weights=tmp_path / "w.safetensors")
    message = str(refusal.value)
    assert "2 missing keys, first 'bn1.bias'" in message
    assert "1 unexpected keys, first 'stranger'" in message
    assert "1 differing shapes, first 'conv1.weight': expected (16, 3, 3, 3), found (16, 3, 5, 5)" in message
    assert message.endswith("give weights of this very architecture")


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.proof),)


REFUSED = "holds more than tensors, or is damaged, and was not loaded"


def unguarded(path: Path) -> Any:
    """As timm read folders up to release 1.0.25."""
    return torch.load(path, weights_only=False)["state_dict"]


@pytest.fixture
def old_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader of timm unpickles what it finds."""

    def of_folder(path: Path, *_: object, **__: object) -> Any:
        return unguarded(next(Path(path).glob("*.bin")))

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_path", of_folder)
    monkeypatch.setattr(timm.models._builder, "load_state_dict", lambda path, *_, **__: unguarded(path))
    monkeypatch.setattr(timm.models._helpers, "_torch_load", lambda path, *_, **__: unguarded(path))


@pytest.mark.usefixtures("old_timm")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pth", "other.pth", "other.bin"])
@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test_a_folder_runs_no_code_whatever_timm_does(prefix: str, name: str, tmp_path: Path) -> None:
    proof, folder = tmp_path / "executed", tmp_path / "model"
    timm.models.save_for_hf(state()[1], str(folder), safe_serialization=False)
    (folder / "pytorch_model.bin").unlink()
    torch.save({"state_dict": state()[0], "extra": Malicious(proof)}, folder / name)
    with pytest.raises(RequestError, match=f"{name} {REFUSED} .*; export its state dict as safetensors$") as refusal:
        load_teacher(f"{prefix}{folder}")
    assert "\n" not in str(refusal.value)
    assert not proof.exists()
    unguarded(folder / name)
    assert proof.exists(), "the pickle would have been executed by an unguarded reader"


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "w.pth"
    torch.save({"state_dict": state()[0], "extra": Malicious(proof)}, path)
    with pytest.raises(RequestError, match=REFUSED):
        load_teacher("cifar_resnet8", weights=path)
    assert not proof.exists()
    unguarded(path)
    assert proof.exists(), "the pickle would have been executed by an unguarded reader"


def test_weights_that_timm_fetches_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof, path = tmp_path / "executed", tmp_path / "fetched.bin"
    torch.save({"state_dict": {}, "extra": Malicious(proof)}, path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(timm.models._builder, name, lambda *_, **__: unguarded(path))
    monkeypatch.setattr("netgraft.models.downloads.reaches", lambda url: True)
    with pytest.raises(RequestError, match=r"timm could not make 'resnet18': .*Weights only load failed") as refusal:
        load_teacher("resnet18")
    assert "\n" not in str(refusal.value)
    assert not proof.exists()
    # what others do later is their own
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2**22)}, tmp_path / "flat.pth")
    with zipfile.ZipFile(tmp_path / "flat.pth") as flat, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as packed:
        for entry in flat.namelist():
            packed.writestr(entry, flat.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 2**18
    with pytest.raises(RequestError, match=REFUSED):
        read_weights(tmp_path / "w.pth")


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no weights file"):
        read_weights(tmp_path / "missing.pth")
    for name, content in (("w.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken"), ("w.pth", b"not a pickle")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=r"is no readable safetensors file|was not loaded"):
            read_weights(tmp_path / name)
    for value in ([torch.zeros(1)], {"epoch": 3}, {"state_dict": {"a": 1}}):
        torch.save(value, tmp_path / "list.pth")
        with pytest.raises(RequestError, match="holds no state dict: expected names and tensors"):
            read_weights(tmp_path / "list.pth")
