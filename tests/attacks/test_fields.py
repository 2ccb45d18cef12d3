"""Whatever stands in the fields of a file: the request succeeds, or is refused in one sentence."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netgraft.data.sources import open_data
from netgraft.data.subsets import FewShotSubset
from netgraft.errors import RequestError
from netgraft.experiments.results import load
from netgraft.experiments.specification import Experiment
from netgraft.files import write_sealed
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student, save_student
from netgraft.reports.formats import FORMATS
from netgraft.reports.summaries import summarize
from netgraft.reports.tables import long_table, wide_table
from netgraft.training.checkpoint import Checkpoint, load_optimizer
from netgraft.training.metrics_log import MetricsLog
from tests.support.result_files import RESULT

WORDS = [
    "",
    " ",
    "\0",
    "\n",
    "../../x",
    "/etc/passwd",
    "{method}",
    "{method.__class__}",
    "nan",
    "hf-hub:a/b",
    "a" * 3000,
]

NUMBERS = [0, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf]

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-3, 300),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)

ODD = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def many(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        # the same fields at each commit, others where a rotation is asked for
        derandomize="NETGRAFT_ROTATION" not in os.environ,
        suppress_health_check=checks,
        print_blob=True,
    )


def succeeds_or_is_refused(request: Callable[[], object]) -> None:
    try:
        request()
    except RequestError as error:
        said = str(error)
        assert said
        assert len(said.splitlines()) == 1, said
        assert len(said) < 4000, said


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A document of which one to three values are others, are missing, or have others beside them."""
    document = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while True:
            inside = [key for key, value in _items(place) if isinstance(value, dict | list) and value]
            if not inside or draw(st.booleans()):
                break
            place = place[draw(st.sampled_from(inside))]
        keys = [key for key, _ in _items(place)]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"])) if keys else "add"
        if what == "add":
            value = draw(ODD)
            if isinstance(place, list):
                place.append(value)
            else:
                place[draw(st.text(max_size=6))] = value
        elif what == "remove":
            del place[draw(st.sampled_from(keys))]
        else:
            place[draw(st.sampled_from(keys))] = draw(ODD)
    return document


def _items(place: Any) -> list[tuple[Any, Any]]:
    return list(place.items()) if isinstance(place, dict) else list(enumerate(place))


