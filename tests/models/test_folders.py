"""Folders with models: those that timm wrote open with the same bits, and no others do more than be refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from netgraft.errors import RequestError
from netgraft.models import folders
from netgraft.models.creation import build_model, label_names
from netgraft.models.folders import bounded_memory, open_folder
from netgraft.models.loading import load_teacher
from netgraft.models.students import save_student
from tests.support.random_models import build, images, snapshot

SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a folder reached the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / ("config.json" if (folder / "config.json").exists() else "netgraft.json")
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def made_by_timm(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"num_classes": 7}),
        ("digits_vgg7_bn_half", {"head_hidden": 5, "head_norm": True}),
        ("test_vit", {"img_size": 96, "num_classes": 3}),
        ("mobilenetv3_small_050", {"in_chans": 1}),
        ("levit_128s", {}),
        ("test_nfnet", {}),
        ("cifar_resnet20", {"num_classes": 0}),
    ],
)
def test_folders_of_timm_open_as_timm_opens_them(
    name: str, options: dict[str, Any], safe: bool, tmp_path: Path
) -> None:
    model = build(name, **options)
    named = {"label_names": [f"class {number}" for number in range(options.get("num_classes", 0))]}
    timm.models.save_for_hf(model, str(tmp_path), model_args=dict(options), model_config=named, safe_serialization=safe)
    opened, expected = load_teacher(f"local-dir:{tmp_path}"), made_by_timm(tmp_path)
    assert snapshot(opened) == snapshot(expected) == snapshot(model)
    config = {key: value for key, value in expected.pretrained_cfg.items() if key not in SOURCES}
    assert vars(opened)["pretrained_cfg"] == config
    assert not set(SOURCES) & vars(opened)["pretrained_cfg"].keys()
    assert not options.get("num_classes") or label_names(opened) == dict(enumerate(named["label_names"]))
    x = images(2, *config["input_size"])
    assert torch.equal(opened(x), model(x))


def test_the_first_form_of_timm_opens(tmp_path: Path) -> None:
    model = build("cifar_resnet8", num_classes=3)
    timm.models.save_for_hf(model, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    flat = {**config["pretrained_cfg"], "architecture": config["architecture"], "num_features": 64, "labels": [*"abc"]}
    (tmp_path / "config.json").write_text(json.dumps({**flat, "hf_hub_id": "a/b", "custom_load": True}))
    opened = load_teacher(f"local-dir:{tmp_path}")
    assert snapshot(opened) == snapshot(model)
    assert label_names(opened) == dict(enumerate("abc"))


def test_the_architecture_of_a_folder_can_be_made_with_other_classes(tmp_path: Path) -> None:
    timm.models.save_for_hf(build("cifar_resnet8", num_classes=3), str(tmp_path))
    assert vars(open_folder(tmp_path, trained=False, num_classes=5))["num_classes"] == 5


@pytest.mark.parametrize(
    "fetched",
    [
        {"url": "http://127.0.0.1:9/w.pth"},
        {"hf_hub_id": "somebody/something", "source": "hf-hub"},
        {"hf_hub_id": "somebody/something", "hf_hub_filename": "w.bin", "custom_load": "hf"},
        {"file": "/etc/passwd", "custom_load": True},
        {"source": "local-dir", "file": "/tmp"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["timm", "own"])
def test_a_description_can_not_say_where_weights_are(kind: str, fetched: dict[str, Any], tmp_path: Path) -> None:
    model = saved(kind, tmp_path / "s")
    edit(tmp_path / "s", lambda value: value["pretrained_cfg"].update(fetched))
    edit(tmp_path / "s", lambda value: value.update(pretrained_cfg_overlay=fetched, **fetched))
    opened = load_teacher(str(tmp_path / "s"))
    assert snapshot(opened) == snapshot(model)
    # nothing, or what timm's registry says itself
    known = vars(timm.create_model("test_vit"))["pretrained_cfg"] if kind == "own" else {"custom_load": False}
    for field in (*SOURCES, "custom_load"):
        assert vars(opened)["pretrained_cfg"].get(field) == known.get(field)


def saved(kind: str, folder: Path) -> nn.Module:
    """A folder that timm can open, or one of a narrowed model; without checksums, which would refuse any change."""
    model = build_model("test_vit", seed=0, image_size=32, num_classes=10).eval()
    if kind == "own":
        block: Any = model.get_submodule("blocks.0.mlp")
        block.fc1, block.fc2 = nn.Linear(64, 40), nn.Linear(40, 64)
    config = {
        "input_size": (3, 32, 32),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1,
    }
    save_student(folder, model, model, cuts=(), data_config=config)
    (folder / "SHA256SUMS").unlink()
    return model.eval()


def replace(*path: str, by: object) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = by

    return change


def replaced(*path: str, by: Iterable[object]) -> list[Callable[[Any], None]]:
    return [replace(*path, by=value) for value in by]


WRONG: list[Callable[[Any], None]] = [
    *replaced("architecture", by=("hf-hub:timm/resnet18", "local-dir:/tmp", "http://a/b", "no", "", 3)),
    replace("architecture", by="test_vit.no_such_tag"),
    replace("architecture", by="test_vit.a:/b"),
    *replaced("model_args", "num_classes", by=(7, 10**6, 10**12, 10**400, -1, "10", 10.5, True)),
    *replaced("model_args", "in_chans", by=(0, 10**12, "3", [])),
    *replaced("model_args", "img_size", by=(0, 10**9, [32], "32", [10**9, 10**9], {}, [-1, 4])),
    *(replace("model_args", name, by=True) for name in ("pretrained", "features_only", "pretrained_strict")),
    *(
        replace("model_args", name, by=value)
        for name, value in {
            "checkpoint_path": "/tmp/w.pth",
            "pretrained_cfg": {"url": "http://127.0.0.1:9/"},
            "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/"},
            "cache_dir": "/tmp",
            "no_such_argument": 1,
            "depth": 10**4,
            "embed_dim": 2**20,
            "mlp_ratio": 1e308,
            "num_heads": float("nan"),
        }.items()
    ),
    *replaced("pretrained_cfg", by=([], 3, "x", None)),
    *replaced(
        "pretrained_cfg",
        "input_size",
        by=(3, [32, 32], [3, 10**9, 10**9], [3, -1, 4], ["3", 4, 4], [3, 4.5, 4], [10**12] * 3),
    ),
    *replaced("pretrained_cfg", "mean", by=("x", [], [float("nan")] * 3, ["a"] * 3, {}, [1e308] * 3)),
    *replaced("pretrained_cfg", "std", by=([0, 1, 1], [-1] * 3, [float("inf")] * 3)),
    replace("pretrained_cfg", "interpolation", by="none of these"),
    replace("pretrained_cfg", "crop_mode", by="none of these"),
    *replaced("pretrained_cfg", "crop_pct", by=(0, -1, float("nan"), 1e9, "all")),
    *replaced("pretrained_cfg", "label_names", by=(3, "abc", [1, 2], {"a": "b"}, {"1": 2})),
    replace("pretrained_cfg", "label_descriptions", by=[1]),
]


@pytest.mark.parametrize("change", range(len(WRONG)))
@pytest.mark.parametrize("kind", ["timm", "own"])
def test_a_wrong_field_is_refused_in_a_sentence(
    kind: str, change: int, descriptions: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for path in descriptions[kind].iterdir():
        if path.suffix in {".json", ".safetensors"}:
            (folder / path.name).write_bytes(path.read_bytes())
    edit(folder, WRONG[change])
    refused(folder)


@pytest.fixture(scope="module")
def descriptions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) / "s" for kind in ("timm", "own")}
    for kind, folder in made.items():
        saved(kind, folder)
    return made


def refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"holds a damaged (model|student)") as refusal:
        load_teacher(str(folder))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"architecture": ' * 100_000,
        '{"a": ' + "[" * 100_000,
        "",
        "\0",
        "[]",
        "null",
        "3",
        '{"a": 1',
        "\ud800",
    ],
    ids=range(10),
)
@pytest.mark.parametrize("name", ["config.json", "netgraft.json"])
def test_what_is_no_description_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(tmp_path)


def test_a_description_of_any_length_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    refused(tmp_path)


def test_a_model_is_not_made_where_it_can_not_fit() -> None:
    with bounded_memory(1000), pytest.raises(ValueError, match="expected a model of about 1000 parameters"):
        nn.Linear(2**14, 2**14)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
        with bounded_memory(), pytest.raises(ValueError, match="bytes of free memory"):
            nn.Linear(2**10, 2**10)
    with bounded_memory(), pytest.raises(ValueError, match="layers, got more"):
        nn.Sequential(*(nn.Identity() for _ in range(2**16 + 1)))
    with bounded_memory(1000):
        nn.Linear(2**11, 2**12)
    nn.Linear(2**14, 2**11)
