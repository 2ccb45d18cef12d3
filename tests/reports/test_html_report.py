"""A report is one page that says what result.json says, whatever names are in it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from netgraft.cli.main import run
from netgraft.cli.report import add_report
from PIL import Image

from netgraft.data.image_set import ImageSet, PictureStore
from netgraft.data.sources import open_data
from netgraft.exporting.pixels import normalised, pixels_of
from netgraft.files import write_checksums
from netgraft.jobs.thumbnails import thumbnail, write_thumbnails
from netgraft.models.loading import load_teacher
from netgraft.models.students import load_student
from netgraft.reports.html_report import render, write_report
from tests.support.cli import QUICK, fails

ASKED = [*QUICK, "--seed", "3", "--precision", "32"]
"""The precision isn't measured, so that the same student comes out again."""

VOID = {"meta", "link", "img", "line", "polyline", "circle", "rect", "br"}


class Page(HTMLParser):
    """What a browser would find: elements with attributes, figures with texts; each element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[str, str, str]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag == "data" and self._open[-1:] == ["data"]:
            self.figures.append((str(attributes["data-figure"]), str(attributes["value"]), data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    assert run([*ASKED, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(finished: Path, name: str, **changes: Any) -> Path:
    """A copy of the run whose result says something else."""
    shutil.copytree(finished, name)
    path = Path(name, "result.json")
    result = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not ...}))
    write_checksums(Path(name), ["result.json"])
    return Path(name)


def page_of(*folders: Path) -> Page:
    write_report(folders, Path("page.html"))
    return Page(Path("page.html").read_text())


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


# --- the figures


def test_distill_leaves_a_page_with_the_figures_of_its_result(finished: Path) -> None:
    page, result = Page((finished / "report.html").read_text()), result_of(finished)
    shown = {name for name, _, _ in page.figures}
    assert shown >= {
        *("teacher_top1", "student_top1", "gap", "agreement", "test_images", "images", "shots", "steps", "seconds"),
        *(
            f"{who}{what}"
            for who in ("", "teacher_")
            for what in ("parameters", "macs", "latency_ms_1", "latency_ms_64")
        ),
    }
    for name, value, text in page.figures:
        if "/" in name:
            field, row, column = name.split("/")
            [expected] = [each[column] for each in result[field] if each["name"] == row]
            assert float(value) == expected, name
            assert float(text.removesuffix(" %").replace(",", "")) == pytest.approx(expected, abs=0.0501), name
            continue
        assert float(value) == result[name], name
        number = float(re.sub(r"[,%+]|[A-Za-z]+$", "", text.replace(" ", "")))
        number *= 1e6 if text.endswith(" M") else 1
        digits = len(text.partition(".")[2].rstrip(" %Mmspoint"))
        expected = -result[name] if name == "gap" else result[name]
        unit = 1e6 if text.endswith(" M") else 1
        assert number == pytest.approx(expected, abs=0.5001 * unit * 10**-digits), name


def test_the_command_in_the_page_repeats_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [command] = re.findall(r'<pre class="command">(.*?)</pre>', (finished / "report.html").read_text())
    words = shlex.split(command)
    assert words[:2] == ["netgraft", "distill"]
    assert run([*words[1:], "--quiet", "--out", "again"]) == 0
    for name in ("fingerprint", "student_digest", "options"):
        assert result_of(Path("again"))[name] == result_of(finished)[name]


def test_what_a_result_has_besides_is_shown(finished: Path) -> None:
    nearly = {"agreement_low": 96.1234, "agreement_high": 99.8765}
    estimated = {"estimated_gap": 0.4321, "estimated_gap_low": 0.1, "estimated_gap_high": 1.2}
    unlabelled = dict.fromkeys(("teacher_top1", "student_top1", "gap", "test_images"))
    differ: list[dict[str, Any]] = [
        {"image": "a.jpg", "teacher": "cat", "student": "dog", "teacher_confidence": 0.9, "student_confidence": 0.6}
    ]
    more = {**nearly, **estimated, **unlabelled, "held_out_images": 50, "differ_most": differ}
    page = page_of(changed(finished, "run", **more))
    assert "[96.12, 99.88]" in page.words
    assert ("estimated_gap", "0.4321", "0.43 points") in page.figures
    assert "[0.10, 1.20]" in page.words
    assert ("held_out_images", "50", "50") in page.figures
    assert "cat, 90 % sure" in page.words
    assert "dog, 60 % sure" in page.words
    assert "top-1" not in page.words.partition("What was taken away")[0].partition("Teacher and student")[2].replace(
        "estimated loss of top-1", ""
    )


def test_images_that_differ_most_are_shown_where_copies_are_at_hand(finished: Path) -> None:
    page, rows = page_of(finished), result_of(finished)["differ_most"]
    assert 2 < len(rows) <= 12
    shown = page.named("img")
    assert [each["alt"] for each in shown] == [row["image"] for row in rows]
    test = open_data("digits").test
    assert test is not None
    assert test.labels is not None
    for each, row in zip(shown, rows, strict=True):
        content = base64.b64decode((each["src"] or "").partition(",")[2])
        # a copy in JPEG of the very image, which has 8x8 pixels
        pixels, own = (
            np.asarray(image.convert("L"), float) for image in (open_jpeg(content), test.load(row["position"]))
        )
        assert np.abs(pixels - own).mean() < 6
        assert row["right"] == str(test.labels[row["position"]])
        assert row["teacher"] != row["student"]
    folder = changed(finished, "run")
    (folder / "thumbnails" / "0.jpg").write_text("<svg onload=alert(1)>")
    (folder / "thumbnails" / "1.jpg").write_bytes(b"\xff\xd8\xff" + bytes(2**18))
    assert [each["alt"] for each in page_of(folder).named("img")] == [row["image"] for row in rows[2:]]
    shutil.rmtree(folder / "thumbnails")
    without = page_of(folder)
    assert without.named("img") == []
    assert rows[0]["image"] in without.words


def open_jpeg(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=["JPEG"])


def test_copies_are_small_and_say_nothing_of_where_they_were_taken(tmp_path: Path) -> None:
    big = Image.effect_noise((400, 300), 60)
    about = Image.Exif()
    about[0x010F] = "ann's camera"
    big.save("big.jpg", exif=about)
    with Image.open("big.jpg") as opened:
        write_thumbnails(tmp_path, ImageSet("photos", 1, PictureStore([opened])), [0])
    content = thumbnail(tmp_path, 0).read_bytes()
    assert open_jpeg(content).size == (160, 120)
    assert b"camera" in Path("big.jpg").read_bytes()
    assert b"camera" not in content


def test_what_is_left_of_less_sure_answers_is_counted_from_the_images(finished: Path) -> None:
    page, result = page_of(finished), result_of(finished)
    test = open_data("digits").test
    assert test is not None
    assert test.labels is not None
    config = {"input_size": (1, 8, 8), "mean": (0.3064,), "std": (0.3753,), "interpolation": "bilinear", "crop_pct": 1}
    pixels = normalised(pixels_of(test.load_many(range(len(test))), config), config)
    with torch.no_grad():
        student, teacher = (
            model(pixels).double().softmax(1).numpy()
            for model in (load_student(finished), load_teacher("digits_vgg7_bn"))
        )
    rows = re.findall(
        r"(any|\d+ % sure)\s*([\d.]+) %\s*([\d.]+) %\s*([\d.]+) %", page.words.partition("What is left")[2]
    )
    assert rows[0][0] == "any"
    for name, *figures in rows:
        low = 0.0 if name == "any" else float(name.partition(" ")[0]) / 100
        kept = student.max(1) > low
        right = student.argmax(1) == np.array(test.labels)
        same = student.argmax(1) == teacher.argmax(1)
        expected = [100 * kept.mean(), 100 * right[kept].mean(), 100 * same[kept].mean()]
        assert [float(each) for each in figures] == pytest.approx(expected, abs=0.051)
    assert (
        "calibration_error",
        str(result["calibration_error"]),
        f"{result['calibration_error']:.1f} points",
    ) in page.figures


def test_a_student_chosen_on_the_test_set_is_marked_and_warnings_stand_on_top(finished: Path) -> None:
    page = page_of(
        changed(finished, "run", selected_on="test", selection="best of 5 looks", warnings=["warning: <i>mind</i>"])
    )
    assert "Chosen on the test set, against the protocol: best of 5 looks" in page.words
    assert "warning: <i>mind</i>" in page.words


def test_nothing_measured_is_no_figure(finished: Path) -> None:
    nothing = dict.fromkeys(("teacher_top1", "student_top1", "gap", "agreement"))
    page = page_of(changed(finished, "run", **nothing, test_images=None))
    assert "No test images were there to compare answers on" in page.words
    assert "not measured" in page.words
    assert not {"agreement", "gap"} & {name for name, _, _ in page.figures}


def test_widths_are_drawn_to_scale(finished: Path) -> None:
    derived = {"narrowed": {"a": [64, 32], "b": [128, 96]}, "left_out": ["c"], "whole": ["d", "e"]}
    page = page_of(changed(finished, "run", derived=derived))
    widths = [float(each["width"] or 0) for each in page.named("rect")]
    assert widths == pytest.approx([50, 25, 100, 75])
    assert "2 places are narrower, 1 left out, 2 as wide as before" in page.words
    assert "Left out: c." in page.words


def test_curves_go_through_the_losses(finished: Path) -> None:
    folder = changed(finished, "run", phases=["first", "second"], by_confidence=[])
    rows = [{"phase": 0, "step": step, "lr": 1.0, "logits": 4.0 - step / 50} for step in range(10, 101, 10)]
    rows += [{"phase": 1, "step": step, "lr": 1.0, "ce": 10.0**-step} for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(folder)
    first, second = (
        [tuple(map(float, point.split(","))) for point in (each["points"] or "").split()]
        for each in page.named("polyline")
    )
    # linear from 0 in the first phase, and by powers of ten in the second: both are straight lines
    for points, count in ((first, 10), (second, 3)):
        assert len(points) == count
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
        assert slopes == pytest.approx([slopes[0]] * (count - 1), abs=0.02)
        assert slopes[0] > 0  # downwards on a screen
    assert [each["aria-label"] for each in page.named("svg") if each.get("role") == "img"] == [
        "first: logits from 3.8 to 2",
        "second: ce from 0.1 to 0.001 on a logarithmic scale",
    ]


# --- several runs


def test_several_runs_stand_in_one_table_with_their_front(finished: Path) -> None:
    large, small = (
        changed(finished, "large", agreement=99.0, macs=2_000_000),
        changed(finished, "small", agreement=95.0, macs=500_000),
    )
    beaten = changed(finished, "beaten", agreement=94.0, macs=1_000_000)
    page = page_of(large, small, beaten)
    rows = [f"{number}. {name}" for number, name in enumerate(("large", "small", "beaten"), 1)]
    assert [name for name in rows if name in page.words] == rows
    found = [(value, text) for name, value, text in page.figures if name == "agreement"]
    assert found[:3] == [("99.0", "99.00 %"), ("95.0", "95.00 %"), ("94.0", "94.00 %")]
    labels = [each["aria-label"] or "" for each in page.named("svg") if each.get("role") == "img"]
    assert "no other run is both smaller and better than 2, 1" in labels[0]
    assert len(page.named("circle")) == 3
    ids = {each["id"] for _, each in page.elements if "id" in each}
    assert {(each["href"] or "").removeprefix("#") for each in page.named("a")} == ids == {"run-1", "run-2", "run-3"}


def test_runs_with_other_teachers_have_no_front(finished: Path) -> None:
    page = page_of(finished, changed(finished, "other", teacher_digest="0" * 64))
    assert page.named("circle") == []


# --- names, screens and readers


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;{{ 7 * 7 }}"


def test_no_name_becomes_markup(finished: Path) -> None:
    derived = {"narrowed": {HOSTILE: [4, 2]}, "left_out": [HOSTILE], "whole": [HOSTILE]}
    both = {"teacher": HOSTILE, "student": HOSTILE, "teacher_confidence": 1, "student_confidence": 1}
    differ = [{"image": HOSTILE, "right": HOSTILE, **both}]
    classes = [{"name": HOSTILE, "images": 5, "agreement": 50.0}, {"name": "b", "images": 5, "agreement": 60.0}]
    names = dict.fromkeys(("data", "teacher", "student", "method", "plan", "views", "selection", "machine"), HOSTILE)
    options = {"teacher": HOSTILE}
    versions = {HOSTILE: HOSTILE}
    folder = changed(
        finished,
        "run",
        **names,
        derived=derived,
        differ_most=differ,
        by_class=classes,
        options=options,
        versions=versions,
        warnings=[HOSTILE],
        phases=[HOSTILE],
    )
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": 0, "step": 1, HOSTILE: 1.0}) + "\n")
    one = changed(finished, "harmless", derived={"narrowed": {"a": [4, 2]}, "left_out": ["b"], "whole": ["c"]})
    for page, harmless in ((page_of(folder), page_of(one)), (page_of(folder, folder), page_of(one, one))):
        assert {tag for tag, _ in page.elements} <= {tag for tag, _ in harmless.elements}
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert page.words.count(HOSTILE) >= 12
        assert "49" not in page.words.partition("{{")[2][:9]


def test_the_page_needs_nothing_else_and_says_what_pictures_show(finished: Path) -> None:
    page = page_of(finished, finished)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all((each["src"] or "").startswith("data:image/jpeg;base64,") and each["alt"] for each in page.named("img"))
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in page.words
    assert "@import" not in page.words
    assert page.named("html") == [{"lang": "en"}]
    for each in page.named("svg"):
        assert each.get("aria-hidden") == "true" or (each["role"] == "img" and each["aria-label"])
    assert all(each.get("scope") in {"col", "row"} for each in page.named("th"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_lines_and_letters_stand_out_from_white() -> None:
    from netgraft.reports.drawings import COLOURS

    # WCAG 2.1, 1.4.3: 4.5 to 1
    for colour in (*COLOURS, "#1a1a1a", "#333333", "#444444", "#555555"):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


# --- what can't be reported


def empty(run: Path) -> None:
    for name in ("result.json", "config.json"):
        (run / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "unfinished": (lambda run: (run / "result.json").unlink(), "got an unfinished run; finish it with --resume"),
    "empty": (empty, "got no run; check"),
    "changed": (lambda run: (run / "result.json").write_text("{}"), "is damaged: expected SHA-256"),
    "no curve": (lambda run: (run / "metrics.jsonl").write_text('{"phase": "x"}\n'), "metrics.jsonl is damaged"),
    "no object": (lambda run: (run / "metrics.jsonl").write_text("3\n"), "expected an object of numbers in line 1"),
    "no phase": (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n'), "metrics.jsonl is damaged"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_unfinished_and_damaged_runs_are_one_sentence(
    how: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(finished, "run")
    spoil, said = BROKEN[how]
    spoil(run)
    assert said in fails(capsys, "report", "run", "--out", "page.html")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": "many"}, "it has no valid parameters"),
        ({"gap": float("nan")}, "it has no valid gap"),
        ({"derived": {"narrowed": {"a": 3}}}, "is damaged: derived"),
        ({"differ_most": [{"image": 3}]}, "is damaged: differ_most"),
        ({"by_class": {}}, "is damaged: by_class"),
        ({"by_confidence": [{"low": "x"}]}, "is damaged: by_confidence"),
        (
            {"by_confidence": [dict.fromkeys(("low", "high", "images", "confidence", "agreement"), 0)]},
            "is damaged: by_c",
        ),
        ({"by_class": [{"name": "a", "images": 3, "agreement": 1e9}]}, "is damaged: by_class"),
        ({"teacher_digest": ...}, "expected a run of netgraft distill in run, got one of another command"),
    ],
)
def test_results_of_another_kind_are_one_sentence(
    changes: dict[str, Any], said: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(finished, "run", **changes)
    assert said in fails(capsys, "report", "run", "--out", "page.html")


def test_paths_that_can_not_be_used_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "expected the folder of a run, got nowhere" in fails(capsys, "report", "nowhere", "--out", "page.html")
    assert "expected a folder for page.html" in fails(capsys, "report", str(finished), "--out", "none/page.html")
    Path("folder").mkdir()
    assert "got the folder folder" in fails(capsys, "report", str(finished), "--out", "folder")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "expected a folder that can be written to" in fails(capsys, "report", str(finished), "--out", "page.html")


def test_a_report_that_fails_loses_no_run(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a plot")

    shutil.copytree(finished, "run")
    Path("run/report.html").unlink()
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr("netgraft.reports.html_report.render", fail)
    assert run([*ASKED, "--quiet", "--out", "run", "--resume"]) == 0
    assert capsys.readouterr().err == (
        "netgraft: warning: the run is finished, but there is no report of it (ZeroDivisionError: of a plot)\n"
    )
    assert sorted(Path().rglob("*")) == before
    monkeypatch.setattr("netgraft.reports.html_report.render", render)
    add_report(Path("run"))
    assert Path("run/report.html").read_text().startswith("<!DOCTYPE html>")


# --- in a browser


def test_a_browser_shows_it_without_complaint(finished: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs the browser chromium")

    def seen(page: Path) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900"]
        done = subprocess.run(
            [*command, "--enable-logging=stderr", "--dump-dom", page.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        assert "CONSOLE" not in done.stderr
        return done.stdout

    write_report([finished, finished, finished], Path("page.html"))
    # as it is, under its own policy, against which a refused picture would be a complaint
    seen(Path("page.html"))
    probe = "<script>addEventListener('load', () => parent.postMessage(%s, '*'));</script></body>"
    # in a frame as wide as a phone: does it scroll sideways, and does every picture have pixels
    asked = "[document.documentElement.scrollWidth > innerWidth, [...document.images].every(i => i.naturalWidth > 0)]"
    text = re.sub(r"<meta http-equiv.*?>", "", Path("page.html").read_text())
    Path("probed.html").write_text(text.replace("</body>", probe % asked))
    Path("phone.html").write_text(
        "<body><script>addEventListener('message', e => document.body.setAttribute('data-said', e.data));</script>"
        "<iframe src='probed.html' width=390 height=900></iframe></body>"
    )
    assert 'data-said="false,true"' in seen(Path("phone.html"))
