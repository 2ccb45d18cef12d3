"""Whether a teacher says anything that a student could learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from netgraft.data.view_policy import VIEW_POLICIES
from netgraft.data.views import Views
from netgraft.errors import RequestError
from netgraft.modules import eval_mode

SHOWN = 2
"""Images, and as many of noise: few images may all be alike."""

SAME = 1e-6
"""Logits that differ by less, in parts of the largest of them, differ by rounding."""


@torch.no_grad()
def check_answers(teacher: nn.Module, images: Sequence[Image.Image], data_config: Mapping[str, Any]) -> None:
    """Look at what a teacher answers to two of the images and to noise.

    Args:
        teacher: A classifier of images (B, C, H, W); unchanged.
        images: PIL images; at least one.
        data_config: Preprocessing in timm's words.

    Raises:
        RequestError: It answers no finite numbers, or the same whatever it is shown.
    """
    few = images[:SHOWN]
    shown = Views.configured(few, VIEW_POLICIES["plain"], data_config, seed=0).batch(range(len(few)))
    noise = torch.randn(SHOWN, *shown.shape[1:], generator=torch.Generator().manual_seed(0))
    like = next(teacher.parameters(), shown)
    try:
        with eval_mode(teacher):
            logits = teacher(torch.cat([shown, noise]).to(like))
    except Exception as error:  # models raise many kinds
        size = "x".join(map(str, shown.shape[1:]))
        said = " ".join(str(error).split())[:200]
        raise RequestError(
            f"the teacher can't answer images of {size}: {said}; give the preprocessing that belongs to it"
        ) from error
    if not bool(logits.isfinite().all()):
        broken = [name for name, value in teacher.state_dict().items() if bool(value.isnan().any())]
        reason = f"its weights hold values that are no numbers, first {broken[0]!r}" if broken else "they overflow"
        raise RequestError(
            f"the teacher answers images with logits that are no finite numbers: {reason}; give another teacher, or "
            "other weights"
        )
    if float((logits - logits[:1]).abs().max()) <= SAME * float(logits.abs().max()):
        raise RequestError(
            "the teacher answers every image alike, so there is nothing to learn from it; give a trained one, or "
            "other weights"
        )