def toml(value: Any) -> str:
    """A value in TOML's words; nothing, which it doesn't know, becomes an empty list."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        return "[]"
    return str(value).replace("e+", "e") if isinstance(value, float) else json.dumps(value)


EXPERIMENT = {
    "title": "All",
    "common": {"data": "digits", "shots": [1, 2], "precision": "32", "subsets": [0, 1]},
    "pair": [{"name": "small", "teacher": "digits_vgg7_bn", "student": "digits_vgg7_bn_half"}],
    "run": [{"name": "{method}-{init}", "method": ["kd", "none"], "init": "slice", "settings": {"steps": 3}}],
    "published": [{"name": "Theirs", "shots": [1, 2], "top1": [90.0, 91.0], "source": "Table 2", "sd": 0.5, "n": 3}],
}


@many(200)
@given(changed(EXPERIMENT))
@example({"run": 3})
@example({"run": [{"method": "{method.foo}"}], "common": {"shots": [True]}})
def test_of_an_experiment(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "experiment.toml"
    text = "\n".join(f"{json.dumps(name)} = {toml(value)}" for name, value in content.items())
    path.write_text(text, encoding="utf-8", errors="surrogatepass")

    def ask() -> None:
        experiment = Experiment.load(path)
        if len(experiment.cells) < 50:
            experiment.check_methods()
            for cell in experiment.cells:
                cell.job()
                assert ".." not in Path(cell.name).parts
                assert not Path(cell.name).is_absolute()

    succeeds_or_is_refused(ask)


def test_of_an_experiment_that_nobody_changed(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("\n".join(f"{name} = {toml(value)}" for name, value in EXPERIMENT.items()))
    assert len(Experiment.load(path).cells) == 8


SUBSET = json.loads(FewShotSubset.draw([0, 1, 0, 1, 2], shots=1, seed=0, dataset="digits").to_json())


@many(200)
@given(changed(SUBSET))
def test_of_a_subset(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "subset.json"
    path.write_text(json.dumps(content))
    succeeds_or_is_refused(lambda: str(FewShotSubset.load(path)))


ROWS = [{"phase": 0, "step": 10, "lr": 0.1, "logits": 0.5}, {"phase": 1, "step": 0, "lr": 0.1, "logits": 0.25}]


@many(200)
@given(changed(ROWS), st.lists(st.text(max_size=20), max_size=2))
@example(ROWS, ["[" * 100_000, "{}"])
def test_of_metrics(tmp_path: Path, rows: list[Any], others: list[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [*map(json.dumps, rows), *others]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    succeeds_or_is_refused(lambda: MetricsLog(path).rewind(1, 0))


@many(200)
@given(changed(RESULT))
def test_of_a_result(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text(json.dumps({**RESULT, "gap": 1.5, "subset_seed": 1}))

    def tabulate() -> None:
        summaries = summarize(load([tmp_path]))
        for name, write in FORMATS.items():
            assert write(long_table(summaries, "Title")), name
        wide_table(summaries, "gap", "Title")

    succeeds_or_is_refused(tabulate)


def _layer() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


LAYER, OPTIMIZER = _layer()

CHECKPOINT = {
    "fingerprint": "f",
    "precision": "32",
    "phase": 0,
    "step": 3,
    "seconds": 1.5,
    "weights": dict(LAYER.state_dict()),
    "optimizer": OPTIMIZER.state_dict(),
}


@many(200)
@given(changed(CHECKPOINT))
def test_of_a_checkpoint(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    write_sealed(path, lambda temporary: torch.save(content, temporary))

    def resume() -> None:
        checkpoint = Checkpoint.load(path, "f")
        checkpoint.check_fits(path, [5, 5], LAYER.state_dict())
        layer, optimizer = _layer()
        layer.load_state_dict(checkpoint.weights)
        load_optimizer(optimizer, checkpoint.optimizer)
        optimizer.step()

    succeeds_or_is_refused(resume)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in timm's form, with sizes of its own, and of blocks with adapters between them, without checksums."""
    import netgraft
    from netgraft.grafting.adapters import deployed_layer
    from netgraft.splitting.split import split

    root = tmp_path_factory.mktemp("students")
    teacher = load_teacher("digits_vgg7_bn")
    images = open_data("digits").train.load_many(range(20))
    plain: Any = timm.create_model("digits_vgg7_bn_half").eval()
    save_student(root / "timm", plain, plain, cuts=(), data_config=plain.pretrained_cfg)
    netgraft.derive(teacher, images, keep={"macs": 0.5}).save(root / "sizes")
    chain = split(plain, probe=torch.randn(2, 1, 8, 8))
    width = chain.cuts[0].channels
    layers = [chain[0], deployed_layer("NCHW", width, width, bias=False), *list(chain)[1:]]
    student: Any = torch.nn.Sequential(*layers).eval()
    student.pretrained_cfg, student.num_classes = plain.pretrained_cfg, plain.num_classes
    save_student(root / "layers", student, plain, cuts=tuple(chain.names[:-1]), data_config=plain.pretrained_cfg)
    for path in root.rglob("SHA256SUMS"):
        path.unlink()
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("kind", ["timm", "sizes", "layers"])
def test_of_a_student(students: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "student"
    shutil.copytree(students[kind], folder)
    (path,) = folder.glob("*.json")
    whole = json.loads(path.read_text())
    assert load_student(folder)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)

    @many(60)
    @given(changed(whole))
    def described(content: Any) -> None:
        path.write_text(json.dumps(content))
        succeeds_or_is_refused(lambda: load_student(folder))

    described()
