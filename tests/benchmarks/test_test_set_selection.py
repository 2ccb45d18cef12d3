"""Looking at the test set during a run changes nothing, and sees what an evaluation sees."""

from __future__ import annotations

import pytest

from benchmarks.studies.test_set_selection import Watcher, measure
from netgraft.data.image_set import ImageSet
from netgraft.data.loader import eval_loader
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.evaluation.metrics import predict, top1
from netgraft.methods.registry import NetGraft
from netgraft.models.creation import build_student, load_teacher
from netgraft.modules import state_digest
from netgraft.training.runner import Runner

STEPS = 7


def prepared() -> Distillation:
    teacher = load_teacher("digits_vgg7_bn")
    return prepare(
        teacher,
        build_student("digits_vgg7_bn_half", teacher=teacher, seed=0),
        open_data("digits").train.load_many(range(20)),
        method=NetGraft(block_steps=(2,), join_steps=STEPS, batch_size=8),
        views=ViewPolicy("few", pad=1, pool=100),
        runner=Runner(accelerator="cpu", precision="32"),
    )


@pytest.fixture(scope="module")
def test_images() -> ImageSet:
    images = open_data("digits").test
    assert images is not None
    return images


def test_a_run_that_is_watched_ends_with_the_same_student(test_images: ImageSet) -> None:
    alone, watched = prepared(), prepared()
    watcher = Watcher(watched, test_images, looks=3)
    students = [state_digest(alone.run().student), state_digest(watched.run(reporter=watcher).student)]
    assert students[0] == students[1]
    assert len(watcher.seen) == 3


def test_the_last_look_is_the_evaluation_of_the_student(test_images: ImageSet) -> None:
    run = prepared()
    watcher = Watcher(run, test_images, looks=2)
    finished = run.run(reporter=watcher)
    logits, labels = predict(finished.student, eval_loader(test_images, run.data_config))
    # folding rounds differently: one image may fall on the other side
    assert watcher.seen[-1] == pytest.approx(top1(logits, labels), abs=100 / len(test_images) + 0.01)


@pytest.mark.parametrize("looks", [1, STEPS, 5 * STEPS])
def test_the_best_is_the_best_of_what_was_seen(test_images: ImageSet, looks: int) -> None:
    result = measure(prepared(), test_images, looks)
    assert len(result["seen"]) == min(looks, STEPS)
    assert result["best"] == max(result["seen"]) >= result["last"] == result["seen"][-1]
    assert result["inflation"] == pytest.approx(result["best"] - result["last"])
