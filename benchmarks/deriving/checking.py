"""Derive a student of one model at 0.6 of its multiply-accumulates, and look whether it is what it claims to be.

    python -m benchmarks.deriving.checking resnet18

Prints one JSON object. Weights are random, and what starts as a constant is given values of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from benchmarks.splitting.checking import randomise, small_images
from netgraft.deriving.anatomy import Anatomy
from netgraft.deriving.choice import Limit, choose_widths
from netgraft.deriving.costs import Macs
from netgraft.deriving.library import readers_of, score_widths
from netgraft.deriving.low_rank import join_dear_ones
from netgraft.deriving.narrowing import narrow
from netgraft.deriving.rank_bases import with_low_rank
from netgraft.deriving.selection import kept_channels
from netgraft.deriving.solving import narrowed_start, solve_front_to_back
from netgraft.deriving.turning import turned
from netgraft.errors import RequestError
from netgraft.evaluation.metrics import macs
from netgraft.models.creation import build_model
from netgraft.models.students import load_student, save_student

KEEP = 0.6
"""Of the multiply-accumulates."""

VIEWS, TRIED_ON, WIDTHS = 8, 2, 3
"""Views of each batch, views that errors are measured on, and widths: few, this is about architectures, not accuracy.
"""


def check(name: str) -> dict[str, Any]:
    """Build a model, derive a student, and return what came out."""
    model = build_model(name, seed=0).eval()
    images = small_images(model)
    randomise(model)
    result: dict[str, Any] = {"class": type(model).__name__, "input_size": list(images.shape[1:])}
    with torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return {**result, "no_classifier": f"returns {getattr(logits, 'shape', type(logits).__name__)}"}
    start = time.process_time()
    try:
        result |= _derive(model, images)
    except RequestError as error:
        return {**result, "refused": str(error)}
    return {**result, "seconds": round(time.process_time() - start, 2)}


def _derive(model: torch.nn.Module, images: Tensor) -> dict[str, Any]:
    anatomy = Anatomy.with_streams(with_low_rank(model, images[:2]), images[:2])
    size = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    views = torch.randn(3 * VIEWS, *size, generator=torch.Generator().manual_seed(2)).split(VIEWS)
    measured = turned(anatomy, views[:2])
    readers = readers_of(measured, views[:2])
    entries = list(score_widths(measured, readers, views[2][:TRIED_ON], sizes=WIDTHS))
    cost = Macs(anatomy.found, anatomy.blocks)
    widths = choose_widths([entry.options() for entry in entries], [Limit("macs", cost, KEEP * cost({}))])
    kept = {
        entry.place.atom: kept_channels(entry.removal.order, widths[entry.place.atom])
        for entry in entries
        if widths[entry.place.atom] < entry.place.width
    }
    student = narrowed_start(measured, readers, kept)
    for _ in solve_front_to_back(measured, student, kept, views[:2]):
        pass
    if measured.bases is not None:
        student = measured.bases.with_layer_norms(student, model, kept)
    join_dear_ones(student)
    everything = {place.atom: torch.arange(place.width) for place in anatomy.places}
    with torch.no_grad():
        # what is turned was proven to be the teacher in float64
        expected, teacher = student(images), anatomy.model(images)
        whole = narrow(anatomy.model, anatomy.found, everything).eval()(images)
        with tempfile.TemporaryDirectory() as folder:
            # the size that the model was made for, whatever it was tried on
            config = resolve_model_data_config(model)
            save_student(Path(folder, "student"), student, student, cuts=(), data_config=config)
            again = load_student(Path(folder, "student"))(images)
    return {
        "places": len(anatomy.places),
        "blocks": len(anatomy.blocks),
        "ranks": len(anatomy.found.low_rank),
        "streams": sum(place.is_stream for place in anatomy.places),
        "left_out": sum(widths[block.atom] == 0 for block in anatomy.blocks),
        "macs": macs(student, size) / macs(model, size),
        "macs_reckoned": cost(widths) / cost({}),
        "finite": bool(expected.isfinite().all()),
        "opens_with_the_same_bits": torch.equal(again, expected),
        "keeping_everything_is_the_teacher": torch.equal(whole, teacher),
    }


def main(arguments: Sequence[str]) -> None:
    """Check the named model."""
    torch.set_num_threads(1)
    print(json.dumps(check(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
