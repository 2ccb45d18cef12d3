"""Looking at the test set during a run changes nothing, and sees what an evaluation sees."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from benchmarks.studies.test_set_selection import measure
from netgraft.data.image_set import ImageSet
from netgraft.data.loader import eval_loader
from netgraft.data.sources import open_data
from netgraft.data.view_policy import ViewPolicy
from netgraft.distillation import Distillation, prepare
from netgraft.errors import InterruptedRunError, RequestError, RunError
from netgraft.evaluation.metrics import predict, top1
from netgraft.grafting.folding import fold
from netgraft.grafting.options import PairingOptions
from netgraft.jobs.distill import DistillJob
from netgraft.jobs.selection import Watcher
from netgraft.methods.registry import NetGraft
from netgraft.models.creation import build_student
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student
from netgraft.modules import state_digest
from netgraft.splitting.chain import state_of
from netgraft.training.options import DeviceOptions
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
    students = [
        state_digest(alone.run().student),
        state_digest(watched.deploy(watched.train(after_step=watcher)).student),
    ]
    assert students[0] == students[1]
    assert len(watcher.seen) == 3


def test_the_last_look_is_the_evaluation_of_the_student(test_images: ImageSet) -> None:
    run = prepared()
    watcher = Watcher(run, test_images, looks=2)
    finished = run.deploy(run.train(after_step=watcher))
    logits, labels = predict(finished.student, eval_loader(test_images, run.data_config))
    # folding rounds differently: one image may fall on the other side
    assert watcher.seen[STEPS] == pytest.approx(top1(logits, labels), abs=100 / len(test_images) + 0.01)


@pytest.mark.parametrize("looks", [1, STEPS, 5 * STEPS])
def test_the_best_is_the_best_of_what_was_seen(test_images: ImageSet, looks: int) -> None:
    result = measure(prepared(), test_images, looks)
    assert len(result["seen"]) == min(looks, STEPS)
    assert result["best"] == max(result["seen"]) >= result["last"] == result["seen"][-1]
    assert result["inflation"] == pytest.approx(result["best"] - result["last"])


# --- the student of the best look


@dataclass(frozen=True)
class State:
    """A moment of the last phase.

    ``student`` has its adapters, ``correct`` is how many test images it names.
    """

    student: nn.Sequential
    correct: int


SETTINGS = {
    "block_steps": "2",
    "join_steps": "12",
    "batch_size": "8",
    "join_lr": "0.01",
    "sliced_rate": "1",
    "schedule": "constant",
}
"""Rates at which the last student is not the best."""


def job(**options: Any) -> DistillJob:
    return DistillJob(
        **{
            "shots": 2,
            "views": "plain",
            "settings": SETTINGS,
            "pairing": PairingOptions(init="slice"),
            "compute": DeviceOptions(accelerator="cpu", precision="32", checkpoint_seconds=1e9),
            "seed": 1,
            **options,
        }
    )


LOOKED_AT = (4, 8, 12)
"""Steps of the last phase, of which there are 12, at three looks."""


@pytest.fixture(scope="module")
def states(test_images: ImageSet) -> dict[int, State]:
    """Every state of the last phase, evaluated by hand: copied, run on the pixels, compared with the labels."""
    run = job().prepare().distillation
    mean, std = run.data_config["mean"][0], run.data_config["std"][0]
    rows = [
        np.asarray(image.convert("L"), dtype=np.float32) for image in test_images.load_many(range(len(test_images)))
    ]
    pixels = torch.from_numpy(np.stack(rows))[:, None]
    labels = np.array(test_images.labels)
    found: dict[int, State] = {}

    def keep(phase: int, done: int) -> None:
        if phase == len(run.plan.phases) - 1:
            student = copy.deepcopy(run.plan.student).eval()
            with torch.no_grad():
                guesses = student((pixels / 255 - mean) / std).argmax(1).numpy()
            found[done] = State(student, int((guesses == labels).sum()))

    run.train(after_step=keep)
    return found


def first_best(states: Mapping[int, State], steps: Sequence[int]) -> int:
    most = max(states[step].correct for step in steps)
    return next(step for step in steps if states[step].correct == most)


def digest_of(state: State) -> str:
    """Of the model that a state folds to."""
    model = timm.create_model("digits_vgg7_bn_half")
    model.load_state_dict(state_of(fold(copy.deepcopy(state.student))))
    return state_digest(model)


@pytest.mark.parametrize(("looks", "steps"), [(3, LOOKED_AT), (12, range(1, 13)), (40, range(1, 13)), (1, [12])])
def test_the_student_of_the_best_look_is_kept(
    looks: int, steps: Sequence[int], states: dict[int, State], test_images: ImageSet, tmp_path: Path
) -> None:
    best = first_best(states, steps)
    # otherwise the last iterate would do
    assert looks == 1 or states[best].correct > states[12].correct
    result = job(select="best-on-test", looks=looks, out=tmp_path / "run").run()
    assert result["selected_step"] == best
    assert result["student_digest"] == digest_of(states[best])
    assert result["student_top1"] == pytest.approx(100 * states[best].correct / len(test_images), abs=0.4)
    counted = {str(step): round(100 * states[step].correct / len(test_images), 4) for step in steps}
    assert result["looked_top1"] == counted
    assert result["selected_on"] == "test"
    assert result["selection"] == f"best of {len(steps)} looks at the test set in the last phase"
    assert (result["select"], result["looks"]) == ("best-on-test", looks)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    opened = load_student(tmp_path / "run" / "student")
    assert state_digest(opened) == result["student_digest"]


def test_by_default_the_last_student_is_kept_and_nothing_says_otherwise(
    states: dict[int, State], tmp_path: Path
) -> None:
    result = job(out=tmp_path / "run").run()
    assert result["student_digest"] == digest_of(states[12])
    assert result["selection"] == "none: last iterate, test set read once"
    assert not {"select", "looks", "selected_on", "selected_step", "looked_top1"} & {*result}
    assert not (tmp_path / "run" / "selection.pt").exists()
    assert result["fingerprint"] == job().prepare().distillation.fingerprint


class KilledError(Exception):
    """Stands for the end of a process, which saves nothing."""


@pytest.mark.parametrize("often", [False, True], ids=["saved between phases", "saved at each step"])
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("asked", [1, 9, 10, 15])
def test_a_run_that_goes_on_keeps_the_same_student(
    asked: int, killed: bool, often: bool, states: dict[int, State], tmp_path: Path
) -> None:
    """Of phases of 2, 2, 2, 12 and 12 steps, ends in the fourth or in front of a step of the last one."""
    compute = DeviceOptions(accelerator="cpu", precision="32", checkpoint_seconds=0 if often else 1e9)
    options = {"select": "best-on-test", "looks": 3, "out": tmp_path / "run", "compute": compute}
    count = iter(range(100))

    def stop() -> bool:
        if next(count) < 12 + asked:
            return False
        if killed:
            raise KilledError
        return True

    with pytest.raises((InterruptedRunError, KilledError)):
        job(**options).run(stop=stop)
    result = job(**options, resume=True).run()
    best = first_best(states, LOOKED_AT)
    assert result["selected_step"] == best
    assert result["student_digest"] == digest_of(states[best])
    assert [*result["looked_top1"]] == [str(step) for step in LOOKED_AT]


def test_a_run_without_its_looks_is_refused(tmp_path: Path) -> None:
    options = {"select": "best-on-test", "looks": 3, "out": tmp_path / "run"}
    count = iter(range(100))
    with pytest.raises(InterruptedRunError):
        job(**options).run(stop=lambda: next(count) == 6 + 12 + 9)
    kept = (tmp_path / "run" / "selection.pt").read_bytes()
    flipped = bytearray(kept)
    flipped[len(kept) // 2] ^= 1
    for damaged in (kept[:100], bytes(flipped)):
        (tmp_path / "run" / "selection.pt").write_bytes(damaged)
        with pytest.raises(RequestError, match=r"selection\.pt is damaged \("):
            job(**options, resume=True).run()
    (tmp_path / "run" / "selection.pt").unlink()
    with pytest.raises(RunError, match="expected 3 looks at the test set, found 1"):
        job(**options, resume=True).run()


def test_a_run_is_not_continued_with_another_choice(tmp_path: Path) -> None:
    first = job(select="best-on-test", looks=3, out=tmp_path / "run")
    count = iter(range(100))
    with pytest.raises(InterruptedRunError):
        first.run(stop=lambda: next(count) == 4)
    with pytest.raises(RequestError, match="select 'best-on-test' there, None now"):
        job(out=tmp_path / "run", resume=True).run()
    with pytest.raises(RequestError, match="looks 3 there, 4 now"):
        job(select="best-on-test", looks=4, out=tmp_path / "run", resume=True).run()
    names = {DistillJob(shots=2, seed=1, select=select).prepare().name for select in ("last", "best-on-test")}
    assert names == {
        "digits-digits_vgg7_bn_half-2shot-netgraft-default-seed1",
        "digits-digits_vgg7_bn_half-2shot-netgraft-default-best-on-test-seed1",
    }


def test_without_labelled_test_images_there_is_nothing_to_choose_on(tmp_path: Path) -> None:
    images = open_data("digits").train
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, image in enumerate(images.load_many(range(6))):
        image.save(folder / f"{number}.png")
    asked = {
        "data": str(folder),
        "teacher": "digits_vgg7_bn",
        "student": "digits_vgg7_bn_half",
        "images": 4,
        "shots": None,
    }
    for options in (asked, {"eval_data": str(folder)}):
        with pytest.raises(RequestError, match=r"needs test images with labels to choose on, but .*plain has none"):
            job(**options, select="best-on-test").prepare()
    job(**asked, select="last").prepare()
    # labelled images from elsewhere serve
    job(**asked, select="best-on-test", eval_data="digits").prepare()


def test_several_devices_are_not_watched() -> None:
    with pytest.raises(RequestError, match="not 2; add --devices 1"):
        job(select="best-on-test", compute=DeviceOptions(accelerator="cpu", devices=2)).prepare()


def test_a_plan_without_phases_can_not_be_watched(test_images: ImageSet) -> None:
    run = job(settings={"block_steps": "0", "join_steps": "0"}).prepare().distillation
    with pytest.raises(RequestError, match="got 0 phases"):
        Watcher(run, test_images, 3)
    with pytest.raises(RequestError, match="0 looks"):
        Watcher(prepared(), test_images, 0)


@pytest.mark.parametrize("method", ["kd", "ban", "one", "dml", "ab", "none"])
def test_the_student_of_any_method_can_be_chosen(method: str, tmp_path: Path) -> None:
    short = {"steps": "4"}
    if method == "ab":
        short["ab_steps"] = "1"
    options = {"method": method, "settings": short, "pairing": PairingOptions("auto", "none")}
    result = job(**options, select="best-on-test", looks=2, out=tmp_path / "run").run()
    step, seen = result["selected_step"], result["looked_top1"]
    assert seen[str(step)] == max(seen.values())
    assert result["student_top1"] == pytest.approx(seen[str(step)], abs=0.2)


def test_what_takes_too_much_memory_is_computed_at_each_look(
    monkeypatch: pytest.MonkeyPatch, test_images: ImageSet
) -> None:
    seen = []
    for room in (2**31, 0):
        monkeypatch.setattr("netgraft.jobs.selection.IN_MEMORY", room)
        run = prepared()
        watcher = Watcher(run, test_images, looks=3)
        run.train(after_step=watcher)
        seen.append(watcher.seen)
    assert seen[0] == seen[1]
