"""Views a second, rendered by the CPU and by the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.result_file import PartResult, Setting
from netgraft.data.device_views import DeviceViews
from netgraft.data.sources import open_data
from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.training.runner import Runner

SIDES = (32, 224)

BATCHES = {32: 256, 224: 32}
"""Views at a time, as the trainer asks for them."""

IMAGES = 100


def measure(setting: Setting, result: PartResult) -> None:
    """Measure each policy at each size on each device."""
    there = Runner(accelerator=setting.device).fabric.device
    seconds = 0.1 if setting.tiny else max(1.0, setting.seconds_left() / (4 * len(VIEW_POLICIES) * len(SIDES)))
    for side in SIDES:
        images, batch = photographs(10 if setting.tiny else IMAGES, side), 8 if setting.tiny else BATCHES[side]
        for name, policy in VIEW_POLICIES.items():
            views = Views(
                images,
                replace(policy, pool=4096),
                size=(3, side, side),
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
                interpolation="bicubic",
                crop_pct=1.0,
                seed=0,
            )
            for where, render in {"CPU": views.batch, "device": DeviceViews(views, there).batch}.items():
                rate = views_a_second(render, len(views), batch, seconds)
                result.put(f"{name}, {side} pixels, {where}", {"views a second": float(f"{rate:.4g}")}, dtype="float32")


def photographs(count: int, side: int) -> list[Image.Image]:
    """Return colour pictures that are a quarter larger than ``side``: what they show changes no time."""
    digits = open_data("digits").train.load_many(range(count))
    return [image.convert("RGB").resize((side * 5 // 4, side * 5 // 4)) for image in digits]


def views_a_second(render: Callable[[Tensor], Tensor], views: int, batch: int, seconds: float) -> float:
    """Render batches one after another for some seconds, the first one unmeasured; return views a second.

    Args:
        render: From numbers of views to views.
        views: How many there are.
        batch: How many are rendered at a time.
        seconds: How long.
    """
    wait(render(torch.arange(batch) % views))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        wait(render(torch.arange(done, done + batch) % views))
        done += batch
    return done / (time.perf_counter() - start)


def wait(batch: Tensor) -> None:
    """Wait until a batch is there."""
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
