"""Without a network, weights that aren't here are refused at once; those that are here are read."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import constants

from netgraft.errors import RequestError
from netgraft.models import creation, downloads
from netgraft.models.loading import load_teacher


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that somebody wanted to reach; none of them can be."""
    asked: list[Any] = []

    def refuse(address: Any, **options: Any) -> None:
        asked.append(address)
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(downloads, "getproxies", dict)
    return asked


def no_model(*arguments: Any, **options: Any) -> None:
    raise AssertionError("nobody may try to download")


@pytest.mark.parametrize(
    ("name", "host"), [("resnet18", "huggingface.co"), ("hf-hub:nobody/nothing", "huggingface.co")]
)
def test_weights_that_are_not_here_are_refused_before_anything_is_tried(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch, asked_for: list[Any]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"https://{host}")
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda *arguments, **options: None)
    monkeypatch.setattr(timm, "create_model", no_model)
    said = f"the weights of {name} are not on this machine, and {host} can't be reached; connect"
    with pytest.raises(RequestError, match=said):
        load_teacher(name)
    assert asked_for == [(host, 443)]


def test_weights_that_are_here_are_read_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    offline: list[bool] = []

    def cached(*arguments: Any, **options: Any) -> Any:
        offline.append(constants.HF_HUB_OFFLINE)
        return model

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda repository, *files, **options: "/cache/file")
    monkeypatch.setattr(creation.timm, "create_model", cached)
    assert load_teacher("resnet18") is model
    assert offline == [True]
    assert constants.HF_HUB_OFFLINE is False


def test_weights_of_a_url_are_sought_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = timm.models.PretrainedCfg(url="https://elsewhere.org/files/some.pth")
    monkeypatch.setattr(downloads.timm, "get_pretrained_cfg", lambda name: config)
    with pytest.raises(RequestError, match=r"elsewhere\.org can't be reached"), downloads.within_reach("resnet18"):
        pass
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "some.pth").touch()
    with downloads.within_reach("resnet18"):
        pass


def test_models_that_bring_their_weights_along_ask_nobody(asked_for: list[Any]) -> None:
    load_teacher("digits_vgg7_bn")
    assert asked_for == []
