"""Steps of training against bare arithmetic, as they are and as CUDA graphs or a compiler would run them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.gpu.result_file import PartResult, Setting
from benchmarks.speed.lower_bound import BareLoop, Prepare, Way
from benchmarks.speed.lower_bound import measure as against_bare
from benchmarks.studies.cifar_task import task
from netgraft.data.sources import open_data
from netgraft.distillation import Distillation, prepare
from netgraft.methods.netgraft import NetGraft
from netgraft.models.loading import load_teacher
from netgraft.training.runner import Runner

WARM_UP = 3
"""Runs of a step in front of its capture, as PyTorch's notes on CUDA graphs ask for."""

REPEATS = 2

COMPILED = 64
"""Forwards of one kind of module that are compiled, before the compiler would leave further ones as they are."""


def measure(setting: Setting, result: PartResult) -> None:
    """Measure the faster precision first, and at last what takes minutes to compile."""
    making: Prepare = rehearsed if setting.tiny else (lambda runner: task(runner=runner))
    on_gpu = setting.device == "cuda"
    ways = {"CUDA graph": Way(captured=cuda_graph)} if on_gpu else {}
    if not on_gpu:
        result.put("left out", "CUDA graphs, which need a CUDA device, and the compiler, which takes longest to begin")
    for precision in ("bf16", "32"):
        if precision not in result.measured:
            repeats = 1 if setting.tiny else REPEATS
            found = against_bare(making, precision, accelerator=setting.device, ways=ways, repeats=repeats)
            result.put(precision, found, dtype=precision)
    if on_gpu and "bf16, compiled" not in result.measured:
        result.put("bf16, compiled", compiled(making, "bf16"), dtype="bf16")


def compiled(making: Prepare, precision: str) -> dict[str, Any]:
    """Return seconds of the bare loop's steps as they are and compiled, and what the compiling took.

    Args:
        making: Makes the task.
        precision: ``32`` or ``bf16``.
    """
    torch._dynamo.config.cache_size_limit = COMPILED
    bare = BareLoop(making(Runner()), precision)
    way = Way(compiled=with_compiler)
    plain = sum(bare.phase(phase) for phase in bare.plan.phases)
    start = time.perf_counter()
    steps = sum(bare.phase(phase, way) for phase in bare.plan.phases)
    whole = time.perf_counter() - start
    return {"seconds": {"bare": plain, "compiled": steps}, "seconds to compile": whole - steps, "ratio": steps / plain}


def with_compiler(module: nn.Module) -> nn.Module:
    """Let a module compile itself at its first call."""
    module.compile()
    return module


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step that works on the same tensors each time.

    Args:
        step: Waits for nothing, and takes no decision by what a tensor holds.

    Returns:
        What repeats it as one launch.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def rehearsed(runner: Runner) -> Distillation:
    """Prepare a few steps on digits."""
    images = open_data("digits").train.load_many(range(10))
    student = timm.create_model("digits_vgg7_bn_half")
    short = NetGraft(block_steps=(2,), join_steps=2, batch_size=8)
    return prepare(
        load_teacher("digits_vgg7_bn"), student, images, method=short, views="crop", init="slice", runner=runner
    )
