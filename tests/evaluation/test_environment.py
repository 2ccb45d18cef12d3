"""What results say of versions and machine."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch

from netgraft.evaluation import environment as module
from netgraft.evaluation.environment import environment, processor


def set_cpuinfo(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    def opened(name: str) -> Path:
        assert name == "/proc/cpuinfo"
        return path

    monkeypatch.setattr(module, "Path", opened)


def test_versions_and_machine_stand_under_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\n", encoding="utf-8")
    set_cpuinfo(monkeypatch, cpuinfo)
    assert environment(torch.device("cpu")) == {
        "versions": {
            "netgraft": version("netgraft"),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "device": "cpu",
        "machine": "Some CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def test_of_several_gpus_the_one_that_ran_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    found = environment(torch.device("cuda", 1))
    assert found["device"] == "cuda:1"
    assert found["machine"] == "GPU 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU: 2 GHz: fast\nflags\t\t: fpu sse\n\n", "Some CPU: 2 GHz: fast"),
        ("model name : A\nflags : fpu amx_bf16 sse\n", "A, amx_bf16"),
        ("model name : A\nflags : avx512_bf16\n", "A, avx512_bf16"),
        ("flags : avx512_bf16 amx_bf16\nmodel name : A\n", "A, amx_bf16, avx512_bf16"),
        ("model name : Naïve CPU™\n", "Naïve CPU™"),
        ("a line without a colon\nmodel name : A\n", "A"),
    ],
)
def test_a_processor_is_named_with_its_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text, encoding="utf-8")
    set_cpuinfo(monkeypatch, cpuinfo)
    assert processor() == expected


def test_a_processor_without_a_name_is_called_by_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(platform, "processor", lambda: "")
    cpuinfo = tmp_path / "cpuinfo"
    set_cpuinfo(monkeypatch, cpuinfo)
    assert processor() == "riscv64"
    monkeypatch.setattr(platform, "processor", lambda: "Some RISC-V")
    assert processor() == "Some RISC-V"
    cpuinfo.write_text("flags : avx512_bf16\n", encoding="utf-8")
    assert processor() == "riscv64, avx512_bf16"
