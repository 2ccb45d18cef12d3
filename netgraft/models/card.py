"""What is known of a student -> its model card: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import timm
from torch import nn

import netgraft.zoo  # noqa: F401  (its models are timm's by name)
from netgraft.models.downloads import HUB

CARD = "README.md"
"""In a student folder; ``SHA256SUMS`` leaves it out, since people write on."""

Opener = Literal["timm", "netgraft", "model"]
"""What opens a student's folder: timm alone, netgraft, or netgraft with a model of its class that is given."""

OWN_IMAGES, OWN_MODEL = "own images", "own model"
"""In the place of names that lie on somebody's disk."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says; what is None, or empty, isn't known and left out.

    Attributes:
        student: Name, of the architecture for instance.
        opener: What opens the folder.
        parameters: Of the student.
        macs: Multiply-accumulates of one image.
        teacher: Name.
        teacher_parameters: Of the teacher.
        teacher_macs: Likewise.
        base_model: Where the teacher's weights lie on the hub, or timm's name for them.
        license: Of the weights.
        data: Name of the images that the student learned from.
        dataset: The same, where others can open it by this name.
        images: How many it learned from.
        labels: Whose labels were used.
        teacher_top1: In percent.
        student_top1: In percent.
        agreement: With the teacher, in percent.
        measured_on: Images that these were measured on.
        selection: How the student was chosen among others.
        selected_on: The set that it was chosen on, against the protocol.
        command: That makes the student again; with nothing in it that lies on one machine only.
    """

    student: str
    opener: Opener
    parameters: int
    macs: int | None = None
    teacher: str | None = None
    teacher_parameters: int | None = None
    teacher_macs: int | None = None
    base_model: str | None = None
    license: str | None = None
    data: str | None = None
    dataset: str | None = None
    images: int | None = None
    labels: str | None = None
    teacher_top1: float | None = None
    student_top1: float | None = None
    agreement: float | None = None
    measured_on: int | None = None
    selection: str | None = None
    selected_on: str | None = None
    command: str | None = None


def card(facts: CardFacts) -> str:
    """Return the card: YAML between two lines of dashes, each value as JSON writes it, then Markdown."""
    about: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "netgraft", *(["knowledge-distillation"] if facts.teacher else [])],
        "base_model": facts.base_model,
        "license": facts.license,
        "datasets": [facts.dataset] if facts.dataset else None,
        "model-index": _index(facts),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in about.items() if value]
    return "\n".join(["---", *lines, "---", "", *_body(facts), ""])


def published(text: str, repository: str, revision: str | None = None) -> str:
    """Return a card whose lines open the student from the hub instead of a folder.

    Args:
        text: Of a card; lines that somebody has rewritten stay.
        repository: ``OWNER/NAME``.
        revision: Branch, where it isn't the main one.
    """
    where = repository if revision is None else f"{repository}@{revision}"
    for opener in ("timm", "netgraft", "model"):
        text = text.replace("\n".join(_opening(opener)), "\n".join(_opening_from_hub(opener, where)))
    return text


def base_model(teacher: str) -> str | None:
    """Return where the hub has a teacher's weights, or timm's name for them; None where neither is known."""
    source, _, rest = teacher.partition(":")
    if source in HUB and rest:
        return rest.partition("@")[0]
    if not timm.is_model(teacher):
        return None
    return getattr(timm.get_pretrained_cfg(teacher), "hf_hub_id", None) or teacher


def model_name(model: nn.Module) -> str:
    """Return the name of a model's architecture, where timm or torchvision knows it."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or OWN_MODEL


def license_of_weights(model: str) -> str | None:
    """Return the licence that timm names for a model's pretrained weights."""
    known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return None if known is None else known.license


