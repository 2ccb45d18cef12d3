"""A finished run -> the model card of its student: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from typing import Any

from netgraft.files import write_text
from netgraft.jobs.export import license_of
from netgraft.reports.finished_runs import FinishedRun

CARD = "README.md"
"""In a student folder; ``SHA256SUMS`` leaves it out, since people write on."""


def write_card(run: FinishedRun) -> None:
    """Write the card into the run's student folder, unless there is one.

    Raises:
        RunError: It can't be written.
    """
    path = run.folder / "student" / CARD
    if not path.exists():
        write_text(path, model_card(run))


def model_card(run: FinishedRun) -> str:
    """Return the card: YAML between two lines of dashes, each value as JSON writes it, then Markdown."""
    result = run.result
    about: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "netgraft", "knowledge-distillation"],
        "base_model": result["teacher"],
        "license": license_of(run.folder),
        "datasets": [result["data"]],
        "model-index": _index(run),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in about.items() if value]
    return "\n".join(["---", *lines, "---", "", *_body(run), ""])


def _index(run: FinishedRun) -> list[dict[str, Any]]:
    result = run.result
    values = {"Accuracy": result["student_top1"], "Agreement with the teacher": result["agreement"]}
    metrics = [
        {"type": "accuracy", "name": name, "value": round(value / 100, 6)}
        for name, value in values.items()
        if value is not None
    ]
    if not metrics:
        return []
    data = {"type": "image-classification", "name": result["data"]}
    task = {"type": "image-classification"}
    return [{"name": result["student"], "results": [{"task": task, "dataset": data, "metrics": metrics}]}]


def _body(run: FinishedRun) -> list[str]:
    result = run.result
    teacher, student, data = (_code(result[name]) for name in ("teacher", "student", "data"))
    lines = [
        f"# {student}",
        "",
        f"A smaller stand-in for {teacher}, made by [netgraft](https://arxiv.org/abs/2012.04915) from "
        f"{result['images']:,} images of {data} ({_code(result['labels'])}): "
        f"{result['parameters'] / result['teacher_parameters']:.1%} of its parameters, "
        f"{result['macs'] / result['teacher_macs']:.1%} of its multiply-accumulates.",
        "",
        "| | teacher | student |",
        "|---|---:|---:|",
    ]
    if result["student_top1"] is not None:
        lines.append(f"| top-1 | {result['teacher_top1']:.2f} % | {result['student_top1']:.2f} % |")
    if result["agreement"] is not None:
        lines.append(f"| same answer as the teacher | | {result['agreement']:.2f} % |")
    lines += [
        f"| parameters | {result['teacher_parameters']:,} | {result['parameters']:,} |",
        f"| multiply-accumulates | {result['teacher_macs']:,} | {result['macs']:,} |",
        "",
        _conditions(result),
        "",
        "Open it:",
        "",
        "```python",
    ]
    if result["opens_with_timm"]:
        lines += ["import timm, netgraft.zoo", 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()']
    else:
        lines += ["import netgraft", 'model = netgraft.load_student("FOLDER")']
    lines.append("```")
    if run.command:
        fence = _fence(run.command)
        lines += ["", "Make it again:", "", f"{fence}bash", run.command, fence]
    return lines


def _conditions(result: Any) -> str:
    images = result.get("test_images") or result.get("held_out_images")
    measured = f"Measured on {images:,} images that took no part in training" if images else "Nothing was measured"
    chosen = f"; chosen on the {_code(result['selected_on'])} set, so too good" if result.get("selected_on") else ""
    return f"{measured}{chosen}. Selection: {_code(result['selection'])}."


def _code(text: str) -> str:
    """Return a name as a code span in one line, in which nothing is markup."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _fence(text: str) -> str:
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
