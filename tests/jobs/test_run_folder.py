"""Run folders: nobody's run is overwritten, and the same command finds its own again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from netgraft.errors import RequestError
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.run_folder import RunFolder, RunFolderBusyError, default_folder
from netgraft.training.options import DeviceOptions

CONFIG: dict[str, Any] = {"fingerprint": "aaa", "data": "digits", "seed": 0}

OTHER: dict[str, Any] = {"fingerprint": "bbb", "data": "digits", "seed": 1}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_new_or_empty_folder_is_taken(tmp_path: Path, resume: bool, exists: bool) -> None:
    path = tmp_path / "deep" / "run"
    if exists:
        path.mkdir(parents=True)
    folder = RunFolder(path)
    assert folder.config() is None
    folder.claim(CONFIG, resume=resume)
    assert json.loads((path / "config.json").read_text()) == CONFIG
    assert folder.config() == CONFIG
    assert folder.result() is None
    assert [entry.name for entry in path.iterdir()] == ["config.json"]


def test_a_run_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(CONFIG, resume=False)
    before = contents(tmp_path)
    for config in (CONFIG, OTHER):
        with pytest.raises(RequestError, match="already holds a run; add --resume"):
            RunFolder(tmp_path).claim(config, resume=False)
    assert contents(tmp_path) == before


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(CONFIG, resume=False)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = contents(tmp_path)
    RunFolder(tmp_path).claim(CONFIG, resume=True)
    assert contents(tmp_path) == before


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(CONFIG, resume=False)
    before = contents(tmp_path)
    with pytest.raises(RequestError, match="holds another run \\(seed 0 there, 1 now\\)"):
        RunFolder(tmp_path).claim(OTHER, resume=True)
    with pytest.raises(RequestError, match="its images or weights differ"):
        RunFolder(tmp_path).claim({**CONFIG, "fingerprint": "ccc"}, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(RequestError, match="holds no run of netgraft"):
        RunFolder(tmp_path).claim(CONFIG, resume=resume)
    assert contents(tmp_path) == {"photo.jpg": "x"}


def test_another_programs_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(RequestError, match="holds another run"):
        RunFolder(tmp_path).claim(CONFIG, resume=True)
    with pytest.raises(RequestError, match="already holds a run"):
        RunFolder(tmp_path).claim(CONFIG, resume=False)


@pytest.mark.parametrize("text", ["", '{"fingerprint": "aa', "[1, 2]", "7", '"text"', "\x00"])
def test_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for resume in (False, True):
        with pytest.raises(RequestError, match=r"config\.json is damaged"):
            RunFolder(tmp_path).claim(CONFIG, resume=resume)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("resume", [False, True])
def test_a_kill_while_the_configuration_was_written_leaves_the_folder_free(tmp_path: Path, resume: bool) -> None:
    (tmp_path / ".config.json.123.tmp").write_text('{"finger')
    RunFolder(tmp_path).claim(CONFIG, resume=resume)
    assert RunFolder(tmp_path).config() == CONFIG


def test_what_a_kill_left_half_written_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG, resume=False)
    (tmp_path / "student").mkdir()
    for name in (".checkpoint.pt.01.tmp", "student/.model.safetensors.02.tmp", ".outputs-abc"):
        (tmp_path / name).write_text("half")
    with pytest.raises(RequestError):
        folder.claim(OTHER, resume=True)
    assert len(list(tmp_path.iterdir())) == 4
    folder.claim(CONFIG, resume=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "student"]


def test_two_runs_never_meet_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    assert not folder.is_locked()
    assert not folder.path.exists()
    with folder.lock():
        assert folder.is_locked()
        with pytest.raises(RunFolderBusyError, match=r"another run is at work in .*run; wait until it ends"):
            folder.lock().__enter__()
        # the lock alone doesn't make it anybody's
        folder.claim(CONFIG, resume=False)
    assert not folder.is_locked()
    assert [entry.name for entry in folder.path.iterdir()] == ["config.json"]
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock():
        folder.claim(CONFIG, resume=True)


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    program = (
        "import sys, time; from pathlib import Path; from netgraft.jobs.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "held\n"
    assert folder.is_locked()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder.path / ".lock").exists()
    assert not folder.is_locked()
    (folder.path / ".lock").touch()
    with folder.lock():
        folder.claim(CONFIG, resume=False)
    assert [entry.name for entry in folder.path.iterdir()] == ["config.json"]


def test_a_job_is_refused_where_another_works_and_holds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = DistillJob(method="none", shots=1, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with folder.lock(), pytest.raises(RunFolderBusyError, match="another run is at work"):
        job.run()
    assert list(folder.path.iterdir()) == []
    written: list[tuple[str, bool]] = []
    write, claim = RunFolder.write, RunFolder.claim

    def noting_claim(folder: RunFolder, config: dict[str, Any], *, resume: bool) -> None:
        written.append(("claimed", folder.is_locked()))
        claim(folder, config, resume=resume)

    def noting_write(folder: RunFolder, name: str, content: dict[str, Any]) -> None:
        write(folder, name, content)
        written.append((name, folder.is_locked()))

    monkeypatch.setattr(RunFolder, "claim", noting_claim)
    monkeypatch.setattr(RunFolder, "write", noting_write)
    job.run()
    assert written == [("claimed", True), ("config.json", True), ("result.json", True)]
    assert not (folder.path / ".lock").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(lock: FileLock, **options: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    said = r"can't lock the folder .*: (No locks available|no flock); choose another --out, on a file system with locks"
    with pytest.raises(RequestError, match=said):
        RunFolder(tmp_path).lock().__enter__()
    # a finished run on a read-only medium can be read, and nothing be written there
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with RunFolder(tmp_path).lock():
        assert RunFolder(tmp_path).result() is None


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(RequestError, match="holds no run of netgraft"):
        RunFolder(path).claim(CONFIG, resume=False)
    with pytest.raises(RequestError, match="can't make the folder"):
        RunFolder(path / "below").claim(CONFIG, resume=False)
    with pytest.raises(RequestError, match="holds no run of netgraft"):
        RunFolder(path).lock().__enter__()
    with pytest.raises(RequestError, match="can't make the folder"):
        RunFolder(path / "below").lock().__enter__()
    assert path.read_text() == "x"


def test_result_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG, resume=False)
    folder.write("result.json", {"gap": -0.5, "kept": [1, 2]})
    assert folder.result() == {"gap": -0.5, "kept": [1, 2]}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RequestError, match=r"result\.json is damaged"):
        folder.result()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    DistillJob(method="none", shots=1, out=path, compute=DeviceOptions(accelerator="cpu", precision="32")).run()
    return path


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> RunFolder:
    """A finished run that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def job(folder: RunFolder) -> DistillJob:
    compute = DeviceOptions(accelerator="cpu", precision="32")
    return DistillJob(method="none", shots=1, out=folder.path, compute=compute, resume=True)


