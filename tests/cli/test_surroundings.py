"""Surroundings that fail: no home, no streams, no patience, paths that nothing opens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from netgraft.cli.main import run

from tests.support.cli import fails
from tests.support.processes import heed_ctrl_c

COMMAND = [sys.executable, "-P", "-m", "netgraft"]

SMALL = ["distill", "--shots", "1", "--views", "plain", "--block-steps", "1", "--join-steps", "1", "--device", "cpu"]

HOMELESS = """
import os, pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "NETGRAFT_DATA"):
    os.environ.pop(name, None)
from netgraft.cli.entry import main
main()
"""


def homeless(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", HOMELESS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_needs_no_home() -> None:
    done = homeless(*SMALL, "--out", "out", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("out/result.json").exists()


def test_what_needs_a_home_says_so() -> None:
    for data in ("cifar10", "~/images"):
        done = homeless("evaluate", "digits_vgg7_bn", "--data", data)
        assert done.returncode == 2
        assert "expected a home folder" in done.stderr
        assert "set HOME, or NETGRAFT_DATA" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        ("2>&-", ["methods"], 0),
        ("2>&-", ["methods", "nothing"], 2),
        ("2>&-", ["distill", "--no-such"], 2),
        (">&-", ["methods"], 0),
        ("<&- >&- 2>&-", ["methods"], 0),
        ("2>/dev/full", ["methods", "nothing"], 2),
    ],
)
def test_streams_may_be_closed(closed: str, arguments: list[str], code: int) -> None:
    line = f'"$@" {closed}'
    done = subprocess.run(["sh", "-c", line, "sh", *COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_run_with_a_closed_error_stream_writes_no_words_into_its_files() -> None:
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *COMMAND, *SMALL, "--out", "out"], check=False, text=True)
    assert done.returncode == 0
    closed = {path.name: path.read_bytes() for path in Path("out").rglob("*.safetensors")}
    assert run([*SMALL, "--out", "again", "--quiet"]) == 0
    assert closed == {path.name: path.read_bytes() for path in Path("again").rglob("*.safetensors")}


HEARD = """
import signal, sys
from netgraft.cli import entry

hear = signal.signal

def heard(*given):
    former = hear(*given)
    sys.stdout.write(".")
    sys.stdout.flush()
    return former

signal.signal = heard
entry.main()
"""


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_ctrl_c_during_imports_ends_quietly(share: float) -> None:
    """The moments are spread over the time that imports and preparations take, from that on in which it is heard."""
    command = [sys.executable, "-P", "-c", HEARD, "distill", "--method", "none", "--steps", "100000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == "."
        time.sleep(3 * share)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
    assert "Traceback" not in said
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("netgraft: ")


def test_ctrl_c_between_two_imports_ends_quietly() -> None:
    program = (
        "import signal; from netgraft.cli import entry; from netgraft.training import waiting\n"
        "waiting.wait_briefly = lambda environment: signal.raise_signal(signal.SIGINT)\n"
        "entry.main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, preexec_fn=heed_ctrl_c
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "netgraft: interrupted; a run that had begun goes on with --resume\n"


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.argv[1:] = ['--version']\n"
        "from netgraft.cli.entry import main\n"
        "try:\n    main()\n"
        "finally:\n    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False).returncode == 0


LONG = ["x" * 300, "x" * 5000, "d/" * 3000 + "x"]


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "--data", "PATH"],
        ["distill", "--out", "PATH", "--shots", "1"],
        ["distill", "--subset", "PATH"],
        ["distill", "--teacher-weights", "PATH", "--shots", "1"],
        ["distill", "--class-map", "PATH.txt", "--shots", "1"],
        ["distill", "--eval-data", "PATH", "--shots", "1"],
        ["distill", "--data-root", "PATH", "--data", "cifar10"],
        ["evaluate", "PATH", "--data", "digits"],
        ["evaluate", "digits_vgg7_bn", "--data", "digits", "--weights", "PATH"],
        ["split", "PATH"],
        ["subset", "--data", "digits", "--out", "PATH"],
        ["benchmark", "PATH"],
        ["table", "PATH"],
    ],
)
def test_over_long_paths_are_refused(arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, *(argument.replace("PATH", path) for argument in arguments))
    assert message.count("\n") == 1
    assert "with --resume" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is readable for root")
@pytest.mark.parametrize("arguments", [["benchmark"], ["table"], ["distill", "--data"], ["distill", "--subset"]])
def test_unreadable_paths_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("closed").mkdir()
    Path("closed/x").write_text("")
    Path("closed").chmod(0)
    try:
        assert fails(capsys, *arguments, "closed/x").count("\n") == 1
    finally:
        Path("closed").chmod(0o700)


def unreadable(*arguments: Any) -> None:
    raise PermissionError(13, "Permission denied", "closed")


@pytest.mark.parametrize(
    "arguments", [["distill", "--data", "closed"], ["benchmark", "closed"], ["table", "closed"], ["split", "closed"]]
)
def test_paths_whose_status_is_denied_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def denied(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("closed"):
            unreadable()
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", denied)
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("netgraft: ")
    assert message.count("\n") == 1