def _index(facts: CardFacts) -> list[dict[str, Any]]:
    values = {"Accuracy": facts.student_top1, "Agreement with the teacher": facts.agreement}
    metrics = [
        {"type": "accuracy", "name": name, "value": round(value / 100, 6)}
        for name, value in values.items()
        if value is not None
    ]
    if not metrics:
        return []
    data = {"type": "image-classification", "name": facts.data or OWN_IMAGES}
    task = {"type": "image-classification"}
    return [{"name": facts.student, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]


def _body(facts: CardFacts) -> list[str]:
    lines = [f"# {_code(facts.student)}", "", _origin(facts), "", *_table(facts), ""]
    if facts.agreement is not None or facts.selection is not None:
        lines += [_conditions(facts), ""]
    lines += ["Open it:", "", "```python", *_opening(facts.opener), "```"]
    if facts.command:
        fence = _fence(facts.command)
        lines += ["", "Make it again:", "", f"{fence}bash", facts.command, fence]
    return lines


def _origin(facts: CardFacts) -> str:
    if facts.teacher is None:
        return "An image classifier, saved by [netgraft](https://arxiv.org/abs/2012.04915)."
    text = f"A smaller stand-in for {_code(facts.teacher)}, made by [netgraft](https://arxiv.org/abs/2012.04915)"
    if facts.images is not None:
        text += f" from {facts.images:,} images"
        text += f" of {_code(facts.data)}" if facts.data else ""
        text += f" ({_code(facts.labels)})" if facts.labels else ""
    if facts.teacher_parameters and facts.teacher_macs and facts.macs is not None:
        text += (
            f": {facts.parameters / facts.teacher_parameters:.1%} of its parameters, "
            f"{facts.macs / facts.teacher_macs:.1%} of its multiply-accumulates"
        )
    return f"{text}."


def _table(facts: CardFacts) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    if facts.student_top1 is not None:
        teachers = "" if facts.teacher_top1 is None else f"{facts.teacher_top1:.2f} %"
        rows.append(("top-1", teachers, f"{facts.student_top1:.2f} %"))
    if facts.agreement is not None:
        rows.append(("same answer as the teacher", "", f"{facts.agreement:.2f} %"))
    rows.append(("parameters", _count(facts.teacher_parameters), _count(facts.parameters)))
    if facts.macs is not None:
        rows.append(("multiply-accumulates", _count(facts.teacher_macs), _count(facts.macs)))
    if facts.teacher is None:
        return ["| | |", "|---|---:|", *(f"| {name} | {own} |" for name, _, own in rows)]
    lines = [f"| {name} |{f' {its}' if its else ''} | {own} |" for name, its, own in rows]
    return ["| | teacher | student |", "|---|---:|---:|", *lines]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _conditions(facts: CardFacts) -> str:
    images = facts.measured_on
    measured = f"Measured on {images:,} images that took no part in training" if images else "Nothing was measured"
    chosen = f"; chosen on the {_code(facts.selected_on)} set, so too good" if facts.selected_on else ""
    return f"{measured}{chosen}." + (f" Selection: {_code(facts.selection)}." if facts.selection else "")


def _opening(opener: Opener) -> list[str]:
    """Return the lines that open a folder."""
    if opener == "timm":
        return ["import timm, netgraft.zoo", 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()']
    given = ", model=MODEL" if opener == "model" else ""
    return ["import netgraft", f'model = netgraft.load_student("FOLDER"{given})']


def _opening_from_hub(opener: Opener, where: str) -> list[str]:
    if opener == "timm":
        return ["import timm, netgraft.zoo", f'model = timm.create_model("hf-hub:{where}", pretrained=True).eval()']
    repository, _, revision = where.partition("@")
    call = f'snapshot_download("{repository}"' + (f', revision="{revision}")' if revision else ")")
    given = ", model=MODEL" if opener == "model" else ""
    return [
        "import netgraft",
        "from huggingface_hub import snapshot_download",
        f"model = netgraft.load_student({call}{given})",
    ]


def _code(text: str) -> str:
    """Return a name as a code span in one line, in which nothing is markup."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _fence(text: str) -> str:
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