def test_a_finished_run_is_known_by_its_result_and_its_student(done: RunFolder) -> None:
    result = done.finished()
    assert result is not None
    assert result == done.result() == job(done).run()
    # as a version without checksums left it
    (done.path / "SHA256SUMS").unlink()
    (done.path / "student" / "SHA256SUMS").unlink()
    assert done.finished() == result


@pytest.mark.parametrize("damage", ["gone", "weights gone", "description gone", "a bit", "empty"])
def test_a_run_without_a_whole_student_is_not_finished(done: RunFolder, damage: str, finished: Path) -> None:
    student = done.path / "student"
    if damage == "gone":
        shutil.rmtree(student)
    elif damage == "empty":
        for path in student.iterdir():
            path.unlink()
    elif damage == "a bit":
        content = bytearray((student / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (student / "model.safetensors").write_bytes(content)
    else:
        (student / ("model.safetensors" if damage.startswith("weights") else "config.json")).unlink()
    assert done.finished() is None
    job(done).run()
    assert done.finished() is not None
    for name in ("model.safetensors", "config.json", "SHA256SUMS"):
        assert (student / name).read_bytes() == (finished / "student" / name).read_bytes()


DAMAGED = ("{}", "[]", '[["fingerprint", 3]]', "null", "3", "", "[" * 100_000, '{"fingerprint": 3}')


@pytest.mark.parametrize(
    ("text", "sums"),
    [(text, sums) for text in (*DAMAGED, "other figures") for sums in (True, False)][:-1],
    ids=range(2 * len(DAMAGED) + 1),
)
def test_a_result_that_is_not_the_run_s_is_refused(done: RunFolder, text: str, sums: bool) -> None:
    path = done.path / "result.json"
    if not sums:
        (done.path / "SHA256SUMS").unlink()
    path.write_text(text if text in DAMAGED else path.read_text().replace('"gap": ', '"gap": 1'))
    with pytest.raises(RequestError, match=r"result\.json is damaged.*; remove (the folder|result\.json)") as refusal:
        job(done).run()
    assert "\n" not in str(refusal.value)
    path.unlink()
    job(done).run()
    assert done.finished() is not None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(fingerprint: str, *, resume: bool = False) -> str:
    return str(default_folder("job", resume=resume, fingerprint=fingerprint))


def test_default_folders_are_numbered(here: Path) -> None:
    for number in range(1, 5):
        expected = "runs/job" if number == 1 else f"runs/job-{number}"
        assert choose("aaa") == expected
        assert not Path(expected).exists()
        RunFolder(Path(expected)).claim(CONFIG, resume=False)
    Path("runs/job-2/config.json").unlink()
    Path("runs/job-2").rmdir()
    assert choose("aaa") == "runs/job-2"


def test_resume_finds_the_last_folder_of_this_run(here: Path) -> None:
    assert choose("aaa", resume=True) == "runs/job"
    for name, config in [("job", CONFIG), ("job-2", OTHER), ("job-3", CONFIG), ("job-4", OTHER)]:
        RunFolder(Path("runs") / name).claim(config, resume=False)
    assert choose("aaa", resume=True) == "runs/job-3"
    assert choose("bbb", resume=True) == "runs/job-4"
    assert choose("ccc", resume=True) == "runs/job-5"
    assert choose("aaa") == "runs/job-5"


def test_resume_passes_over_what_is_no_run(here: Path) -> None:
    RunFolder(Path("runs/job")).claim(CONFIG, resume=False)
    Path("runs/job-2").mkdir()
    Path("runs/job-3").write_text("a file")
    Path("runs/job-4").mkdir()
    Path("runs/job-4/config.json").write_text("{}")
    assert choose("aaa", resume=True) == "runs/job"
