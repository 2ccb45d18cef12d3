"""What an objective sees of a step, and what a plan says of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from netgraft.methods.baseline import no_terms
from netgraft.plan import Phase, Plan, StepOutputs, TrainingSchedule
from tests.support.method_pairs import random

B, K = 4, 6

LABELS = [5, 0, 3, 3]


def test_labels_decide_where_there_are_any() -> None:
    teacher = random(B, K, seed=1)
    batch = StepOutputs(teacher, teacher, torch.tensor(LABELS))
    assert batch.classes.tolist() == LABELS
    assert replace(batch, labels=None).classes.tolist() == [int(np.argmax(row)) for row in teacher.numpy()]


def phase(words: str, lr: float = 0.5, beside: float | None = None, batch_size: int = 4) -> Phase:
    layer = nn.Linear(2, 2)
    schedule = TrainingSchedule(steps=1500, batch_size=batch_size, lr=lr, adapter_lr=beside)
    return Phase("a name", nn.Sequential(layer), layer, no_terms, schedule, adapters=(layer,), in_words=words)


def test_a_plan_says_each_phase_in_a_line_and_what_has_a_rate_of_its_own_below() -> None:
    phases = (phase("first", beside=0.25), phase("second", beside=0.5), phase("third", beside=0.25))
    assert Plan("m", phases, nn.Sequential(), notes=("so it is",)).lines() == [
        "plan: 4,500 steps in all, of 4 views each",
        "  1 of 3: first: 1,500 steps, rate 0.5",
        "  2 of 3: second: 1,500 steps, rate 0.5",
        "  3 of 3: third: 1,500 steps, rate 0.5",
        "  rate of adapters: 0.25, in phases 1, 3",
        "  note: so it is",
    ]
    assert Plan("m", (phase("one", beside=0.25),), nn.Sequential()).lines()[2:] == ["  rate of adapters: 0.25"]
    assert Plan("m", (phase("one"), phase("two", batch_size=8)), nn.Sequential()).lines()[0] == (
        "plan: 3,000 steps in all, of 4 or 8 views each"
    )
    assert Plan("m", (), nn.Sequential()).lines() == ["plan: 0 steps in all"]
