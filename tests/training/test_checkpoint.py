"""Checkpoints: whole or not at all, this run's or none, and never a program."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netgraft.errors import RequestError, RunError
from netgraft.files import check_seal, seal_archive, write_atomically, write_text
from netgraft.training import checkpoint as module
from netgraft.training.checkpoint import Checkpoint, load_optimizer


def make(**changes: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(3, 4, generator=generator), "a.count": torch.tensor(7)}
    optimizer = {
        "state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.randn(3, 4, generator=generator)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0], "fused": None}],
    }
    values: dict[str, Any] = {
        "fingerprint": "f" * 64,
        "precision": "32",
        "phase": 1,
        "step": 5,
        "seconds": 2.5,
        "weights": weights,
        "optimizer": optimizer,
    }
    return Checkpoint(**{**values, **changes})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = make(weights={"w": torch.tensor([0.1, -0.0, 1e-42, 3e38]), "half": torch.ones(2, dtype=torch.bfloat16)})
    saved.save(tmp_path / "c.pt")
    loaded = Checkpoint.load(tmp_path / "c.pt", saved.fingerprint)
    assert (loaded.fingerprint, loaded.phase, loaded.step, loaded.seconds) == ("f" * 64, 1, 5, 2.5)
    assert loaded.weights.keys() == saved.weights.keys()
    for name, value in saved.weights.items():
        assert loaded.weights[name].dtype == value.dtype
        assert loaded.weights[name].view(torch.uint8).tolist() == value.view(torch.uint8).tolist()
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def half_then(error: BaseException) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text("half of")
        raise error

    return write


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("PytorchStreamWriter failed")], ids=str
)
def test_failed_write_leaves_the_old_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RunError, match=r"could not write .*file: .*; free some space and go on with --resume"):
        write_atomically(path, half_then(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("no text")], ids=repr)
def test_other_failures_pass_and_leave_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_atomically(path, half_then(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        temporary.write_text("new, first half")
        seen.append(path.read_text())
        temporary.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old", "old"]
    assert path.read_text() == "new"


def test_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from netgraft.files import write_atomically\n"
        "def write(path):\n"
        "    path.write_text('half of')\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_atomically(Path(sys.argv[1]), write)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not write"):
        write_text(tmp_path / "nowhere" / "file", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not write"):
        write_text(tmp_path / "file" / "below", "text")


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    make(step=1).save(path)

    def full(_: object, temporary: Path) -> None:
        temporary.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(RunError, match="No space left on device"):
        make(step=2).save(path)
    assert Checkpoint.load(path, "f" * 64).step == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the mount command")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_really_full_disk_keeps_the_last_checkpoint(small_disk: Path) -> None:
    path = small_disk / "c.pt"
    make(step=1).save(path)
    with pytest.raises(RunError, match="free some space"):
        make(step=2, weights={"w": torch.zeros(200_000)}).save(path)
    assert Checkpoint.load(path, "f" * 64).step == 1
    assert list(small_disk.iterdir()) == [path]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "c.pt"
    spoilt = make(step=2, weights={"fine": torch.zeros(2), "layer.weight": torch.tensor([0.0, bad])})
    with pytest.raises(RunError, match="no checkpoint had been saved yet"):
        spoilt.save(path)
    assert not path.exists()
    make(step=1).save(path)
    with pytest.raises(RunError, match=r"layer.weight is no longer finite at step 2 of phase 2; the last good .*c\.pt"):
        spoilt.save(path)
    assert Checkpoint.load(path, "f" * 64).step == 1


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    make().save(path)
    with pytest.raises(RequestError, match="belongs to another plan, subset, teacher or seed"):
        Checkpoint.load(path, "0" * 64)


class _Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("wrapped", [True, False])
def test_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, wrapped: bool) -> None:
    mark, path = tmp_path / "executed", tmp_path / "c.pt"
    content = {**make().__dict__, "optimizer": _Bomb(mark)}
    if wrapped:
        torch.save(content, path)
        # whoever wrote it knows how
        seal_archive(path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(RequestError, match="is no checkpoint of netgraft"):
        Checkpoint.load(path, "f" * 64)
    assert not mark.exists()
    # the bomb is real
    torch.load(path, weights_only=False) if wrapped else pickle.loads(path.read_bytes())
    assert mark.exists()


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"not a checkpoint",
        "cut off": content[: len(content) // 2],
        "no end": content[:-30],
        "zeros": bytes(len(content)),
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.pt"
    make().save(path)
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(RequestError, match="is no checkpoint of netgraft"):
        Checkpoint.load(path, "f" * 64)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("content", [{}, {"weights": {}}, [1, 2], torch.zeros(3)], ids=["no", "few", "list", "tensor"])
def test_other_peoples_files_are_refused(
    tmp_path: Path, content: dict[str, Any] | list[int] | Tensor, sealed: bool
) -> None:
    torch.save(content, tmp_path / "c.pt")
    if sealed:
        seal_archive(tmp_path / "c.pt")
    with pytest.raises(RequestError, match="is no checkpoint of netgraft"):
        Checkpoint.load(tmp_path / "c.pt", "f" * 64)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    make().save(path)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"expected (its )?SHA-256"):
            check_seal(path)
        refused += 1
    assert refused > 1000
    with pytest.raises(RequestError, match=r"c\.pt is no checkpoint of netgraft, or a damaged one: .*; remove it, and"):
        Checkpoint.load(path, "f" * 64)
    path.write_bytes(content)
    assert Checkpoint.load(path, "f" * 64).step == 5


def test_other_programs_read_a_checkpoint(tmp_path: Path) -> None:
    make().save(tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "1"},
        {"phase": True},
        {"step": 5.0},
        {"step": None},
        {"seconds": "2"},
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"precision": 32},
        {"fingerprint": 3},
        {"weights": []},
        {"weights": {"a": 1}},
        {"optimizer": None},
    ],
    ids=str,
)
def test_fields_of_other_types_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.save({**make().__dict__, **changes}, tmp_path / "c.pt")
    seal_archive(tmp_path / "c.pt")
    with pytest.raises(RequestError, match=r"is no checkpoint of netgraft, or a damaged one: expected .*, got ") as it:
        Checkpoint.load(tmp_path / "c.pt", "f" * 64)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phase": 99}, "expected one of 2 phases, got phase 100"),
        ({"phase": -1}, "expected one of 2 phases, got phase 0"),
        ({"step": 10**9}, "expected a step of phase 2, which has 8, got step 1000000000"),
        ({"step": -1}, "expected a step of phase 2, which has 8, got step -1"),
        ({"phase": 2, "step": 1}, "expected a step of phase 3, which has 0, got step 1"),
        ({"precision": "64"}, "expected precision 32 or bf16, got '64'"),
        ({"precision": "auto"}, "expected precision 32 or bf16, got 'auto'"),
        ({"weights": {}}, "expected the weights of this plan, got others, first 'a"),
        ({"weights": {"a.weight": torch.zeros(3, 5), "a.count": torch.tensor(7)}}, "got others, first 'a.weight'"),
        ({"weights": {"a.weight": torch.zeros(3, 4), "a.count": torch.tensor(7.0)}}, "got others, first 'a.count'"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_plan_is_refused(changes: dict[str, Any], said: str) -> None:
    weights = make().weights
    for fitting in ({"phase": 0, "step": 4}, {"phase": 1, "step": 8}, {"phase": 2, "step": 0}):
        make(**fitting).check_fits(Path("c.pt"), [4, 8], weights)
    with pytest.raises(RequestError, match=r"^c\.pt doesn't fit the plan: .*; remove it, and the run begins") as it:
        make(**changes).check_fits(Path("c.pt"), [4, 8], weights)
    assert said in str(it.value)


def test_the_state_of_another_optimiser_is_refused() -> None:
    def optimizer(*shape: int, kind: type[torch.optim.Optimizer] = torch.optim.Adam) -> torch.optim.Optimizer:
        parameter = torch.nn.Parameter(torch.ones(shape))
        made = kind([parameter], lr=0.1)  # type: ignore[call-arg]
        parameter.sum().backward()
        made.step()
        return made

    state = optimizer(3, 4).state_dict()
    load_optimizer(optimizer(3, 4), state)
    two = {**state, "param_groups": state["param_groups"] * 2}
    for wrong in ({}, two, {"state": 3, "param_groups": 4}, optimizer(4, 3).state_dict()):
        with pytest.raises(
            RequestError, match=r"holds the state of another optimiser .*; remove it, and the run begins"
        ):
            load_optimizer(optimizer(3, 4), wrong)
