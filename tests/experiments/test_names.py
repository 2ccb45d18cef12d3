"""Whatever names an experiment gives, its results stay in its folder; wrong types are refused in a sentence."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from netgraft.cli.main import run

from netgraft.errors import RequestError
from netgraft.evaluation.environment import processor
from netgraft.experiments import specification
from netgraft.experiments.estimate import Estimate
from netgraft.experiments.results import ResultStore, load
from netgraft.experiments.specification import LONGEST_NAME, Cell, Experiment, path_component
from tests.support.cli import fails
from tests.support.digit_words import write_digits
from tests.support.result_files import write

HOSTILE = [
    "../../x",
    "..",
    ".",
    "...",
    "/etc/x",
    "/",
    "a/../../b",
    "x\0y",
    "x\ny",
    "\\\\server\\x",
    "C:x",
    "~/x",
    " .. ",
    ". x .",
    "work",
    "Work",
    "answers",
    "experiment.toml",
    "x" * 5000,
    "é" * 200,
    ".hidden",
    "\ud800",
    "",
    "-",
]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_becomes_one_component_that_stays_as_it_is(name: str) -> None:
    component = path_component(name)
    assert path_component(component) == component
    assert Path("out", component).resolve().parent == Path("out").resolve()
    assert component.casefold() not in {"work", "answers", "experiment.toml"}
    assert len(component.encode()) <= LONGEST_NAME
    assert component.isprintable()
    Path(component).mkdir()


@pytest.mark.parametrize("name", ["0.5 of the MACs", "macs=0.5", "published half", "kd-1shot-subset0", "größer", "a+b"])
def test_a_safe_name_stays(name: str) -> None:
    assert path_component(name) == name


def test_long_names_that_begin_alike_stay_apart() -> None:
    assert path_component("x" * 500 + "a") != path_component("x" * 500 + "b")


@pytest.mark.parametrize("name", ["../x", "/x/y", "a/../b", "a/", "", ".."])
def test_a_cell_of_a_program_stays_in_the_folder_too(name: str) -> None:
    store, cell = ResultStore(Path("out")), Cell(name, "row", "pair", {})
    for action in (store.path, store.work, store.find, lambda each: store.store(each, {})):
        with pytest.raises(RequestError, match="stays within the folder"):
            action(cell)
    assert not Path("out").exists()


def test_names_of_cells_are_paths_below_the_folder() -> None:
    different = {path_component(name).casefold(): name for name in HOSTILE}
    assert len(different) > 12
    pairs = [{"name": name, "data": f"digits{number}"} for number, name in enumerate(different.values())]
    pairs += [{"data": "/data/images", "student": "../x"}, {"data": "a/b"}]
    experiment = Experiment.parse({"pair": pairs, "run": [{"name": "../../{method}", "method": "kd"}]})
    store = ResultStore(Path("out"))
    for cell in experiment.cells:
        for path in (store.path(cell), store.work(cell)):
            assert Path("out").resolve() in path.resolve().parents
    assert experiment.cells[-1].name.startswith("a-b/")
    assert experiment.cells[-1].pair == "a/b"


@pytest.mark.parametrize(
    "pairs",
    [
        [{"data": "x/a"}, {"data": "x-a"}],
        [{"name": "Half"}, {"name": "half"}],
        [{"name": "e\u0301"}, {"name": "\u00e9"}],
    ],
)
def test_names_that_become_one_are_refused(pairs: list[dict[str, str]]) -> None:
    with pytest.raises(RequestError, match="two cells are called"):
        Experiment.parse({"pair": pairs, "run": [{"method": "kd"}]})


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all that lies around, with times and sizes."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    }


def test_a_grid_writes_nowhere_but_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_digits(tmp_path / name, {digit: str(digit) for digit in range(10)}, each=2)
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "here" / "out").mkdir()
    (tmp_path / "here" / "out" / "experiment.toml").symlink_to(tmp_path / "victim")
    models = 'teacher = "digits_vgg7_bn"\nstudent = "digits_vgg7_bn_half"'
    Path("grid.toml").write_text(
        '[common]\nshots = 1\nviews = "plain"\nprecision = "32"\n'
        + f'[[pair]]\nname = "../../x"\ndata = "{tmp_path / "one"}"\n{models}\n'
        + f'[[pair]]\ndata = "{tmp_path / "two"}"\n{models}\n'
        + '[[run]]\nname = "../{method}"\nmethod = "none"\nsettings = { steps = 1 }\n'
    )
    before = listing(tmp_path)
    assert run(["benchmark", "grid.toml", "--out", "out", "--quiet"]) == 0, capsys.readouterr().err
    after = listing(tmp_path)
    assert {name: facts for name, facts in after.items() if not name.startswith("here/out/")} == {
        name: facts for name, facts in before.items() if not name.startswith("here/out/")
    }
    assert (tmp_path / "victim").read_text() == "untouched"
    results = [path for path in Path("out").rglob("*.json") if "work" not in path.parts]
    assert len(results) == 2
    # they are found, and not computed again
    assert run(["benchmark", "grid.toml", "--out", "out", "--quiet"]) == 0
    assert listing(tmp_path / "here" / "out" / "-..-x") == {
        name.removeprefix("here/out/-..-x/"): facts
        for name, facts in after.items()
        if name.startswith("here/out/-..-x/")
    }


WRONG = {
    "run": "run = 3",
    "run of texts": "run = ['kd']",
    "a table run": "[run]\nmethod = 'kd'",
    "pair": "pair = 3\n[[run]]",
    "pair of numbers": "pair = [3]\n[[run]]",
    "common": "common = 3\n[[run]]",
    "published": "published = 3\n[[run]]",
    "published of lists": "published = [[1]]\n[[run]]",
    "settings": "[[run]]\nsettings = 3",
    "settings list": "[[run]]\nsettings = ['steps']",
    "name": "[[run]]\nname = 3",
    "name list": "[[run]]\nname = ['a']",
    "pair name": "[[run]]\n[[pair]]\nname = 3",
    "subsets": "[[run]]\nsubsets = '../../x'",
    "subsets list": "[[run]]\nsubsets = [0, 'a']",
    "seeds": "[[run]]\nseeds = [1.5]",
    "seeds table": "[[run]]\nseeds = { a = 1 }",
    "date": "[[run]]\nshots = 1979-05-27",
    "empty": "[[run]]\nshots = []",
    "no seeds": "[[run]]\nseeds = []",
    "attribute": "[[run]]\nname = '{method.foo}'",
    "dunder": "[[run]]\nname = '{method.__class__.__mro__}'",
    "index": "[[run]]\nname = '{method[0]}'",
    "width": "[[run]]\nname = '{method:>9999999999}'",
    "conversion": "[[run]]\nname = '{method!r}'",
    "position": "[[run]]\nname = '{}'",
    "number": "[[run]]\nname = '{0}'",
    "brace": "[[run]]\nname = '{method'",
    "closing brace": "[[run]]\nname = 'method}'",
    "digits": f"[[run]]\nshots = {'9' * 5000}",
    "nested": f"x = {'[' * 100_000}",
    "nested tables": f"x = {'{a=' * 100_000}",
}


@pytest.mark.parametrize("kind", WRONG)
def test_fields_of_wrong_types_are_refused_in_a_sentence(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.toml").write_text(WRONG[kind])
    message = fails(capsys, "benchmark", "grid.toml")
    assert message.count("\n") == 1
    assert len(message) < 1000


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_grid_of_millions_of_cells_is_refused_before_one_is_made(
    dry: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*given: object, **named: object) -> None:
        raise AssertionError("a cell was made")

    monkeypatch.setattr(specification, "Cell", made)
    numbers = ", ".join(map(str, range(2000)))
    Path("grid.toml").write_text(f"[[run]]\nsubsets = [{numbers}]\nseeds = [{numbers}]\n")
    assert "got 4,000,000; ask for fewer values" in fails(capsys, "benchmark", "grid.toml", *dry)
    Path("grid.toml").write_text("[[run]]\n")
    with pytest.raises(AssertionError, match="a cell was made"):
        run(["benchmark", "grid.toml", *dry])


def test_no_file_of_text_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.toml")
    os.mkfifo("pipe.json")
    Path("zero.toml").symlink_to("/dev/zero")
    Path("loop.toml").symlink_to("loop.toml")
    Path("folder.toml").mkdir()
    with Path("huge.toml").open("wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "zero", "loop", "folder", "huge"):
        assert "can't read the experiment" in fails(capsys, "benchmark", f"{name}.toml")
    assert "readable subset file" in fails(capsys, "distill", "--subset", "pipe.json")
    assert "subset in JSON" in fails(capsys, "distill", "--subset", deep())
    assert "as class map" in fails(capsys, "evaluate", "digits_vgg7_bn", "--data", "digits", "--class-map", "pipe.toml")
    assert "pipe" in fails(capsys, "evaluate", "digits_vgg7_bn", "--data", "digits", "--class-map", "pipe.json")
    assert "deeply" in fails(capsys, "evaluate", "digits_vgg7_bn", "--data", "digits", "--class-map", deep())


def deep() -> str:
    Path("deep.json").write_text("[" * 100_000)
    return "deep.json"


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", "null", "[" * 100_000, '{"asked": 3}', '{"asked": {}}', '{"a":' * 9999]
)
def test_a_tampered_result_is_named(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.toml").write_text("[[run]]\nmethod = 'none'\n")
    Path("out").mkdir()
    Path("out/none-subset0.json").write_text(content)
    assert "none-subset0.json" in fails(capsys, "benchmark", "grid.toml", "--out", "out")
    with pytest.raises(RequestError, match=r"none-subset0\.json"):
        load([Path("out")])


@pytest.mark.parametrize("seconds", [None, "long", []])
def test_a_result_that_lacks_facts_says_nothing_of_the_time(seconds: object) -> None:
    cell = Experiment.parse({"run": [{"method": "none"}]}).cells[0]
    write(Path("out"), cell.name, asked=cell.asked(), seconds=seconds, machine=processor())
    found = ResultStore(Path("out")).find(cell)
    assert found is not None
    assert not Estimate([(cell, found)]).is_measured(cell)
    with pytest.raises(RequestError, match="no valid seconds"):
        load([Path("out")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test_images", [1]),
        ("test_images", "many"),
        ("ensemble_top1", "high"),
        ("start_top1", {}),
        ("selected_on", 3),
        ("policy", {}),
        ("policy", {"name": 3}),
        ("teacher_top1", None),
        ("teacher_top1", math.nan),
        ("seconds", math.inf),
        ("gap", 10**400),
    ],
)
@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_a_table_refuses_a_result_with_facts_of_wrong_types(
    name: str, value: object, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("out"), "whole")
    write(Path("out"), "tampered", seed=77, **{name: value})
    message = fails(capsys, "table", "out", "--format", form)
    assert "tampered.json" in message
    assert message.count("\n") == 1


def test_a_table_takes_results_with_and_without_a_subsets_seed(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("out"), "drawn")
    write(Path("out"), "published", subset_seed=None)
    assert run(["table", "out", "--format", "csv"]) == 0
    assert capsys.readouterr().err == ""


def test_links_in_circles_among_results_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("out"), "whole")
    Path("out/loop.json").symlink_to("loop.json")
    assert "loop.json" in fails(capsys, "table", "out")
