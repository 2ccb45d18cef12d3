"""The whole way in one call: what comes back, what is left alone, what is refused."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from netgraft import NetGraft, Runner, derive, distill, load_teacher, prepare
from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.data.view_policy import ViewPolicy, find_policy
from netgraft.data.views import Views
from netgraft.distillation import Distillation
from netgraft.errors import InterruptedRunError, RequestError
from netgraft.grafting.pairing import Pairing
from netgraft.methods.kd import KD
from netgraft.methods.method import Budget
from netgraft.methods.registry import choose
from netgraft.models.creation import build_student, describe_labels
from netgraft.models.students import load_student, save_student
from netgraft.modules import state_digest
from netgraft.plan import Phase, Plan
from netgraft.progress import SilentReporter
from tests.support.digit_words import WORDS, counted, write_digits

SHORT = NetGraft(block_steps=(2,), join_steps=2, batch_size=16)

FEW = ViewPolicy("few", pad=1, pool=40)


def few_images(shots: int = 1) -> list[Image.Image]:
    train = open_data("digits").train
    subset = FewShotSubset.draw(train.labels or (), shots=shots, seed=0, dataset="digits")
    return train.load_many(subset.indices)


def models(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    teacher = load_teacher("digits_vgg7_bn")
    return teacher, build_student("digits_vgg7_bn_half", teacher=teacher, seed=seed)


def short(teacher: nn.Module, student: nn.Module, **options: Any) -> Distillation:
    settings: dict[str, Any] = {
        "method": SHORT,
        "views": FEW,
        "runner": Runner(accelerator="cpu", precision="32"),
        **options,
    }
    return prepare(teacher, student, few_images(), **settings)


@torch.no_grad()
def answers(model: nn.Module, config: dict[str, Any]) -> torch.Tensor:
    """Classes of the held-out digits."""
    test = open_data("digits").test
    assert test is not None
    names = ("mean", "std", "interpolation", "crop_pct")
    pictures = test.load_many(range(len(test)))
    held_out = Views(
        pictures, ViewPolicy("plain", pool=0), size=(1, 8, 8), seed=0, **{name: config[name] for name in names}
    )
    return model(held_out.batch(range(len(held_out)))).argmax(1)


@pytest.mark.parametrize("init", ["slice", "random"])
def test_a_short_run_gives_a_student_that_agrees_and_opens(tmp_path: Path, init: str) -> None:
    teacher, student = models()
    before = state_digest(teacher)
    method = NetGraft(block_steps=(60,), join_steps=60, batch_size=32)
    views = ViewPolicy("shifted", pad=1, pool=600)
    runner = Runner(accelerator="cpu", precision="32")
    distilled = distill(teacher, student, few_images(5), method=method, views=views, init=init, runner=runner)

    config = distilled.data_config
    expected = answers(teacher.eval(), config)
    agree = (answers(distilled.student, config) == expected).double().mean()
    assert agree > 0.6  # chance is 0.1
    assert distilled.pairing.init == init
    assert distilled.trained.steps == 5 * 60
    assert state_digest(teacher) == before == distilled.teacher_digest
    # every adapter folds in this pair: what comes back is the very model, of its own size
    assert distilled.plain
    assert distilled.student is student
    assert not any(module.training for module in student.modules())
    plain = timm.create_model("digits_vgg7_bn_half")
    assert {n: v.shape for n, v in student.state_dict().items()} == {n: v.shape for n, v in plain.state_dict().items()}

    cuts = distilled.pairing.student.names[:-1]
    save_student(tmp_path / "student", distilled.student, distilled.model, cuts=cuts, data_config=config)
    for opened in (
        timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval(),
        load_student(tmp_path / "student"),
    ):
        assert torch.equal(answers(opened, config), answers(distilled.student, config))


def test_untrained_students_do_not_agree() -> None:
    # the bound above means something
    teacher, student = models()
    config = short(teacher, student, init="random").data_config
    assert (answers(student.eval(), config) == answers(teacher, config)).double().mean() < 0.4


def test_seeds_decide_the_student() -> None:
    digests = []
    for callers_seed, seed in [(1, 0), (2, 0), (1, 1)]:
        torch.manual_seed(callers_seed)
        prepared = short(*models(), init="random", runner=Runner(accelerator="cpu", precision="32", seed=seed))
        state = torch.get_rng_state()
        distilled = prepared.run()
        assert torch.equal(torch.get_rng_state(), state)
        digests.append((prepared.fingerprint, state_digest(distilled.student)))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]


def test_preparing_trains_nothing() -> None:
    teacher, student = models()
    before, random_start = state_digest(teacher), {n: v.clone() for n, v in student.state_dict().items()}
    generator = torch.get_rng_state()
    prepared = short(teacher, student, init="random")
    assert torch.equal(torch.get_rng_state(), generator)
    assert state_digest(teacher) == before
    assert prepared.pairing.inherited == 1
    # only the front block was copied from the teacher: up to the first pool, features.5
    changed = {n for n, v in student.state_dict().items() if not torch.equal(v, random_start[n])}
    own = teacher.state_dict()
    assert changed
    for name in changed:
        assert int(name.split(".")[1]) < 6
        assert torch.equal(student.state_dict()[name], own[name])
    assert all(p.grad is None for p in [*teacher.parameters(), *student.parameters()])
    assert len({prepared.fingerprint, short(*models(), init="random").fingerprint}) == 1


def test_everything_that_decides_the_result_is_in_the_fingerprint() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"init": "random"},
        {"inherit": "none"},
        {"method": NetGraft(block_steps=(3,), join_steps=2, batch_size=16)},
        {"method": NetGraft(block_steps=(2,), join_steps=2, batch_size=16, join_lr=1e-5)},
        {"views": ViewPolicy("few", pad=1, pool=50)},
        {"runner": Runner(accelerator="cpu", precision="32", seed=1)},
        {"runner": Runner(accelerator="cpu", precision="bf16")},
    ]
    fingerprints = [short(*models(), **change).fingerprint for change in changes]
    teacher, student = models()
    with torch.no_grad():
        next(teacher.parameters())[0, 0, 0, 0] += 1e-3
    fingerprints.append(short(teacher, student).fingerprint)
    fingerprints.append(short(*models(seed=1), init="random").fingerprint)
    fingerprints.append(prepare(*models(), few_images(2), method=SHORT, views=FEW).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_no_sentence_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = short(*models()).fingerprint
    for kind in (ViewPolicy, Plan, Phase, Pairing, NetGraft):
        monkeypatch.setattr(kind, "__str__", lambda self: "other words")
        monkeypatch.setattr(kind, "__repr__", lambda self: "other words")
    prepared = short(*models())
    assert str(prepared.plan) == "other words"
    assert prepared.fingerprint == before


def test_the_users_models_keep_their_modes() -> None:
    teacher, student = models()
    teacher.train()
    teacher.features[1].eval()  # type: ignore[index, union-attr]
    modes = [module.training for module in teacher.modules()]
    flags = [p.requires_grad for p in student.parameters()]
    prepared = short(teacher, student)
    assert [module.training for module in teacher.modules()] == modes
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError):
        prepared.run(stop=lambda: next(asked) == 3)
    assert [module.training for module in teacher.modules()] == modes
    prepared.run()
    assert [module.training for module in teacher.modules()] == modes
    assert [p.requires_grad for p in student.parameters()] == flags
    assert not student.training


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    expected = state_digest(short(*models()).run().student)
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError, match="before step 2 of phase 4"):
        short(*models()).run(folder=tmp_path, stop=lambda: next(asked) == 7)
    assert state_digest(short(*models()).run(folder=tmp_path, resume=True).student) == expected
    with pytest.raises(RequestError, match="belongs to another plan"):
        short(*models(), init="random").run(folder=tmp_path, resume=True)


def test_slicing_is_for_narrower_twins() -> None:
    teacher, _ = models()

    def other() -> nn.Module:
        return timm.create_model("cifar_resnet8", in_chans=1)

    with pytest.raises(RequestError, match=r"init='slice' needs a student that is built like the teacher.*"):
        short(teacher, other(), init="slice")
    student = other()
    start = copy.deepcopy(student.state_dict())
    assert short(teacher, student, init="auto").pairing.init == "random"
    for name, value in student.state_dict().items():
        assert torch.equal(value, start[name])
    assert short(*models(), init="auto").pairing.init == "solve"


def test_sliced_students_hold_the_teachers_numbers() -> None:
    teacher, student = models()
    short(teacher, student, init="slice")
    # last convolution: each of the 64 filters is one of the teacher's 128, on 64 of its 128 input channels
    last = [n for n, v in student.state_dict().items() if v.dim() == 4][-1]
    wide, narrow = teacher.state_dict()[last], student.state_dict()[last]
    norms = wide.double().square().sum((1, 2, 3))
    kept = norms.argsort(descending=True)[: len(narrow)].sort().values
    for filter_, source in zip(narrow, wide[kept], strict=True):
        assert set(filter_.flatten().tolist()) <= set(source.flatten().tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "pretrained"}, "init must be auto, random, keep, slice or solve, not 'pretrained'"),
        ({"inherit": "all"}, "inherit must be auto or none, not 'all'"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        short(*models(), **options)


def test_a_student_like_the_teacher_is_refused() -> None:
    teacher, _ = models()
    with pytest.raises(RequestError, match="built exactly like the teacher"):
        short(teacher, build_student("digits_vgg7_bn", teacher=teacher, seed=0))
    # it is a proper request to train one from scratch
    prepared = short(teacher, build_student("digits_vgg7_bn", teacher=teacher, seed=0), inherit="none", init="random")
    assert prepared.pairing.inherited == 0


def test_models_of_other_classes_are_refused() -> None:
    teacher, _ = models()
    student = timm.create_model("digits_vgg7_bn_half", num_classes=7)
    with pytest.raises(RequestError, match="the teacher has 10 classes and the student 7; they must be the same"):
        short(teacher, student)


def test_models_that_share_no_resolution_are_refused() -> None:
    teacher, _ = models()
    student = nn.Sequential(nn.Conv2d(1, 4, 2, stride=3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(10))
    student(torch.zeros(1, 1, 8, 8))
    student.feature_info = [{"module": "0"}]  # type: ignore[assignment]
    with pytest.raises(RequestError, match="the blocks can't be paired"):
        short(teacher, student)


@pytest.mark.parametrize("init", ["solve", "slice"])
def test_a_solved_start_keeps_its_batch_norms_statistics_and_learns_weights(init: str) -> None:
    teacher, student = load_teacher("digits_vgg7_bn"), timm.create_model("digits_vgg7_bn_half")
    images = open_data("digits").train.load_many(range(20))
    prepared = prepare(teacher, student, images, method=NetGraft(block_steps=(0,), join_steps=3), init=init)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    prepared.run()
    after = student.state_dict()
    trained = [name for name in before if name.startswith("features.14.") or name.startswith("features.15.")]
    assert all(torch.equal(before[name], after[name]) for name in trained if "running" in name) == (init == "solve")
    assert not any(torch.equal(before[name], after[name]) for name in trained if name.endswith("weight"))


# --- weights that the student brings


def test_kept_weights_are_the_student_s_and_the_result_says_so() -> None:
    teacher, student = load_teacher("digits_vgg7_bn"), load_teacher("digits_vgg7_bn")
    # half of one, with statistics: as trained
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    before = state_digest(student)
    prepared = short(teacher, student, method=NetGraft(block_steps=(0,), join_steps=0), init="keep")
    assert (prepared.pairing.init, prepared.pairing.inherited) == ("kept", 0)
    result = prepared.run()
    assert prepared.plan.keeps_statistics is prepared.pairing.student
    assert state_digest(result.student) == before
    assert result.notes == (
        "the student keeps the weights that it brings, and learns at rates for one that knows something",
    )


def test_a_kept_student_of_other_classes_gets_a_new_head() -> None:
    student: Any = timm.create_model("digits_vgg7_bn_half", num_classes=4)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method = NetGraft(block_steps=(0,), joins="at-once", join_steps=3)
    prepared = short(load_teacher("digits_vgg7_bn"), student, method=method, init="keep")
    assert "a new one starts at random (head.fc)" in prepared.notes[0]
    after = student.state_dict()
    filters = [name for name, value in before.items() if value.ndim == 4]
    assert len(filters) == 6
    assert all(torch.equal(before[name], after[name]) for name in filters)
    # a student that knows something learns at a tenth of the rate, what is new at the whole one
    [phase] = prepared.plan.phases
    assert [list(layer.parameters()) for layer in phase.adapters] == [list(student.head.fc.parameters())]
    assert phase.schedule.adapter_lr == pytest.approx(10 * phase.schedule.lr)
    result = prepared.run()
    assert result.student(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert result.predict(open_data("digits").train.load_many([0]))[0].label in range(10)


def test_weights_that_are_replaced_are_told() -> None:
    replaced = "the student got all of its weights from the teacher (init {}); init='keep' keeps those that it brings"
    notes: list[str] = []

    class Listener(SilentReporter):
        def note(self, message: str) -> None:
            notes.append(message)

    assert short(*models(), init="auto", reporter=Listener()).notes == (replaced.format("solve"),) == tuple(notes)
    # who names a start knows what it does
    for init in ("solve", "slice", "random"):
        assert short(*models(), init=init).notes == ()
    teacher = load_teacher("digits_vgg7_bn")
    assert short(teacher, timm.create_model("cifar_resnet8", in_chans=1), init="auto").notes == ()


def test_norms_without_statistics_get_some_and_the_kept_student_answers_as_before() -> None:
    teacher, student = models()
    config = short(*models(), init="random").data_config
    expected = answers(student.eval(), config)
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.running_mean.any() for norm in norms if norm.running_mean is not None)
    prepared = short(teacher, student, init="keep")
    assert all(norm.running_mean.any() for norm in norms if norm.running_mean is not None)
    assert "; 6 batch norms came without statistics; " in prepared.notes[0]
    assert torch.equal(answers(student.eval(), config), expected)


def test_with_labels_views_show_one_image_each() -> None:
    def views(**asked: Any) -> Views:
        return prepare(*models(), few_images(), init="random", labels=list(range(10)), **asked).views

    asked: dict[str, Any]
    for asked in ({}, {"views": "rich"}, {"method": "supervised"}):
        policy = views(**asked).policy
        assert policy == replace(find_policy("rich"), mixup=0.0, cutmix=0.0)
    assert views(views=find_policy("crop")).policy == find_policy("crop")
    with pytest.raises(RequestError, match="views of policy 'rich' show two images, which have no label; leave one"):
        views(views=find_policy("rich"))


# --- images of all kinds


def test_pictures_of_any_kind_lead_to_the_same_run() -> None:
    pixels = np.stack([np.asarray(image) for image in few_images()])
    labels = list(range(len(pixels)))
    asked: dict[str, Any] = {"method": SHORT, "views": FEW, "runner": Runner(accelerator="cpu", precision="32")}
    given = [
        few_images(),
        torch.from_numpy(pixels)[:, None],
        TensorDataset(torch.from_numpy(pixels)[:, None], torch.tensor(labels)),
    ]
    assert len({prepare(*models(), each, **asked).fingerprint for each in given}) == 1
    # labels of a data set are used where they are asked for
    assert prepare(*models(), given[2], **asked).views.labels([3]) is None
    made = prepare(*models(), given[2], labels=True, **asked).views.labels([3])
    assert made is not None
    assert made.tolist() == [3]
    with pytest.raises(RequestError, match="expected images with labels, got images alone; give labels"):
        prepare(*models(), given[1], labels=True, **asked)
    derived = [derive(models()[0], each, views=FEW).student for each in given[:2]]
    assert len({state_digest(student) for student in derived}) == 1
    for refused in (prepare, distill):
        with pytest.raises(RequestError, match="a torch Dataset or DataLoader of any of them, got object; convert it"):
            refused(*models(), object(), **asked)
    with pytest.raises(RequestError, match="got NoneType; convert it"):
        derive(models()[0], None)


# --- methods and options as values


CPU: dict[str, Any] = {"views": FEW, "accelerator": "cpu", "precision": "32"}


def test_a_method_is_given_by_name_class_or_object() -> None:
    given: list[dict[str, Any]] = [
        {"method": "kd", "steps": 3, "temperature": 2.0},
        {"method": KD, "steps": 3, "temperature": 2.0},
        {"method": KD(steps=3), "temperature": 2.0},
        {"method": KD(steps=3, temperature=2.0)},
        {"method": "kd", "preset": KD.presets["default"], "steps": 3, "temperature": 2},
    ]
    prepared = [prepare(*models(), few_images(), **{**CPU, "init": "random", **each}) for each in given]
    assert {each.plan.steps for each in prepared} == {3}
    assert len({each.fingerprint for each in prepared[:4]}) == 1
    together = prepare(*models(), few_images(), method="kd+at", steps=4, init="random", **CPU)
    assert together.plan.method.startswith("kd+at")


def test_a_named_preset_brings_hyper_parameters_views_and_start() -> None:
    prepared = prepare(*models(), few_images(), preset="reference", accelerator="cpu")
    assert (prepared.pairing.init, prepared.views.policy.name) == ("random", "crop")
    expected = choose("netgraft", "reference", Budget(10, 10)).method.plan(prepared.pairing)
    assert prepared.plan.steps == expected.steps
    # what is given besides wins
    other = prepare(*models(), few_images(), preset="reference", init="slice", views="plain", join_steps=7)
    assert (other.pairing.init, other.views.policy.name) == ("slice", "plain")
    assert other.plan.phases[-1].schedule.steps == 7


def test_seed_accelerator_and_precision_are_a_runner_s() -> None:
    said = prepare(*models(), few_images(), method=SHORT, views=FEW, seed=3, accelerator="cpu", precision="32")
    made = prepare(
        *models(), few_images(), method=SHORT, views=FEW, runner=Runner(seed=3, accelerator="cpu", precision="32")
    )
    assert said.fingerprint == made.fingerprint
    with pytest.raises(RequestError, match="expected a runner or seed, got both; make the runner with seed"):
        prepare(*models(), few_images(), seed=3, runner=Runner())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stpes": 3}, r"distill has no option, and netgraft no hyper-parameter 'stpes'; did you mean 'steps'\? "),
        ({"temprature": 3, "method": "kd"}, r"kd no hyper-parameter 'temprature'; did you mean 'temperature'\? "),
        ({"kep": {"macs": 0.5}}, r"no hyper-parameter 'kep'; did you mean 'keep'\? "),
        ({"join_step": 2, "method": SHORT}, r"NetGraft no hyper-parameter 'join_step'; did you mean 'join_steps'\? "),
        ({"method": "kdd"}, r"there is no method 'kdd'; choose from netgraft, kd, .*; did you mean 'kd'\?"),
        ({"method": 3}, "expected a method by its name, its class or an object of it, got 3; choose from netgraft"),
        ({"method": nn.ReLU}, "expected a method by its name, .* got <class 'torch.nn"),
        ({"preset": "paper"}, "netgraft has no preset 'paper'; choose from default, thorough, reference"),
        ({"preset": 3}, "expected a preset by its name or as an object, got 3"),
        ({"preset": "reference", "method": SHORT}, "by its name or class where a preset is given, got an object"),
        ({"steps": "many"}, "steps must be a whole number, not 'many'"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"temperature": "hot", "method": "kd"}, "temperature must be a number, not 'hot'"),
        ({"block_steps": 3}, "block_steps must be a tuple, each of it a whole number, not 3"),
        ({"lr": -1, "method": "kd"}, "rates must be positive"),
        ({"views": "rihc"}, "rihc"),
        ({"accelerator": 3}, "accelerator must be a text, not 3"),
    ],
)
def test_wrong_options_are_refused_by_their_names(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        distill(*models(), few_images(), **options)


def test_every_option_is_named_typed_and_described() -> None:
    for call in (distill, prepare):
        parameters_ = inspect.signature(call).parameters
        text = inspect.getdoc(call) or ""
        arguments = text[text.index("Args:") : text.index("Raises:")]
        for name, parameter in parameters_.items():
            assert parameter.annotation is not inspect.Parameter.empty, name
            assert f"\n    {name}: " in arguments, name
    # what prepare takes distill takes too
    assert inspect.signature(prepare).parameters.keys() - {"derivation"} < inspect.signature(distill).parameters.keys()


# --- what comes back


def test_the_result_prints_as_a_short_table_and_has_a_history() -> None:
    teacher, student = models()
    result = distill(teacher, student, few_images(), method=KD(steps=12, batch_size=8), **CPU)
    lines = str(result).splitlines()
    assert repr(result) == str(result)
    assert len(lines) <= 10
    assert lines[1].split()[:2] == ["teacher", f"{sum(p.numel() for p in teacher.parameters()):,}"]
    assert lines[2].split()[:2] == ["student", f"{sum(p.numel() for p in student.parameters()):,}"]
    assert "12 steps" in str(result)
    assert [(line["phase"], line["step"]) for line in result.history] == [
        ("train the student", 10),
        ("train the student", 12),
    ]
    assert all(line["kd"] > 0 for line in result.history)


def test_the_result_is_measured_beside_its_teacher_and_names_classes(tmp_path: Path) -> None:
    teacher, student = models()
    describe_labels(teacher, {"label_names": list(WORDS)})
    result = distill(teacher, student, few_images(), method=NetGraft(block_steps=(1,), join_steps=1), **CPU)
    config = result.data_config
    test = open_data("digits").test
    assert test is not None
    right = torch.tensor(test.labels)
    expected = {name: answers(model, config) for name, model in (("top1", student), ("teacher_top1", teacher))}
    figures = result.evaluate(test)
    for name, guessed in expected.items():
        assert figures[name] == pytest.approx(100 * float((guessed == right).double().mean()))
    agree = 100 * float((expected["top1"] == expected["teacher_top1"]).double().mean())
    assert figures["agreement"] == pytest.approx(agree)
    assert figures["gap"] == pytest.approx(figures["teacher_top1"] - figures["top1"])
    assert figures["images"] == 600
    # the same images in other shapes
    images = test.load_many(range(40))
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))[:, None]
    assert "top1" not in result.evaluate(pixels)
    with_labels = result.evaluate(pixels, labels=list(test.labels or ())[:40])
    assert with_labels["top1"] == pytest.approx(100 * float((expected["top1"] == right)[:40].double().mean()))
    # folders by their names, in another order than the classes
    folder = write_digits(tmp_path / "words", dict(enumerate(WORDS)), each=4)
    assert result.evaluate(folder)["images"] == 40
    assert result.evaluate(str(folder))["top1"] == pytest.approx(
        counted(student, folder, {word: digit for digit, word in enumerate(WORDS)})
    )

    predictions = result.predict(images)
    assert [each.label for each in predictions] == expected["top1"][:40].tolist()
    assert [each.name for each in predictions] == [WORDS[each.label] for each in predictions]
    assert all(0.1 <= each.confidence <= 1 for each in predictions)
    for wrong, said in (([], "there are no images to answer"), (object(), "got object; convert it")):
        with pytest.raises(RequestError, match=said):
            result.predict(wrong)
    with pytest.raises(RequestError, match="got 40 images with 3 labels; give each image one"):
        result.evaluate(pixels, labels=[1, 2, 3])


def test_progress_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for progress, shown in ((None, False), (False, False), (True, True)):
        distill(*models(), few_images(), method=SHORT, init="random", progress=progress, **CPU)
        captured = capsys.readouterr()
        assert ("graft block 2: 2 steps in" in captured.err) == shown
        assert captured.out == ""
