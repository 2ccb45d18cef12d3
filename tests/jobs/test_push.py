"""``netgraft push``: the student and its card stand on the hub, open from there, and nothing else went along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import timm
import timm.models._hub
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants
from netgraft.cli.main import run
from PIL import Image

from netgraft.data.sources import open_data
from netgraft.errors import RunError
from netgraft.files import check_checksums
from netgraft.jobs import push
from netgraft.jobs.push import push_student
from netgraft.models.students import load_student
from tests.support.cli import FEW_STEPS, fails

ASKED = ["distill", "--images", "20", *FEW_STEPS, "--quiet", "--teacher", "digits_vgg7_bn", "--precision", "32"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's folder: flat, so without classes."""
    folder = tmp_path_factory.mktemp("home-of-ann") / "holidays"
    folder.mkdir()
    for number, image in enumerate(open_data("digits").train.load_many(range(24))):
        image.save(folder / f"portrait-{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("push")
    data = ["--data", str(photographs)]
    asked = {"plain": ["--student", "digits_vgg7_bn_half"], "derived": ["--keep", "macs=0.5"]}
    for name, words in asked.items():
        assert run([*ASKED, *data, *words, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in asked}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Hub:
    """Keeps in a folder what is committed; each call must fit the signature of the hub's own client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, Any]] = []
        self.api = create_autospec(HfApi, instance=True)
        self.api.create_repo.side_effect = lambda name, **options: self.calls.append((name, options))
        self.api.create_branch.side_effect = lambda name, **options: self.calls.append((name, options))
        self.api.create_commit.side_effect = self.commit

    def commit(self, name: str, operations: list[CommitOperationAdd], **options: Any) -> SimpleNamespace:
        self.calls.append((name, options))
        self.folder.mkdir()
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / operation.path_in_repo).write_bytes(file.read())
        return SimpleNamespace(commit_url=f"https://hub.test/{name}/commit/1")


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("kind", ["plain", "derived"])
def test_the_lines_of_the_card_open_the_student_from_the_hub(
    kind: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(Path("hub"))
    before = (runs[kind] / "student" / "README.md").read_bytes()
    result = push_student(str(runs[kind]), "ann/small", private=True, api=hub.api)
    assert result["url"] == "https://hub.test/ann/small/commit/1"
    assert hub.calls[0] == ("ann/small", {"private": True, "exist_ok": True})
    assert hub.calls[1][1]["revision"] == "main"
    assert (runs[kind] / "student" / "README.md").read_bytes() == before

    def fetched(repo_id: str, filename: str = "", **options: Any) -> str:
        assert repo_id == "ann/small"
        return str(Path("hub", filename))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", fetched)
    names: dict[str, Any] = {}
    code = code_of(Path("hub/README.md").read_text())
    assert ("hf-hub:ann/small" in code) == (kind == "plain")
    exec(code, names)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(names["model"](images), load_student(runs[kind])(images))


@pytest.mark.parametrize("kind", ["plain", "derived"])
def test_nothing_of_the_photographs_or_of_the_machine_is_uploaded(
    kind: str, runs: dict[str, Path], photographs: Path
) -> None:
    shutil.copytree(runs[kind], "run")
    student = Path("run/student")
    shutil.copy(photographs / "portrait-0.png", student)  # somebody keeps it there
    (student / "notes.txt").write_text("mine")
    hub = Hub(Path("hub"))
    result = push_student("run", "ann/small", api=hub.api)
    description, weights = (
        ("config.json", "model.safetensors") if kind == "plain" else ("netgraft.json", "student.safetensors")
    )
    names = {"README.md", "SHA256SUMS", description, weights}
    assert {path.name for path in Path("hub").iterdir()} == names == {file["name"] for file in result["files"]}
    check_checksums(Path("hub"), [description, weights], advice="")
    pixels = [Image.open(path).tobytes() for path in photographs.iterdir()]
    for path in Path("hub").iterdir():
        content = path.read_bytes()
        for word in ("holidays", "home-of-ann", "portrait", str(Path.home()), str(Path.cwd()), str(runs[kind])):
            assert word.encode() not in content, path.name
        assert not [image for image in pixels if image in content]


def test_a_dry_run_lists_the_files_and_asks_nobody(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_hub", lambda: pytest.fail("nobody may be asked"))
    asked = ["push", str(runs["plain"]), "ann/small", "--dry-run"]
    assert run([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["uploaded"], result["url"], result["revision"]) == (False, None, "main")
    sizes = {path.name: path.stat().st_size for path in (runs["plain"] / "student").iterdir()}
    found = {file["name"]: file["bytes"] for file in result["files"]}
    assert found.keys() == sizes.keys()
    assert found["model.safetensors"] == sizes["model.safetensors"]
    assert run(asked) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "nothing was uploaded to ann/small, branch main" in said


def test_a_branch_is_made_and_named_in_the_card(runs: dict[str, Path]) -> None:
    hub = Hub(Path("hub"))
    push_student(str(runs["plain"] / "student"), "ann/small", revision="v2", api=hub.api)
    assert hub.calls[1] == ("ann/small", {"branch": "v2", "exist_ok": True})
    assert hub.calls[2][1]["revision"] == "v2"
    assert 'create_model("hf-hub:ann/small@v2", pretrained=True)' in Path("hub/README.md").read_text()


def test_a_card_that_somebody_wrote_goes_as_it_is(runs: dict[str, Path]) -> None:
    shutil.copytree(runs["plain"] / "student", "student")
    Path("student/README.md").write_text("# Mine\n")
    push_student("student", "ann/small", api=Hub(Path("hub")).api)
    assert Path("hub/README.md").read_text() == "# Mine\n"


def test_requests_that_can_not_be_met_are_one_sentence(
    runs: dict[str, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(runs["plain"])
    for name in ("small", "ann/small/1", "ann/..", "ann/sm all"):
        assert f"expected OWNER/NAME, as the hub allows them, got '{name}'" in fails(capsys, "push", there, name)
    Path("empty").mkdir()
    assert "got empty, which holds none" in fails(capsys, "push", "empty", "ann/small")
    shutil.copytree(there, "run")
    card = Path("run/student/README.md")
    text = card.read_text()
    for path in (photographs, Path.home() / "x", Path("run/student").resolve()):
        card.write_text(f"{text}\nMade of {path}.\n")
        said = fails(capsys, "push", "run", "ann/small", "--dry-run")
        assert "expected nothing in README.md that lies on this machine only, got the path" in said
    card.write_bytes(b"\xff\xfe")
    assert "expected text in run/student/README.md, got something else" in fails(capsys, "push", "run", "ann/small")
    card.unlink()
    assert "expected a model card in run/student, got no README.md" in fails(capsys, "push", "run", "ann/small")
    card.write_text(text)
    Path("run/student/model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors is damaged: expected SHA-256" in fails(capsys, "push", "run", "ann/small")


def test_without_a_network_or_a_token_it_ends_at_once(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["push", str(runs["plain"]), "ann/small"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert run(asked) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "could not upload to http://127.0.0.1:1: it can't be reached; connect to the network" in said.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(asked) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(push, "reaches", lambda url: True)
    monkeypatch.setattr(push, "get_token", lambda: None)
    assert "expected a token that may write to http://127.0.0.1:1, got none; set HF_TOKEN" in fails(capsys, *asked)


def test_what_the_hub_refuses_is_said(runs: dict[str, Path]) -> None:
    hub = Hub(Path("hub"))
    hub.api.create_commit.side_effect = OSError("no space\nleft at the hub")
    with pytest.raises(RunError, match="could not upload to ann/small: no space left at the hub; see to it"):
        push_student(str(runs["plain"]), "ann/small", api=hub.api)
